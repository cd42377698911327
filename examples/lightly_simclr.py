"""SimCLR by lightly's own training loop, and the same with one line changed: the import.

`lightly_simclr_before.py` is the loop that lightly's documentation (1.6) teaches, on the drawings embedded in fastssl
in place of CIFAR-10 and with a small backbone in place of a ResNet. `lightly_simclr.py` differs from it in the line
that imports loss and head: `diff` shows no other. From the same seed both give the same losses, step by step.

    python examples/lightly_simclr.py --steps 20
"""

import argparse
from itertools import chain, count, islice

import torch
from fastssl.compat.lightly import loss, models
from torch import nn

from fastssl.data import images, plans
from fastssl.data.loader import Loader

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=20)
steps = max(0, parser.parse_args().steps)


class SimCLR(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = models.modules.SimCLRProjectionHead(64, 64, 128)

    def forward(self, x):
        x = self.backbone(x).flatten(start_dim=1)
        z = self.projection_head(x)
        return z


torch.manual_seed(0)
backbone = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
    nn.AdaptiveAvgPool2d(1),
)
model = SimCLR(backbone)

dataset = images.load("clipart", size=32).train
dataloader = Loader(dataset, plans.drawings(32), batch_size=128, seed=0)
batches = chain.from_iterable(map(dataloader.epoch, count()))  # epoch after epoch

criterion = loss.NTXentLoss(temperature=0.5)
optimizer = torch.optim.SGD(model.parameters(), lr=0.06)

for step, (x0, x1) in enumerate(islice(batches, steps), 1):
    z0 = model(x0)
    z1 = model(x1)
    loss = criterion(z0, z1)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.6f}")

print(f"{steps} steps of SimCLR on 128 drawings each; NTXentLoss came from {type(criterion).__module__}")
