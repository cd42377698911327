"""SimCLR with solo-learn's loss: `simclr_loss_func` of any number of views, told by `indexes` which go together.

Another import line than `from solo.losses import simclr_loss_func`, and nothing else. Here with three views of each
drawing, for which solo-learn's own formula stands; of two, the similarities are not even stored.

    python examples/solo_simclr.py --steps 20
"""

import argparse
from dataclasses import replace

import torch
from torch import nn

from fastssl.compat.solo import simclr_loss_func  # was: from solo.losses import simclr_loss_func
from fastssl.data import images, plans
from fastssl.data.views import make_views

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=20)
steps = max(0, parser.parse_args().steps)
VIEWS = 3

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
drawings = images.load("clipart", size=32).train.images

backbone = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
)
projector = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
optimizer = torch.optim.Adam([*backbone.parameters(), *projector.parameters()], lr=2e-3)

for step in range(1, steps + 1):
    indexes = torch.randperm(len(drawings), generator=generator)[:128]
    X = make_views(drawings[indexes], replace(plans.drawings(32), views=VIEWS), generator)
    z = torch.cat([projector(backbone(x)) for x in X])
    nce_loss = simclr_loss_func(z, indexes=indexes.repeat(VIEWS), temperature=0.2)
    optimizer.zero_grad()
    nce_loss.backward()
    optimizer.step()
    print(f"step {step}: loss {nce_loss.item():.6f}")

print(f"{steps} steps of SimCLR on {VIEWS} views of 128 drawings each")
