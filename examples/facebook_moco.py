"""MoCo v2 with the names of Facebook's repository, in the loop of its `main_moco.py`: the import is another, no more.

The model runs on one process without torch.distributed, and where that is initialised on all of its processes, within
`DistributedDataParallel` as there. Its checkpoints have the original's names, and load. `model.loss(*views)` gives the
same loss as `criterion(*model(*views))` without storing the logits. The loss first rises, for the queue begins with
random keys, which are easily told apart.

    python examples/facebook_moco.py --steps 20
"""

import argparse
from collections import OrderedDict
from itertools import chain, count, islice

import torch
from torch import nn

from fastssl.compat.facebook.moco import MoCo  # was: from moco.builder import MoCo
from fastssl.data import images, plans
from fastssl.data.loader import Loader

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=20)
steps = max(0, parser.parse_args().steps)


def encoder(num_classes):
    """Called as torchvision's ResNets are, and with their last layer's name."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 32, 3, stride=2, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3, stride=2, padding=1),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, num_classes),
        )
    )


torch.manual_seed(0)
model = MoCo(encoder, dim=64, K=4096, m=0.99, T=0.2, mlp=True)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.06, momentum=0.9, weight_decay=1e-4)

dataset = images.load("clipart", size=32).train
dataloader = Loader(dataset, plans.drawings(32), batch_size=128, seed=0)
batches = chain.from_iterable(map(dataloader.epoch, count()))  # epoch after epoch

for step, (im_q, im_k) in enumerate(islice(batches, steps), 1):
    output, target = model(im_q=im_q, im_k=im_k)
    loss = criterion(output, target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.6f}")

print(f"{steps} steps of MoCo v2; {int(model.queue_ptr)} of {model.K} keys in the queue are drawings'")
