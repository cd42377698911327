from __future__ import annotations

import pytest
import torch

from fastssl.errors import UserError
from fastssl.train.reproduce import environment, fingerprint, reproducible, resolve_device


def test_the_seed_decides_and_the_state_returns() -> None:
    before = torch.get_rng_state()
    with reproducible(3, 1):
        first = torch.rand(4)
        assert torch.get_num_threads() == 1
    with reproducible(3, 1):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_zero_threads_keep_the_number() -> None:
    before = torch.get_num_threads()
    with reproducible(0, 0):
        assert torch.get_num_threads() == before


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("toaster", "cpu:x", "gpu"):
        with pytest.raises(UserError, match=f"unknown device '{name}': give --device auto, cpu, cuda or cuda:N"):
            resolve_device(name)
    with pytest.raises(UserError, match=r"device 'cuda:99' cannot be used .*--device cpu, or auto"):
        resolve_device("cuda:99")


def test_fingerprint_sees_any_change() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    other = images.clone()
    other[1, 2, 3, 3] = 1
    assert fingerprint(images) == fingerprint(images.clone())
    assert fingerprint(images) != fingerprint(other)
    assert fingerprint(images).startswith("2 images, ")


def test_environment_names_versions_and_threads() -> None:
    with reproducible(0, 1):
        found = environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__
    assert found["threads"] == "1"
