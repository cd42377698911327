"""The names of pytorch-metric-learning and info-nce-pytorch against these packages themselves."""

from __future__ import annotations

from collections.abc import Callable

import compat_helpers
import pytest
import torch
from compat_helpers import DTYPES, arguments, drawn, rows, with_gradients
from other_libraries import load_or_skip
from torch import Tensor

from fastssl.compat import info_nce as our_info_nce
from fastssl.compat import pml

losses, info_nce = load_or_skip("pytorch_metric_learning.losses"), load_or_skip("info_nce")


def assert_alike(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> None:
    compat_helpers.assert_alike(with_gradients(ours, *inputs), with_gradients(theirs, *inputs))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pml.NTXentLoss, losses.NTXentLoss),
        (pml.NTXentLoss.forward, losses.NTXentLoss.forward),
        (our_info_nce.InfoNCE, info_nce.InfoNCE),
        (our_info_nce.InfoNCE.forward, info_nce.InfoNCE.forward),
        (our_info_nce.info_nce, info_nce.info_nce),
        (pml.info_nce.InfoNCE, info_nce.InfoNCE),
    ],
)
def test_arguments_have_the_same_names_order_and_defaults(ours, theirs) -> None:
    assert arguments(ours) == arguments(theirs)


# ---- NTXentLoss ----

LABELS = {
    "two views": torch.arange(12).repeat(2),
    "two views, side by side, in any order": torch.tensor([70, -3, 5]).repeat_interleave(2).flip(0),
    "two classes": torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]),
    "three views": torch.arange(5).repeat(3),
    "classes": torch.tensor([0, 1, 2, 0, 0, 1, 4, 3, 2]),
    "no pair": torch.arange(6),
    "no negative": torch.zeros(5, dtype=torch.int64),
    "one row": torch.zeros(1, dtype=torch.int64),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_nt_xent(labels: Tensor, temperature: float, dtype: torch.dtype) -> None:
    ours, theirs = (library(temperature) for library in (pml.NTXentLoss, losses.NTXentLoss))
    embeddings = rows(0, len(labels), 7, dtype=dtype)
    assert_alike(lambda z: ours(z, labels), lambda z: theirs(z, labels), embeddings)
    narrow = labels.to(torch.int32)
    torch.testing.assert_close(ours(embeddings, narrow), ours(embeddings, labels))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_nt_xent_of_random_sizes(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, m, d, classes = (int(torch.randint(2, 40, (), generator=generator)) for _ in range(4))
    labels, ref_labels = (torch.randint(classes, (count,), generator=generator) for count in (n, m))
    ours, theirs = (library(temperature=0.05 + seed / 8) for library in (pml.NTXentLoss, losses.NTXentLoss))
    assert_alike(lambda z: ours(z, labels), lambda z: theirs(z, labels), rows(seed, n, d, dtype=dtype))
    assert_alike(
        lambda z, r: ours(z, labels, ref_emb=r, ref_labels=ref_labels),
        lambda z, r: theirs(z, labels, ref_emb=r, ref_labels=ref_labels),
        rows(seed, n, d, dtype=dtype),
        rows(99 + seed, m, d, dtype=dtype),
    )


@pytest.mark.parametrize("labels", [LABELS["two views"], LABELS["classes"]], ids=["two views", "classes"])
def test_nt_xent_of_rows_against_themselves(labels: Tensor) -> None:
    ours, theirs = pml.NTXentLoss(0.3), losses.NTXentLoss(0.3)
    z = rows(0, len(labels), 5)
    assert_alike(lambda z: ours(z, labels, None, z, labels), lambda z: theirs(z, labels, None, z, labels), z)
    other = labels.flip(0)
    assert_alike(lambda z: ours(z, labels, None, z, other), lambda z: theirs(z, labels, None, z, other), z)


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("with_labels", [True, False])
def test_nt_xent_of_the_pairs_that_are_given(count: int, with_labels: bool) -> None:
    generator = torch.Generator().manual_seed(count)
    indices = tuple(torch.randint(9, (40,), generator=generator) for _ in range(count))  # some of them several times
    labels = torch.arange(9) if with_labels else None
    ours, theirs = pml.NTXentLoss(), losses.NTXentLoss()
    assert_alike(lambda z: ours(z, labels, indices), lambda z: theirs(z, labels, indices), rows(0, 9, 5))
    assert_alike(
        lambda z, r: ours(z, labels, indices, r, labels),
        lambda z, r: theirs(z, labels, indices, r, labels),
        rows(0, 9, 5),
        rows(1, 9, 5),
    )
    none = torch.empty(0, dtype=torch.int64)
    assert ours(rows(0, 9, 5), None, (none, none, *indices[:2])) == 0


def test_pmls_wrapper_takes_our_loss() -> None:
    views = rows(0, 6, 5), rows(1, 6, 5)
    ours, theirs = (losses.SelfSupervisedLoss(library(0.2)) for library in (pml.NTXentLoss, losses.NTXentLoss))
    assert_alike(ours, theirs, *views)


def test_nt_xent_refuses_what_it_cannot_use() -> None:
    loss, z, labels = pml.NTXentLoss(), rows(0, 6, 5), torch.arange(6)
    for call, told in (
        (lambda: loss(z), "NTXentLoss: needs labels or an indices_tuple; got neither"),
        (lambda: loss(z, labels[:5]), r"NTXentLoss: labels must be \(6\), one for each row; got \(5\)"),
        (lambda: loss(z[0], labels), r"NTXentLoss: embeddings must have shape \(N, D\); got \(5\)"),
        (lambda: loss(z[:0], labels[:0]), r"needs at least one row and one feature; got \(0, 5\)"),
        (lambda: loss(z, labels, ref_emb=z + 1), "ref_emb needs ref_labels; got none"),
        (lambda: loss(z, labels, ref_emb=z[:, :3], ref_labels=labels), r"agree on D; got \(6, 5\) and \(6, 3\)"),
        (lambda: loss(z, None, (labels, labels)), r"indices_tuple must be .*; got 2 tensors"),
        (lambda: loss(z, None, (labels, labels, labels + 1)), r"negatives must be in \[0, 6\); got 6"),
        (lambda: loss(z, None, (labels, labels[:4], labels)), r"positives must be int64, as many .*; got .* \(4\)"),
        (lambda: pml.NTXentLoss(0.0), r"NTXentLoss: temperature must be finite and above 0; got 0\.0"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    with pytest.raises(TypeError, match=r"NTXentLoss: labels must be integers; got torch\.float32"):
        loss(z, labels.float())
    with pytest.raises(TypeError, match="mean over positive pairs; got distance, reducer"):
        pml.NTXentLoss(distance=object(), reducer=object())


# ---- InfoNCE ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("n", "m", "d", "temperature"), [(1, 1, 3, 0.1), (7, 20, 5, 0.07), (32, 5, 16, 1.0)])
def test_info_nce(n: int, m: int, d: int, temperature: float, reduction: str, dtype: torch.dtype) -> None:
    pair = rows(0, n, d, dtype=dtype), rows(1, n, d, dtype=dtype)
    for mode, negatives in (("unpaired", (m, d)), ("paired", (n, m, d))):
        settings = dict(temperature=temperature, reduction=reduction, negative_mode=mode)
        ours, theirs = our_info_nce.InfoNCE(**settings), info_nce.InfoNCE(**settings)
        assert_alike(ours, theirs, *pair)
        assert_alike(ours, theirs, *pair, rows(2, *negatives, dtype=dtype))
        for x, y in zip((our_info_nce.info_nce, ours), (info_nce.info_nce, theirs), strict=True):
            torch.testing.assert_close(x(*pair), y(*pair))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_info_nce_of_random_sizes(seed: int, dtype: torch.dtype) -> None:
    n, m, d = drawn(seed, 50, 50, 50)
    mode = ("unpaired", "paired")[seed % 2]
    settings = dict(temperature=0.05 + seed / 8, reduction=("mean", "sum", "none")[seed % 3], negative_mode=mode)
    negatives = rows(seed + 2, *((n, m, d) if mode == "paired" else (m, d)), dtype=dtype)
    ours, theirs = our_info_nce.InfoNCE(**settings), info_nce.InfoNCE(**settings)
    assert_alike(ours, theirs, rows(seed, n, d, dtype=dtype), rows(seed + 1, n, d, dtype=dtype), negatives)


def test_a_temperature_that_is_learnt() -> None:
    for negatives in ((), (rows(2, 9, 5),)):

        def loss(function, query: Tensor, key: Tensor, temperature: Tensor, rest=negatives) -> Tensor:
            return function(query, key, *rest, temperature=temperature)

        assert_alike(
            lambda *x, loss=loss: loss(our_info_nce.info_nce, *x),
            lambda *x, loss=loss: loss(info_nce.info_nce, *x),
            rows(0, 6, 5),
            rows(1, 6, 5),
            torch.tensor(0.3),
        )


def test_info_nce_refuses_what_it_cannot_use() -> None:
    loss, z = our_info_nce.InfoNCE(), rows(0, 6, 5)
    paired = our_info_nce.InfoNCE(negative_mode="paired")
    for call, told in (
        (
            lambda: loss(z, z[:5]),
            r"query and positive_key must have the same shape \(N, D\); got \(6, 5\) and \(5, 5\)",
        ),
        (lambda: loss(z, z, z[:, :3]), r"unpaired negative_keys \(M, D\) must go with .*; got \(6, 3\) and \(6, 5\)"),
        (lambda: loss(z, z, z[None]), r"unpaired negative_keys must have shape \(M, D\); got \(1, 6, 5\)"),
        (lambda: paired(z, z, z), r"paired negative_keys must have shape \(N, M, D\); got \(6, 5\)"),
        (lambda: paired(z, z, z[:5, None]), r"paired negative_keys \(N, M, D\) must go .*; got \(5, 1, 5\)"),
        (lambda: loss(z, z, z[:0]), r"needs at least one negative key, or None; got \(0, 5\)"),
        (lambda: our_info_nce.InfoNCE(-1.0)(z, z, z), r"temperature must be finite and above 0; got -1\.0"),
        (lambda: our_info_nce.InfoNCE(reduction="max"), "reduction must be one of mean, sum, none; got 'max'"),
        (lambda: our_info_nce.InfoNCE(negative_mode="all"), "negative_mode must be one of .*paired; got 'all'"),
    ):
        with pytest.raises(ValueError, match=told):
            call()


# ---- what differs on purpose ----


def test_one_triplet_counts() -> None:
    triplet = tuple(torch.tensor([i]) for i in (0, 1, 2))
    z = rows(0, 3, 5, dtype=torch.float64)
    assert losses.NTXentLoss(0.5)(z, None, triplet) == 0
    a, p, n = torch.nn.functional.normalize(z)
    want = torch.log1p(((a @ n - a @ p) / 0.5).exp())
    torch.testing.assert_close(pml.NTXentLoss(0.5)(z, None, triplet), want)


def test_a_row_and_its_reference_are_a_pair() -> None:
    z, r, labels = rows(0, 6, 5), rows(1, 6, 5), torch.arange(6)
    ours, theirs = pml.NTXentLoss(0.5), losses.NTXentLoss(0.5)
    assert theirs(z, labels, ref_emb=r, ref_labels=labels) == 0  # it takes them for one row if the tensor is one
    want = theirs(z, labels, ref_emb=r, ref_labels=labels.clone())
    torch.testing.assert_close(ours(z, labels, ref_emb=r, ref_labels=labels), want)


def test_a_low_temperature_keeps_loss_and_gradient() -> None:
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.1], [-1.0, 0.1]])
    labels = torch.tensor([0, 0, 1, 1])
    want = losses.NTXentLoss(0.01)(z.double(), labels)
    loss, gradient = with_gradients(lambda x: pml.NTXentLoss(0.01)(x, labels), z)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=0)
    assert gradient.abs().max() > 1
    assert losses.NTXentLoss(0.01)(z, labels) < 0.5 * want  # cut off at the log of float32's smallest number


def test_two_devices_are_refused() -> None:
    z, there = rows(0, 6, 5), rows(1, 6, 5).to("meta")
    for call in (
        lambda: our_info_nce.info_nce(z, there),
        lambda: our_info_nce.info_nce(z, z, there),
        lambda: pml.NTXentLoss()(z, torch.arange(6), ref_emb=there, ref_labels=torch.arange(6)),
    ):
        with pytest.raises(ValueError, match="must be on one device; got cpu and meta"):
            call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_types_give_a_loss_in_float32(dtype: torch.dtype) -> None:
    z, labels = rows(0, 16, 8, dtype=dtype), torch.arange(8).repeat(2)
    negatives = rows(1, 5, 8, dtype=dtype)
    for ours, want in (
        (pml.NTXentLoss()(z, labels), losses.NTXentLoss()(z.double(), labels)),
        (pml.NTXentLoss()(z, labels // 2), losses.NTXentLoss()(z.double(), labels // 2)),
        (our_info_nce.info_nce(z, z.flip(0)), info_nce.info_nce(z.double(), z.double().flip(0))),
        (
            our_info_nce.info_nce(z, z.flip(0), negatives),
            info_nce.info_nce(z.double(), z.double().flip(0), negatives.double()),
        ),
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), want, rtol=0.02, atol=0.02)


def test_labels_and_indices_are_integers_from_0_on() -> None:
    z, labels = rows(0, 6, 5), torch.arange(3).repeat(2)
    for other in (labels.float(), labels.bool()):
        with pytest.raises(TypeError, match=r"NTXentLoss: labels must be integers; got torch\."):
            pml.NTXentLoss()(z, other)
    for indices, told in (
        ((torch.tensor([0], dtype=torch.int32),) * 3, "must be int64"),
        (tuple(torch.tensor([i]) for i in (-1, 1, 2)), r"must be in \[0, 6\); got -1"),
    ):
        with pytest.raises(ValueError, match=f"NTXentLoss: anchors of positives {told}"):
            pml.NTXentLoss()(z, labels, indices)


def test_a_tensor_as_temperature_has_no_dimensions() -> None:
    z = rows(0, 4, 3)
    assert our_info_nce.info_nce(z, z, temperature=torch.tensor(0.1)).isfinite()
    with pytest.raises(ValueError, match=r"temperature must have shape \(\); got \(1\)"):
        our_info_nce.info_nce(z, z, temperature=torch.tensor([0.1]))
    with pytest.raises(TypeError, match="NTXentLoss: temperature must be a number; got Tensor"):
        pml.NTXentLoss(torch.tensor(0.1))


def test_a_temperature_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature must be finite and above 0; got -0\.5"):
        our_info_nce.info_nce(rows(0, 4, 3), rows(1, 4, 3), temperature=-0.5)
    with pytest.raises(ValueError, match=r"NTXentLoss: temperature must be finite and above 0; got -0\.5"):
        pml.NTXentLoss(-0.5)
