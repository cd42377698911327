"""A loop of plain PyTorch, with two things of fastssl in it: the loss `NTXent` and the weights' average `EMA`.

Nothing else of the loop knows of fastssl: any network, any optimizer, any data. (Views and scores are fastssl's here,
so that the example needs no other library.) The averaged encoder is what is kept, and scored beside an untrained one.

    python examples/torch_simclr.py --steps 60
"""

import argparse
import copy

import torch
from torch import nn

from fastssl.data import images, plans
from fastssl.data.views import make_views
from fastssl.eval.features import extract
from fastssl.eval.knn import knn_predict
from fastssl.losses import NTXent
from fastssl.momentum import EMA, cosine

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=60)
steps = max(0, parser.parse_args().steps)


def accuracy(encoder):
    """The share of test drawings whose nearest neighbours among the others are of their class."""
    known, asked = (extract(encoder, part.images, size=32) for part in (train, test))
    classes = knn_predict(known, train.labels, asked, num_classes=len(train.classes))
    return (classes == test.labels).float().mean().item()


torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
drawings = images.load("clipart", size=32)
train, test = drawings.train, drawings.test

encoder = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
)
head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
untrained = copy.deepcopy(encoder)

criterion = NTXent(temperature=0.2)
average = EMA(encoder, momentum=cosine(0.9, 1.0, max(1, steps)))
optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=2e-3)

for step in range(1, steps + 1):
    chosen = torch.randperm(len(train), generator=generator)[:128]
    x0, x1 = make_views(train.images[chosen], plans.drawings(32), generator)
    loss = criterion(head(encoder(x0)), head(encoder(x1)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    average.update(encoder)
    print(f"step {step}: loss {loss.item():.6f}")

print(
    f"{steps} steps; classes by nearest neighbours: {accuracy(average.module):.1%} right with the averaged encoder, "
    f"{accuracy(untrained):.1%} with an untrained one"
)
