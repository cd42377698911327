"""Chunks give the batch's values and gradients, from the activations of one of them."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from fastssl import models
from fastssl.models.chunked import in_chunks

EXACT = {"rtol": 1e-9, "atol": 1e-12}  # of float64


def vit() -> nn.Module:
    encoder = models.get("vit_micro")(patch_size=4, width=16, depth=2, image_size=8)
    return encoder.double()


def resnet() -> nn.Module:
    return models.get("resnet18")(stem="cifar", width=2).double()


def images(count: int = 10, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gradients(network: nn.Module, features: Tensor) -> list[Tensor]:
    """Of a loss whose gradient by one image depends on all others, as a contrastive one's does."""
    network.zero_grad()
    (features @ features.mT).logsumexp(1).sum().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_without_batch_statistics_features_and_gradients_are_the_whole_batchs(size: int) -> None:
    torch.manual_seed(0)
    encoder, batch = vit(), images()
    whole, parts = encoder(batch), in_chunks(encoder, batch, size)
    torch.testing.assert_close(parts, whole, **EXACT)
    torch.testing.assert_close(gradients(encoder, parts), gradients(encoder, whole), **EXACT)


@pytest.mark.parametrize("size", [None, 10, 11])
def test_a_batch_that_fits_is_passed_at_once(size: int | None) -> None:
    seen: list[int] = []
    encoder = resnet()
    encoder.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    gradients(encoder, in_chunks(encoder, images(), size))
    assert seen == [10]


@pytest.mark.parametrize("autocast", [False, True])
def test_batch_norm_takes_the_statistics_of_each_chunk_and_runs_on_once(autocast: bool) -> None:
    torch.manual_seed(0)
    ours, batch = resnet(), images()
    plain = copy.deepcopy(ours)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = in_chunks(ours, batch, 4)
        wanted = torch.cat([plain(chunk) for chunk in batch.split([4, 3, 3])])
    assert torch.equal(found, wanted)
    for one, other in zip(gradients(ours, found), gradients(plain, wanted), strict=True):
        assert torch.equal(one, other)
    for name, buffer in ours.state_dict().items():
        assert torch.equal(buffer, plain.state_dict()[name]), name
    assert ours.bn1.num_batches_tracked == 3


def test_buffers_are_the_same_tensors_afterwards() -> None:
    encoder = resnet()
    before = dict(encoder.named_buffers())
    gradients(encoder, in_chunks(encoder, images(), 4))
    assert all(buffer is before[name] for name, buffer in encoder.named_buffers())


def test_both_passes_draw_the_same_numbers() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    batch = images()
    torch.manual_seed(1)
    parts = in_chunks(network, batch, 4)
    drawn_next = torch.rand(())
    found = gradients(network, parts)
    torch.manual_seed(1)
    wanted = gradients(network, torch.cat([network(chunk) for chunk in batch.split([4, 3, 3])]))
    torch.testing.assert_close(found, wanted, **EXACT)
    torch.manual_seed(1)
    in_chunks(network, batch, 4)
    assert drawn_next == torch.rand(())


def test_without_gradients_each_chunk_is_passed_once() -> None:
    encoder = resnet().eval()
    seen: list[int] = []
    encoder.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    with torch.no_grad():
        torch.testing.assert_close(in_chunks(encoder, images(), 4), encoder(images()), **EXACT)
    assert seen == [4, 3, 3, 10]


# in a process of its own: one that has lived has memory to give again, which raises no mark
MEASURE = """
import sys
import torch
from fastssl import models
from fastssl.models.chunked import in_chunks
from fastssl.train.memory import PeakMemory

torch.set_num_threads(1)
encoder = models.get("vit_micro")(patch_size=4, width=48, depth=4, image_size=32)
batch = torch.randn(192, 3, 32, 32)
size = int(sys.argv[1])
in_chunks(encoder, batch[:4], 2).square().sum().backward()
peak = PeakMemory()
in_chunks(encoder, batch, size).square().sum().backward()
print(peak.megabytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the mark")
def test_the_peak_is_that_of_a_chunk() -> None:
    peaks = {}
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back at once
    for size in (192, 24):
        command = [sys.executable, "-c", MEASURE, str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks[size] = float(done.stdout)
    assert peaks[24] < peaks[192] / 4, peaks  # an eighth, and what does not depend on the batch
