"""SimCLR over several processes: with `group="world"` every process's drawings are negatives of all the others'.

Each process has its part of the batch; the mean of the losses, and the gradients that DistributedDataParallel takes the
mean of, are those of one process with the whole batch. So both of these lines print the same losses:

    python examples/distributed_simclr.py
    torchrun --standalone --nproc-per-node 2 examples/distributed_simclr.py
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastssl.data import images, plans
from fastssl.data.views import make_views
from fastssl.losses import NTXent

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=20)
steps = max(0, parser.parse_args().steps)

if dist.is_torchelastic_launched():
    dist.init_process_group("gloo")
else:  # started by python: one process, which is all of the group
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
rank, world = dist.get_rank(), dist.get_world_size()
if 128 % world:
    parser.error(f"128 drawings are to be shared evenly: take 2, 4 or 8 processes, not {world}")

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)  # alike in all processes: so are the whole batch and its views
drawings = images.load("clipart", size=32).train.images

network = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.GroupNorm(8, 32), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)),
)
model = DistributedDataParallel(network)
criterion = NTXent(temperature=0.2, group="world")
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

for step in range(1, steps + 1):
    chosen = drawings[torch.randperm(len(drawings), generator=generator)[:128]]
    views = make_views(chosen, plans.drawings(32), generator)
    x0, x1 = (view.chunk(world)[rank] for view in views)  # this process's part
    z0, z1 = model(torch.cat([x0, x1])).chunk(2)
    loss = criterion(z0, z1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mean = loss.detach()
    dist.all_reduce(mean)
    if rank == 0:
        print(f"step {step}: loss {mean.item() / world:.6f}")

if rank == 0:
    print(f"{steps} steps on 128 drawings each, {128 // world} in each of {world} processes")
dist.destroy_process_group()
