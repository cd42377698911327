"""open_clip's losses against open_clip itself."""

from __future__ import annotations

import pytest
import torch
from compat_helpers import DTYPES, arguments, assert_alike, drawn, rows, with_gradients
from other_libraries import load_or_skip
from torch import Tensor
from torch.nn.functional import normalize

from fastssl.compat import open_clip as ours

theirs = load_or_skip("open_clip.loss")

SCALES = {"ClipLoss": (14.0,), "SigLipLoss": (10.0, -10.0)}


def features(n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    return [normalize(rows(seed, n, d, dtype=torch.float64), dim=1).to(dtype) for seed in (n, n + 1)]


@pytest.mark.parametrize("name", SCALES)
def test_arguments_have_the_same_names_order_and_defaults(name: str) -> None:
    assert arguments(getattr(ours, name)) == arguments(getattr(theirs, name))
    assert arguments(getattr(ours, name).forward) == arguments(getattr(theirs, name).forward)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_results_and_gradients(seed: int, dtype: torch.dtype, name: str) -> None:
    n, d = drawn(seed, 70, 40)
    inputs = [*features(n, d, dtype), *(torch.tensor(x * (seed + 1) / 4, dtype=dtype) for x in SCALES[name])]
    assert_alike(*(with_gradients(getattr(library, name)(), *inputs) for library in (ours, theirs)))


def test_as_a_dict_and_with_a_bias() -> None:
    pair = features(6, 5, torch.float32)
    got, want = (library.ClipLoss()(*pair, 10.0, torch.tensor(-3.0), output_dict=True) for library in (ours, theirs))
    assert got.keys() == want.keys() == {"contrastive_loss"}
    torch.testing.assert_close(got["contrastive_loss"], want["contrastive_loss"])
    scale, bias = torch.tensor([10.0]), torch.tensor([-3.0])  # as models with nonscalar_logit_scale have them
    torch.testing.assert_close(ours.ClipLoss()(*pair, scale), theirs.ClipLoss()(*pair, scale))
    torch.testing.assert_close(ours.SigLipLoss()(*pair, scale, bias), theirs.SigLipLoss()(*pair, scale, bias))
    torch.testing.assert_close(ours.SigLipLoss()(*pair, 10.0, None), theirs.SigLipLoss()(*pair, 10.0, None))


def test_a_scale_of_integers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"ClipLoss: logit_scale must be float32, .*; got torch\.int64"):
        ours.ClipLoss()(*features(6, 5, torch.float32), torch.tensor(5))


def test_horovod_and_unknown_ways_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ClipLoss: processes are torch\.distributed's; horovod is not supported"):
        ours.ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="SigLipLoss: dist_impl must be bidir, shift, reduce or gather; got 'star'"):
        ours.SigLipLoss(dist_impl="star")


@pytest.mark.parametrize("name", SCALES)
def test_bad_input_is_named(name: str) -> None:
    (a, b), scales, loss = features(6, 5, torch.float32), SCALES[name], getattr(ours, name)()
    for pair, error, said in (
        ((a, b[1:]), ValueError, r"a and b must have the same shape \(N, D\); got \(6, 5\) and \(5, 5\)"),
        ((a, b.double()), TypeError, "a and b must have one dtype; got torch.float32 and torch.float64"),
        ((a, b.to("meta")), ValueError, "a and b must be on one device; got cpu and meta"),
        ((a[:0], b[:0]), ValueError, r"needs at least one sample and one feature; got \(0, 5\)"),
    ):
        with pytest.raises(error, match=f"^{name}: {said}"):
            loss(*pair, *scales)
    with pytest.raises(RuntimeError, match=f"^{name}: a group was given, and .* is not initialised"):
        getattr(ours, name)(world_size=2)(a, b, *scales)


# ---- what differs on purpose; over several processes in tests/losses/test_beside_open_clip.py ----


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_the_loss_in_float32(dtype: torch.dtype, name: str) -> None:
    inputs = [*features(16, 8, dtype), *(torch.tensor(x, dtype=dtype) for x in SCALES[name])]
    got = with_gradients(getattr(ours, name)(), *inputs)
    want = with_gradients(getattr(theirs, name)(), *(x.double() for x in inputs))
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[0].double(), want[0], rtol=1e-5, atol=1e-6)
    for x, y in zip(got[1:], want[1:], strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), y, rtol=0.01, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = getattr(ours, name)()(*(x.float() for x in inputs))
    torch.testing.assert_close(mixed.double(), want[0], rtol=1e-5, atol=1e-6)
