"""Images and their captions, by open_clip's loss: only the line that imports `ClipLoss` is another.

Two small towers learn which caption belongs to which drawing: the captions are the words of the drawings' file names.
As in open_clip, the model gives features of unit length and a learnt scale, and the loss takes them by name.

    python examples/open_clip_loop.py --steps 100
"""

import argparse
import math
import re
import zlib
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from fastssl.compat.open_clip import ClipLoss  # was: from open_clip.loss import ClipLoss
from fastssl.data import images

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=100)
steps = max(0, parser.parse_args().steps)
BATCH, WORDS = 128, 4096


def tokens(name):
    """The words of a file name, each as a number from 1 to 4095."""
    words = re.findall("[a-z]+", Path(name).stem.lower())
    return torch.tensor([1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in words])


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 128)),
        )
        self.text = nn.EmbeddingBag(WORDS, 128, padding_idx=0)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image, text):
        return {
            "image_features": normalize(self.visual(image), dim=-1),
            "text_features": normalize(self.text(text), dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }


torch.manual_seed(0)
drawings = images.load("clipart", size=32).train
texts = pad_sequence([tokens(name) for name in drawings.names], batch_first=True)
model = Towers()
loss = ClipLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

for step in range(1, steps + 1):
    chosen = torch.randperm(len(drawings))[:BATCH]
    model_out = model(drawings.images[chosen] / 255, texts[chosen])
    losses = loss(**model_out, output_dict=True)
    total_loss = sum(losses.values())
    optimizer.zero_grad()
    total_loss.backward()
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    print(f"step {step}: loss {total_loss.item():.6f}")

with torch.no_grad():
    chosen = torch.randperm(len(drawings))[:BATCH]
    found = model.eval()(drawings.images[chosen] / 255, texts[chosen])
    nearest = (found["image_features"] @ found["text_features"].T).argmax(1)
right = (nearest == torch.arange(BATCH)).sum().item()
print(f"{steps} steps; of {BATCH} drawings, {right} find their own caption first (1 would by chance)")
