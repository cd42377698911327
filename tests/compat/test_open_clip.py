"""open_clip's losses against open_clip itself."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from benchmarks import rivals
from fastssl.compat import open_clip as ours

try:
    theirs = rivals.load("open_clip.loss")
except rivals.NotInstalledError as missing:
    pytest.skip(str(missing), allow_module_level=True)


def features(n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(2, n, d, generator=generator, dtype=dtype)
    return list(torch.nn.functional.normalize(rows, dim=2))


def with_gradients(loss, images: Tensor, texts: Tensor, *scales: float) -> tuple[Tensor, ...]:
    leaves = [images.clone(), texts.clone(), *(torch.tensor(scale, dtype=images.dtype) for scale in scales)]
    leaves = [x.requires_grad_() for x in leaves]
    result = loss(*leaves)
    result.backward()
    return result.detach(), *(x.grad for x in leaves)


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_arguments_have_the_same_names_order_and_defaults(name: str) -> None:
    def told(function) -> list[tuple[str, object]]:
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    assert told(getattr(ours, name)) == told(getattr(theirs, name))
    assert told(getattr(ours, name).forward) == told(getattr(theirs, name).forward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 4), (13, 7), (64, 32)])
def test_results_and_gradients(n: int, d: int, dtype: torch.dtype) -> None:
    pair = features(n, d, dtype)
    for name, scales in (("ClipLoss", (14.0,)), ("SigLipLoss", (10.0, -10.0))):
        got, want = (with_gradients(getattr(library, name)(), *pair, *scales) for library in (ours, theirs))
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-6)


def test_as_a_dict_and_with_a_bias() -> None:
    pair = features(6, 5, torch.float32)
    got, want = (library.ClipLoss()(*pair, 10.0, torch.tensor(-3.0), output_dict=True) for library in (ours, theirs))
    assert got.keys() == want.keys() == {"contrastive_loss"}
    torch.testing.assert_close(got["contrastive_loss"], want["contrastive_loss"])
    scale, bias = torch.tensor([10.0]), torch.tensor([-3.0])  # as models with nonscalar_logit_scale have them
    torch.testing.assert_close(ours.ClipLoss()(*pair, scale), theirs.ClipLoss()(*pair, scale))
    torch.testing.assert_close(ours.SigLipLoss()(*pair, scale, bias), theirs.SigLipLoss()(*pair, scale, bias))
    torch.testing.assert_close(ours.SigLipLoss()(*pair, 10.0, None), theirs.SigLipLoss()(*pair, 10.0, None))


def test_horovod_and_unknown_ways_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ClipLoss: processes are torch\.distributed's; horovod is not supported"):
        ours.ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="SigLipLoss: dist_impl must be bidir, shift, reduce or gather; got 'star'"):
        ours.SigLipLoss(dist_impl="star")
