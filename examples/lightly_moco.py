"""MoCo with lightly's names: a momentum encoder, and a memory bank of earlier keys.

Another import line than `from lightly import loss, models`, and nothing else. Two things are better than before: the
K similarities of each query are never stored, and the bank is saved with the state dict, so that a run can go on.
The loss first rises, for the bank begins with random keys, which are easily told apart.

    python examples/lightly_moco.py --steps 20
"""

import argparse
import copy
from itertools import chain, count, islice

import torch
from torch import nn

from fastssl.compat.lightly import loss, models  # was: from lightly import loss, models
from fastssl.data import images, plans
from fastssl.data.loader import Loader

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=20)
steps = max(0, parser.parse_args().steps)


class MoCo(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = models.modules.MoCoProjectionHead(64, 64, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        models.utils.deactivate_requires_grad(self.backbone_momentum)
        models.utils.deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x):
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()


torch.manual_seed(0)
backbone = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
    nn.AdaptiveAvgPool2d(1),
)
model = MoCo(backbone)

dataset = images.load("clipart", size=32).train
dataloader = Loader(dataset, plans.drawings(32), batch_size=128, seed=0)
batches = chain.from_iterable(map(dataloader.epoch, count()))  # epoch after epoch

criterion = loss.NTXentLoss(temperature=0.2, memory_bank_size=(4096, 128))
optimizer = torch.optim.SGD(model.parameters(), lr=0.06)

for step, (x_query, x_key) in enumerate(islice(batches, steps), 1):
    models.utils.update_momentum(model.backbone, model.backbone_momentum, m=0.99)
    models.utils.update_momentum(model.projection_head, model.projection_head_momentum, m=0.99)
    query = model(x_query)
    key = model.forward_momentum(x_key)
    loss = criterion(query, key)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.6f}")

saved = ", ".join(f"{name} {tuple(values.shape)}" for name, values in criterion.state_dict().items())
print(f"{steps} steps of MoCo, each of 128 queries against 4096 earlier keys; the loss saves {saved or 'nothing'}")
