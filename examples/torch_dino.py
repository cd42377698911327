"""DINO in a loop of plain PyTorch: `DINOLoss` with its center, and `EMA` as the teacher.

Two large crops of each drawing go through teacher and student, four small ones through the student alone, and each crop
of the student is told what the teacher says of another. No softmax over the prototypes is stored. The loss rises until
the center has found the mean of what the teacher says, and falls from there.

    python examples/torch_dino.py --steps 100
"""

import argparse
from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import normalize

from fastssl.data import images, plans
from fastssl.data.views import make_views
from fastssl.losses import DINOLoss
from fastssl.momentum import EMA, cosine

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=100)
steps = max(0, parser.parse_args().steps)
PROTOTYPES = 512
LARGE = replace(plans.drawings(32), crop_scale=(0.4, 1.0))
SMALL = replace(plans.drawings(16), crop_scale=(0.1, 0.4), views=4)


class Network(nn.Module):
    """An encoder, a head, and cosines with the prototypes."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.head = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES, 64))

    def forward(self, x):
        return normalize(self.head(self.encoder(x)), dim=1) @ normalize(self.prototypes, dim=1).T


torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
drawings = images.load("clipart", size=32).train.images

student = Network()
teacher = EMA(student, momentum=cosine(0.98, 1.0, max(1, steps)))
criterion = DINOLoss(PROTOTYPES, student_temp=0.1, teacher_temp=0.04)
optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)

for step in range(1, steps + 1):
    chosen = drawings[torch.randperm(len(drawings), generator=generator)[:64]]
    large, small = make_views(chosen, LARGE, generator), make_views(chosen, SMALL, generator)
    with torch.no_grad():
        taught = torch.stack([teacher(x) for x in large])  # (crops, batch, prototypes)
    said = torch.stack([student(x) for x in large + small])  # the crops that the teacher sees come first
    loss = criterion(said, taught)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    teacher.update(student)
    print(f"step {step}: loss {loss.item():.6f}")

with torch.no_grad():
    (whole,) = make_views(drawings[:512], plans.eval(32), generator)
    chosen = teacher(whole).sub(criterion.center).argmax(1).unique()
print(f"{steps} steps; the teacher gives 512 drawings {len(chosen)} of {PROTOTYPES} prototypes (1 would be a collapse)")
