"""lightly's functions and heads against lightly's own."""

from __future__ import annotations

import copy
import functools
import importlib.util
from pathlib import Path

import pytest
import torch
from compat_helpers import assert_alike, rows, with_gradients
from other_libraries import load_or_skip
from torch import Tensor, nn

from fastssl.compat import lightly as ours

utils, heads = load_or_skip("lightly.models.utils"), load_or_skip("lightly.models.modules.heads")
# by its file: its package asks for pytorch_lightning
knn_file = Path(load_or_skip("lightly").__file__).parent / "utils" / "benchmarking" / "knn.py"

spec = importlib.util.spec_from_file_location("lightlys_knn", knn_file)
knn = importlib.util.module_from_spec(spec)
spec.loader.exec_module(knn)


def test_dinos_head_begins_as_theirs() -> None:
    """By the spread of its weights: the same numbers are drawn in another order."""
    begun = [library.DINOProjectionHead(96, 128, 64, 256).state_dict() for library in (ours, heads)]
    assert begun[0].keys() == begun[1].keys()
    for name, mine in begun[0].items():
        assert abs(mine.mean() - begun[1][name].mean()) < 0.01, name
        torch.testing.assert_close(mine.std(), begun[1][name].std(), rtol=0.1, atol=0.0, msg=name)


@pytest.mark.parametrize(("dtype", "m"), [(torch.float32, 0.9), (torch.float64, 0.0), (torch.bfloat16, 0.5)], ids=str)
def test_update_momentum_and_deactivate(dtype: torch.dtype, m: float) -> None:
    networks = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(dtype) for _ in range(2)]
    averages = [copy.deepcopy(networks[1]) for _ in range(2)]
    for library, average in zip((ours, utils), averages, strict=True):
        library.update_momentum(networks[0], average, m)
        library.deactivate_requires_grad(average)
        assert not any(parameter.requires_grad for parameter in average.parameters())
    for got, want in zip(*(average.state_dict().values() for average in averages), strict=True):
        # theirs is rounded twice in bfloat16
        torch.testing.assert_close(got, want, rtol=0.01 if dtype == torch.bfloat16 else 1e-6, atol=1e-3)


@pytest.mark.parametrize("mask_class_token", [True, False])
@pytest.mark.parametrize(("size", "ratio"), [((3, 10), 0.6), ((2, 11), 0.9), ((4, 197), 0.75), ((1, 1), 0.5)])
def test_random_token_mask_draws_the_same(size: tuple[int, int], ratio: float, mask_class_token: bool) -> None:
    torch.manual_seed(0)
    got = ours.random_token_mask(size, ratio, mask_class_token)
    torch.manual_seed(0)
    for x, y in zip(got, utils.random_token_mask(size, ratio, mask_class_token), strict=True):
        assert torch.equal(x, y)


def test_tokens_and_patches() -> None:
    images, tokens = rows(0, 2, 3, 8, 8), rows(1, 2, 6, 5)
    index, value, token = torch.tensor([[0, 3], [5, 1]]), rows(2, 2, 2, 5), rows(3, 1, 1, 5)
    for name, arguments in {
        "patchify": (images, 4),
        "unpatchify": (utils.patchify(images, 4), 4),
        "repeat_token": (token, (2, 6)),
        "get_at_index": (tokens, index),
        "set_at_index": (tokens, index, value),
        "mask_at_index": (tokens, index, token),
    }.items():
        learnt = [x for x in arguments if isinstance(x, Tensor) and x.is_floating_point()]
        got, want = (
            with_gradients(functools.partial(in_their_places, getattr(library, name), arguments), *learnt)
            for library in (ours, utils)
        )
        assert_alike(got, want)


def in_their_places(function, arguments: tuple[object, ...], *learnt: Tensor) -> Tensor:
    """Called with these in the place of the floating-point tensors; squared, so that gradients are of all kinds."""
    left = iter(learnt)
    given = [next(left) if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    found: Tensor = function(*given)
    return found.square()


def test_shuffling_draws_the_same_and_comes_back() -> None:
    batch = rows(0, 7, 3)
    torch.manual_seed(0)
    shuffled, order = ours.batch_shuffle(batch)
    torch.manual_seed(0)
    want, same = utils.batch_shuffle(batch)
    assert torch.equal(shuffled, want)
    assert torch.equal(order, same)
    assert torch.equal(ours.batch_unshuffle(shuffled, order), batch)


@pytest.mark.parametrize(("k", "t"), [(1, 0.1), (7, 0.1), (20, 0.07)])
def test_knn_predict_ranks_the_classes_alike(k: int, t: float) -> None:
    features, known = (nn.functional.normalize(rows(i, n, 8), dim=1) for i, n in enumerate((12, 40)))
    labels = torch.randint(3, (40,), generator=torch.Generator().manual_seed(5))
    got, want = (library.knn_predict(features, known.T, labels, 3, k, t) for library in (ours, knn))
    assert torch.equal(got[:, 0], want[:, 0])
    assert torch.equal(got.sort(1).values, want.sort(1).values)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("SimCLRProjectionHead", {}),
        ("SimCLRProjectionHead", dict(num_layers=3, batch_norm=False)),
        ("SimCLRProjectionHead", dict(num_layers=1)),
        ("MoCoProjectionHead", {}),
        ("MoCoProjectionHead", dict(num_layers=4, batch_norm=True)),
        ("DINOProjectionHead", {}),
        ("DINOProjectionHead", dict(batch_norm=True, norm_last_layer=False)),
    ],
)
def test_heads_load_each_others_weights(name: str, settings: dict[str, object]) -> None:
    sizes = dict(input_dim=6, hidden_dim=7, output_dim=5)
    if name.startswith("DINO"):
        sizes["bottleneck_dim"] = 4
    theirs, mine = (getattr(library, name)(**sizes, **settings) for library in (heads, ours))
    mine.load_state_dict(theirs.state_dict())
    for _ in range(2):  # in training, then under eval() with what batch norm has seen
        assert_alike(with_gradients(mine, rows(0, 9, 6)), with_gradients(theirs, rows(0, 9, 6)))
        for got, want in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert (got.grad is None) == (want.grad is None)
            if want.grad is not None:
                torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-5)
        mine.eval()
        theirs.eval()
    assert [p.requires_grad for p in mine.parameters()] == [p.requires_grad for p in theirs.parameters()]


def test_the_last_layer_is_frozen_for_the_first_epochs() -> None:
    head = ours.DINOProjectionHead(6, 7, 4, 5, freeze_last_layer=2)
    for epoch, frozen in ((0, True), (1, True), (2, False)):
        head(rows(0, 3, 6)).sum().backward()
        head.cancel_last_layer_gradients(epoch)
        assert (head.last_layer.weight_v.grad is None) == frozen


def test_processes_that_are_not_there_are_refused() -> None:
    batch, order = rows(0, 4, 5), torch.arange(4)
    for call in (lambda: ours.batch_shuffle(batch, True), lambda: ours.batch_unshuffle(batch, order, True)):
        with pytest.raises(RuntimeError, match=r"^batch_\w+: a group was given, and .* is not initialised"):
            call()


# ---- what differs on purpose ----


def test_knn_takes_cosines() -> None:
    features, known, labels = rows(0, 12, 8), rows(1, 40, 8), torch.arange(40) % 3
    unit, bank_ = nn.functional.normalize(features, dim=1), nn.functional.normalize(known, dim=1)
    got = ours.knn_predict(features, 5 * known.T, labels, 3, 7)
    assert torch.equal(got[:, 0], knn.knn_predict(unit, bank_.T, labels, 3, 7)[:, 0])


def test_a_momentum_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"momentum must be a number in \[0, 1\]; got 1\.5"):
        ours.update_momentum(nn.Linear(2, 2), nn.Linear(2, 2), 1.5)
