"""SimCLR with pytorch-metric-learning's loss: only the line that imports `NTXentLoss` is another.

Its loss takes labels, which here say what is a view of the same drawing. Theirs compares each of the 256 positive pairs
with each of the 65,024 negative ones in a table, and another 128 drawings make it eight times as large; ours stores not
even the 256 x 256 similarities.

    python examples/pml_simclr.py --steps 20
"""

import argparse

import torch
from torch import nn

from fastssl.compat.pml import NTXentLoss  # was: from pytorch_metric_learning.losses import NTXentLoss
from fastssl.data import images, plans
from fastssl.data.views import make_views

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=20)
steps = max(0, parser.parse_args().steps)

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
drawings = images.load("clipart", size=32).train.images

model = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)),
)
loss_func = NTXentLoss(temperature=0.2)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(1, steps + 1):
    chosen = torch.randperm(len(drawings), generator=generator)[:128]
    embeddings = model(torch.cat(list(make_views(drawings[chosen], plans.drawings(32), generator))))
    loss = loss_func(embeddings, chosen.repeat(2))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.6f}")

print(f"{steps} steps on two views of 128 drawings each; NTXentLoss came from {type(loss_func).__module__}")
