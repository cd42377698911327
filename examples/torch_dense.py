"""DenseCL in a loop of plain PyTorch: `DenseContrastive` for places beside `MoCoLoss` for images, `EMA` for the keys.

Each place of one view learns to tell the place of the other view that looks most like it from keys of other drawings:
features for tasks that are about places, as detection and segmentation are. The losses rise while the queues fill with
keys of drawings, and fall from there.

    python examples/torch_dense.py --steps 100
"""

import argparse
import copy

import torch
from torch import nn

from fastssl.data import images, plans
from fastssl.data.views import make_views
from fastssl.eval.features import extract
from fastssl.eval.knn import knn_predict
from fastssl.losses import DenseContrastive, MoCoLoss
from fastssl.momentum import EMA

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=100)
steps = max(0, parser.parse_args().steps)
SHARE = 0.5  # of the dense loss in the sum


class Network(nn.Module):
    """A backbone, a head for images and one for places."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        )
        self.whole = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        self.dense = nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1))

    def forward(self, x):
        features = self.backbone(x)
        return self.whole(features.mean((2, 3))), self.dense(features), features


def accuracy(network):
    """The share of test drawings whose nearest neighbours among the others, by all their places, are of their class."""
    places = nn.Sequential(network.backbone, nn.AvgPool2d(2), nn.Flatten())
    known, asked = (extract(places, part.images, size=32) for part in (train, test))
    classes = knn_predict(known, train.labels, asked, num_classes=len(train.classes))
    return (classes == test.labels).float().mean().item()


torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
drawings = images.load("clipart", size=32)
train, test = drawings.train, drawings.test

network = Network()
untrained = copy.deepcopy(network)
average = EMA(network, momentum=0.99)
of_images, of_places = (kind(0.2, dim=64, length=1024) for kind in (MoCoLoss, DenseContrastive))
optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)

for step in range(1, steps + 1):
    chosen = train.images[torch.randperm(len(train), generator=generator)[:64]]
    first, second = make_views(chosen, plans.drawings(32), generator)
    whole, dense, features = network(first)
    with torch.no_grad():
        key, dense_key, key_features = average(second)
    loss = (1 - SHARE) * of_images(whole, key) + SHARE * of_places(dense, dense_key, features, key_features)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    average.update(network)
    print(f"step {step}: loss {loss.item():.6f}")

print(
    f"{steps} steps; classes by nearest neighbours: {accuracy(average.module):.1%} right with the averaged encoder's "
    f"places, {accuracy(untrained):.1%} with an untrained one's"
)
