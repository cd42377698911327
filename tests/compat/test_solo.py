"""solo-learn's names against its formulas in float64, and its version on PyPI, which is older, where that is alike."""

from __future__ import annotations

import importlib.util
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize, softmax

from fastssl.compat import solo

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
EMPTY = inspect.Parameter.empty
BOUNDS = {
    torch.float64: dict(rtol=1e-9, atol=1e-11),
    torch.float32: dict(rtol=2e-5, atol=2e-6),
    torch.bfloat16: dict(rtol=0.05, atol=0.05),
}


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_alike(ours: Callable[..., Tensor], formula: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Loss and gradients of inputs in their own dtype against those of the formula in float64."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    plain = [x.double().requires_grad_() for x in inputs]
    got, want = ours(*leaves), formula(*plain)
    got.backward()
    want.backward()
    assert got.dtype == torch.promote_types(inputs[0].dtype, torch.float32)
    bounds = BOUNDS[inputs[0].dtype]
    torch.testing.assert_close(got.double(), want, **bounds)
    for x, y in zip(leaves, plain, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, **bounds)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (solo.simclr_loss_func, dict(z=EMPTY, indexes=EMPTY, temperature=0.1)),
        (solo.mocov2plus_loss_func, dict(query=EMPTY, key=EMPTY, queue=EMPTY, temperature=0.1)),
        (solo.mocov3_loss_func, dict(query=EMPTY, key=EMPTY, temperature=0.2)),
        (
            solo.DINOLoss,
            dict.fromkeys(
                (
                    "num_prototypes",
                    "warmup_teacher_temp",
                    "teacher_temp",
                    "warmup_teacher_temp_epochs",
                    "num_epochs",
                ),
                EMPTY,
            )
            | dict(student_temp=0.1, num_large_crops=2, center_momentum=0.9),
        ),
        (solo.DINOLoss.forward, dict.fromkeys(("self", "student_output", "teacher_output"), EMPTY)),
        (solo.mae_loss_func, dict(imgs=EMPTY, pred=EMPTY, mask=EMPTY, patch_size=EMPTY, norm_pix_loss=True)),
    ],
)
def test_arguments_have_the_originals_names_order_and_defaults(function, arguments: dict[str, object]) -> None:
    told = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    assert list(told.items()) == list(arguments.items())


def originals(name: str) -> Any:
    """A file of solo-learn 1.0.2's losses: its package asks for pytorch_lightning."""
    package = importlib.util.find_spec("solo")
    if package is None or package.origin is None:
        pytest.skip("solo-learn is not installed (python -m benchmarks.rivals --install)")
    spec = importlib.util.spec_from_file_location(
        f"solos_{name}", Path(package.origin).parent / "losses" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dino_is_the_packages_step_by_step() -> None:
    settings = dict(student_temp=0.2, num_large_crops=3, center_momentum=0.8)
    ours, theirs = (library.DINOLoss(7, 0.04, 0.07, 3, 6, **settings).double() for library in (solo, originals("dino")))
    assert list(inspect.signature(solo.DINOLoss).parameters) == list(inspect.signature(type(theirs)).parameters)
    ours.load_state_dict(theirs.state_dict())
    for epoch in range(5):
        ours.epoch = theirs.epoch = epoch
        student, teacher = rows(epoch, 12, 7), rows(9 + epoch, 8, 7)
        assert_alike(lambda x, t=teacher: ours(x, t), lambda x, t=teacher: theirs(x, t), student)
        torch.testing.assert_close(ours.center, theirs.center, **BOUNDS[torch.float64])


def test_simclr_and_moco_are_the_packages() -> None:
    theirs, moco = originals("simclr").simclr_loss_func, originals("moco").moco_loss_func
    index, queue = torch.arange(6).repeat(2), normalize(rows(2, 5, 20), dim=0)
    assert_alike(
        lambda z: solo.simclr_loss_func(z, index, 0.2), lambda z: theirs(*z.chunk(2), temperature=0.2), rows(0, 12, 5)
    )
    assert_alike(
        lambda q, k: solo.mocov2plus_loss_func(q, k, queue, 0.2),
        lambda q, k: moco(q, k, queue, 0.2),
        *(normalize(rows(seed, 6, 5)) for seed in (0, 1)),
    )


def simclr(z: Tensor, indexes: Tensor, temperature: float) -> Tensor:
    similar = (normalize(z) @ normalize(z).T / temperature).exp()
    same = indexes[:, None] == indexes
    positive = (similar * same.clone().fill_diagonal_(False)).sum(1)
    return -(positive / (positive + (similar * ~same).sum(1))).log().mean()


INDEXES = {
    "two views": torch.arange(12).repeat(2),
    "in any order": torch.tensor([4, 9, -2, 9, 4, -2]),
    "five views": torch.arange(4).repeat(5),
    "classes": torch.tensor([0, 1, 0, 2, 2, 1, 0, 2, 2]),
    "one image": torch.tensor([3, 3]),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("indexes", INDEXES.values(), ids=INDEXES)
def test_simclr(indexes: Tensor, temperature: float, dtype: torch.dtype) -> None:
    assert_alike(
        lambda z: solo.simclr_loss_func(z, indexes, temperature),
        lambda z: simclr(z, indexes, temperature),
        rows(0, len(indexes), 7, dtype=dtype),
    )


@pytest.mark.parametrize("seed", range(8))
def test_simclr_of_random_sizes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, views, d = (int(x) for x in torch.randint(2, 12, (3,), generator=generator))
    indexes = torch.arange(images).repeat(views)[torch.randperm(images * views, generator=generator)]
    temperature = 0.1 + seed / 10
    assert_alike(
        lambda z: solo.simclr_loss_func(z, indexes, temperature),
        lambda z: simclr(z, indexes, temperature),
        rows(seed, images * views, d, dtype=torch.float32),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d", "k", "t"), [(1, 3, 2, 0.1), (9, 5, 30, 0.07), (16, 8, 64, 0.5)])
def test_mocov2plus(n: int, d: int, k: int, t: float, dtype: torch.dtype) -> None:
    queue = normalize(rows(2, d, k, dtype=dtype), dim=0)

    def formula(query: Tensor, key: Tensor) -> Tensor:
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.double()], 1) / t
        return cross_entropy(logits, torch.zeros(n, dtype=torch.int64))

    pair = (normalize(rows(seed, n, d, dtype=dtype)) for seed in (0, 1))
    assert_alike(lambda q, k: solo.mocov2plus_loss_func(q, k, queue, t), formula, *pair)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d", "t"), [(1, 3, 0.2), (9, 5, 0.07), (33, 8, 1.0)])
def test_mocov3(n: int, d: int, t: float, dtype: torch.dtype) -> None:
    def formula(query: Tensor, key: Tensor) -> Tensor:
        return 2 * t * cross_entropy(normalize(query) @ normalize(key).T / t, torch.arange(n))

    assert_alike(
        lambda q, k: solo.mocov3_loss_func(q, k, t), formula, rows(0, n, d, dtype=dtype), rows(1, n, d, dtype=dtype)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("crops", "n", "k"), [(2, 5, 11), (4, 3, 7)])
def test_dino(crops: int, n: int, k: int, dtype: torch.dtype) -> None:
    ours = solo.DINOLoss(k, 0.04, 0.07, 3, 6, student_temp=0.2, num_large_crops=crops, center_momentum=0.8).to(dtype)
    assert ours.epoch == 0
    center = torch.zeros(1, k, dtype=torch.float64)
    for epoch, temp in ((0, 0.04), (1, 0.055), (5, 0.07)):
        ours.epoch = epoch
        teacher = rows(9 + epoch, 2 * n, k, dtype=dtype)

        def formula(student: Tensor, teacher=teacher, center=center, temp=temp) -> Tensor:
            q = log_softmax(student / 0.2, -1).chunk(crops)
            p = softmax((teacher.double() - center) / temp, -1).chunk(2)
            pairs = [-(p[t] * q[s]).sum(-1).mean() for t in range(2) for s in range(crops) if s != t]
            return torch.stack(pairs).mean()

        assert_alike(lambda student, t=teacher: ours(student, t), formula, rows(epoch, crops * n, k, dtype=dtype))
        center = 0.8 * center + 0.2 * teacher.double().mean(0, keepdim=True)
        torch.testing.assert_close(ours.center.double(), center, **BOUNDS[dtype])


def test_a_center_survives_to_the_bit() -> None:
    ours, again = (solo.DINOLoss(7, 0.04, 0.07, 3, 6) for _ in range(2))
    ours(rows(0, 8, 7, dtype=torch.float32), rows(1, 8, 7, dtype=torch.float32))
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file))
    assert ours.center.ne(0).any()
    assert torch.equal(again.center, ours.center)
    assert {name: x.shape for name, x in ours.state_dict().items()} == {"center": (1, 7)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("n", "side", "p"), [(2, 8, 4), (3, 6, 2)])
def test_mae(n: int, side: int, p: int, normed: bool, dtype: torch.dtype) -> None:
    count = side // p
    imgs = rows(0, n, 3, side, side, dtype=dtype)
    mask = torch.randint(2, (n, count**2), generator=torch.Generator().manual_seed(2)).float()
    mask[0, 0] = 1

    def formula(pred: Tensor) -> Tensor:
        target = imgs.double().reshape(n, 3, count, p, count, p).permute(0, 2, 4, 3, 5, 1).reshape(n, count**2, -1)
        if normed:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return ((pred - target).square().mean(-1) * mask).sum() / mask.sum()

    assert_alike(
        lambda pred: solo.mae_loss_func(imgs, pred, mask, p, normed),
        formula,
        rows(1, n, count**2, p * p * 3, dtype=dtype),
    )


def test_what_cannot_be_used_is_refused() -> None:
    z, indexes = rows(0, 6, 5), torch.arange(3).repeat(2)
    for call, told in (
        (lambda: solo.simclr_loss_func(z, indexes[:5]), r"indexes must be \(6\), one for each row; got \(5\)"),
        (lambda: solo.simclr_loss_func(z[0], indexes), r"simclr_loss_func: z must have shape \(N, D\); got \(5\)"),
        (lambda: solo.simclr_loss_func(z[:1], indexes[:1]), r"at least two rows; got \(1, 5\)"),
        (lambda: solo.simclr_loss_func(z, indexes, 0.0), r"temperature must be finite and above 0; got 0\.0"),
        (lambda: solo.mocov2plus_loss_func(z, z[:5], z.T), r"same shape \(N, D\); got \(6, 5\) and \(5, 5\)"),
        (
            lambda: solo.mocov2plus_loss_func(z, z, z),
            r"query \(N, D\) and queue \(D, K\) must agree on D; got \(6, 5\) and \(6, 5\)",
        ),
        (lambda: solo.mocov3_loss_func(z, z[:5]), r"same shape \(N, D\); got \(6, 5\) and \(5, 5\)"),
        (lambda: solo.mae_loss_func(rows(0, 1, 3, 8, 8), rows(0, 1, 4, 48), torch.ones(1, 3), 4), r"got \(1, 3\)"),
        (lambda: solo.DINOLoss(5, 0.04, 0.07, 3, 2), "of 2 epochs, 3 cannot be for the teacher's warmup"),
        (lambda: solo.DINOLoss(5, 0.04, 0.07, 1, 2)(z[:5], z), r"student_output must be 2 crops .*; got \(5, 5\)"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    with pytest.raises(TypeError, match=r"indexes must be integers; got torch\.float64"):
        solo.simclr_loss_func(z, indexes.double())


def test_two_devices_are_refused() -> None:
    z, there = rows(0, 6, 5), rows(1, 6, 5).to("meta")
    for call in (
        lambda: solo.mocov2plus_loss_func(z, there, z.T),
        lambda: solo.mocov2plus_loss_func(z, z, there.T),
        lambda: solo.mocov3_loss_func(z, there),
        lambda: solo.DINOLoss(5, 0.04, 0.07, 1, 2)(z.float(), there.float()),
        lambda: solo.mae_loss_func(rows(0, 1, 3, 8, 8), rows(0, 1, 4, 48).to("meta"), torch.ones(1, 4), 4),
    ):
        with pytest.raises(ValueError, match=r"must be on one device; got .*meta|must be .* on cpu; got .*meta"):
            call()


# ---- what differs on purpose ----


def test_an_index_of_one_row_does_not_count() -> None:
    z, indexes = rows(0, 7, 5), torch.tensor([0, 1, 0, 2, 1, 3, 3])
    assert simclr(z, indexes, 0.1).isinf()
    similar = normalize(z) @ normalize(z).T / 0.1
    others = similar.masked_fill(torch.eye(7, dtype=torch.bool), float("-inf")).logsumexp(1)
    terms = [others[i] - similar[i, p] for i, p in ((0, 2), (2, 0), (1, 4), (4, 1), (5, 6), (6, 5))]
    leaf = z.clone().requires_grad_()
    loss = solo.simclr_loss_func(leaf, indexes, 0.1)
    torch.testing.assert_close(loss.detach(), torch.stack(terms).mean())
    loss.backward()
    assert leaf.grad.isfinite().all()
    assert solo.simclr_loss_func(z, torch.arange(7)) == 0


@pytest.mark.parametrize("views", [2, 3])
def test_a_low_temperature_does_not_overflow(views: int) -> None:
    z, indexes = rows(0, 4 * views, 5, dtype=torch.float32), torch.arange(4).repeat(views)
    assert not simclr(z, indexes, 0.005).isfinite()  # exp(200) is infinite in float32
    want = simclr(z.double(), indexes, 0.005)
    torch.testing.assert_close(solo.simclr_loss_func(z, indexes, 0.005).double(), want, rtol=1e-4, atol=1e-3)


def test_the_center_stays_under_eval() -> None:
    ours = solo.DINOLoss(5, 0.04, 0.07, 1, 2).eval()
    ours(rows(0, 4, 5, dtype=torch.float32), rows(1, 4, 5, dtype=torch.float32))
    assert ours.center.eq(0).all()


def test_nothing_removed_is_a_loss_of_0() -> None:
    assert solo.mae_loss_func(rows(0, 1, 3, 8, 8), rows(1, 1, 4, 48), torch.zeros(1, 4), 4) == 0
