"""lightly's names against lightly itself: results, gradients, state dicts, and what differs on purpose."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from compat_helpers import DTYPES, arguments, assert_alike, drawn, rows, with_gradients
from other_libraries import load_or_skip
from torch import Tensor, nn

from fastssl.compat import lightly as ours

loss, utils, heads, bank = (
    load_or_skip(f"lightly.{name}") for name in ("loss", "models.utils", "models.modules.heads", "loss.memory_bank")
)
# by its file: its package asks for pytorch_lightning
knn_file = Path(load_or_skip("lightly").__file__).parent / "utils" / "benchmarking" / "knn.py"

spec = importlib.util.spec_from_file_location("lightlys_knn", knn_file)
knn = importlib.util.module_from_spec(spec)
spec.loader.exec_module(knn)

THEIRS = {
    **{name: getattr(loss, name) for name in ("NTXentLoss", "DINOLoss", "NegativeCosineSimilarity")},
    **{
        name: getattr(heads, name)
        for name in ("ProjectionHead", "SimCLRProjectionHead", "MoCoProjectionHead", "DINOProjectionHead")
    },
    "MemoryBankModule": bank.MemoryBankModule,
    "knn_predict": knn.knn_predict,
    **{name: getattr(utils, name) for name in ours.__all__ if hasattr(utils, name)},
}


@pytest.mark.parametrize("name", ours.__all__)
def test_arguments_have_the_same_names_order_and_defaults(name: str) -> None:
    assert arguments(getattr(ours, name)) == arguments(THEIRS[name])
    if inspect.isclass(THEIRS[name]):
        assert arguments(getattr(ours, name).forward) == arguments(THEIRS[name].forward)


@pytest.mark.parametrize(
    "module",
    [
        *("loss", "loss.dino_loss", "loss.memory_bank", "loss.negative_cosine_similarity", "loss.ntx_ent_loss"),
        *("models.modules", "models.modules.heads", "models.modules.memory_bank", "models.utils"),
    ],
)
def test_names_are_where_lightly_has_them(module: str) -> None:
    wanted = set(ours.__all__) & set(vars(load_or_skip(f"lightly.{module}")))
    assert wanted
    assert wanted <= set(vars(importlib.import_module(f"fastssl.compat.lightly.{module}")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d", "temperature"), [(1, 3, 0.5), (17, 8, 0.1), (64, 33, 0.07)])
def test_nt_xent(n: int, d: int, temperature: float, dtype: torch.dtype) -> None:
    views = rows(0, n, d, dtype=dtype), rows(1, n, d, dtype=dtype)
    got, want = (
        with_gradients(library(temperature=temperature), *views) for library in (ours.NTXentLoss, loss.NTXentLoss)
    )
    assert_alike(got, want)


@pytest.mark.parametrize(("n", "d", "size"), [(4, 8, 16), (7, 5, 21)])
def test_nt_xent_with_a_bank_over_steps_that_do_not_wrap(n: int, d: int, size: int) -> None:
    theirs, mine = loss.NTXentLoss(0.2, (size, d)), ours.NTXentLoss(0.2, (size, d))
    mine.memory_bank.bank.copy_(theirs.memory_bank.bank)
    for step in range(size // n + 2):
        views = rows(2 * step, n, d), rows(2 * step + 1, n, d)
        assert_alike(with_gradients(mine, *views), with_gradients(theirs, *views))
        assert_alike([mine.memory_bank.bank], [theirs.memory_bank.bank])
        assert mine.memory_bank.bank_ptr == theirs.memory_bank.bank_ptr
    with torch.no_grad():  # without a gradient the bank stays
        before = mine.memory_bank.bank.clone()
        assert_alike([mine(*views)], [theirs(*views)])
        assert torch.equal(mine.memory_bank.bank, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_nt_xent_of_random_sizes(seed: int, dtype: torch.dtype) -> None:
    n, d, batches = drawn(seed, 40, 40, 4)
    settings = (0.05 + seed / 8, (n * batches, d)) if seed % 2 else (0.05 + seed / 8,)  # with a bank and without
    mine, theirs = (library.NTXentLoss(*settings).to(dtype) for library in (ours, loss))
    mine.memory_bank.bank.copy_(theirs.memory_bank.bank)
    for step in range(batches + 1):
        views = rows(2 * step, n, d, dtype=dtype), rows(2 * step + 1, n, d, dtype=dtype)
        assert_alike(with_gradients(mine, *views), with_gradients(theirs, *views))
    assert_alike([mine.memory_bank.bank], [theirs.memory_bank.bank])


@pytest.mark.parametrize("feature_dim_first", [True, False])
def test_a_bank_by_itself(feature_dim_first: bool) -> None:
    theirs, mine = (
        library((12, 5), feature_dim_first=feature_dim_first)
        for library in (bank.MemoryBankModule, ours.MemoryBankModule)
    )
    mine.bank.copy_(theirs.bank)
    for step in range(4):
        output = rows(step, 4, 5)
        for got, want in zip(mine(output, update=True), theirs(output, update=True), strict=True):
            assert torch.equal(got, want)
    assert ours.MemoryBankModule(0)(output) == (output, None)


def of_lists(library, teacher: Tensor, temp: float | None, epoch: int | None, student: Tensor) -> Tensor:
    return library(list(teacher), list(student), temp, epoch)


@pytest.mark.parametrize(("students", "teachers"), [(2, 2), (8, 2), (2, 1), (1, 2)])
def test_dino(students: int, teachers: int) -> None:
    theirs, mine = loss.DINOLoss(11, warmup_teacher_temp_epochs=5), ours.DINOLoss(11, warmup_teacher_temp_epochs=5)
    for step, (temp, epoch) in enumerate([(None, None), (0.07, None), (None, 2), (None, 9)]):
        student, teacher = rows(step, students, 6, 11), rows(9 + step, teachers, 6, 11)
        got, want = (
            with_gradients(functools.partial(of_lists, library, teacher, temp, epoch), student)
            for library in (mine, theirs)
        )
        assert_alike(got, want)
        assert_alike([mine.center], [theirs.center])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_dino_of_random_sizes(seed: int, dtype: torch.dtype) -> None:
    students, n, k = drawn(seed, 8, 9, 70)
    # temperatures that float32, in which theirs are, holds
    settings = (k, 0.0625, 0.125, 3, 0.25 + seed / 8, seed / 6)
    mine, theirs = (library.DINOLoss(*settings).to(dtype) for library in (ours, loss))
    for epoch in range(4):
        student, teacher = rows(epoch, students, n, k, dtype=dtype), rows(9 + epoch, 2, n, k, dtype=dtype)
        got, want = (
            with_gradients(functools.partial(of_lists, library, teacher, None, epoch), student)
            for library in (mine, theirs)
        )
        assert_alike(got, want)
        assert_alike([mine.center], [theirs.center])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (1, 9), (4, 3, 7), (33, 2)])
def test_negative_cosine(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = rows(0, *shape, dtype=dtype), rows(1, *shape, dtype=dtype)
    for settings in ((1,), (-1,), (0,), (1, 0.5)):
        got, want = (
            with_gradients(library(*settings), *x)
            for library in (ours.NegativeCosineSimilarity, loss.NegativeCosineSimilarity)
        )
        assert_alike(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_the_loss_in_float32(dtype: torch.dtype) -> None:
    a, b, c = (rows(i, 16, 8, dtype=dtype) for i in range(3))
    for call in (
        lambda library, x, y: library.NTXentLoss(0.2)(x, y),
        lambda library, x, y: with_bank(library)(x, y),
        lambda library, x, y: library.NegativeCosineSimilarity()(x, y),
        lambda library, x, y: library.DINOLoss(8, teacher_temp=0.25)([c.to(x.dtype), c.flip(0).to(x.dtype)], [x, y]),
    ):
        got = with_gradients(functools.partial(call, ours), a, b)
        want = with_gradients(functools.partial(call, loss), a.double(), b.double())
        assert got[0].dtype == torch.float32
        torch.testing.assert_close(got[0].double(), want[0], rtol=0.02, atol=0.01)
        for x, y in zip(got[1:], want[1:], strict=True):
            assert x.dtype == dtype
            torch.testing.assert_close(x.double(), y, rtol=0.1, atol=0.005)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = call(ours, a.float(), b.float())
        torch.testing.assert_close(mixed.double(), want[0], rtol=1e-4, atol=1e-5)


def with_bank(library):
    found = library.NTXentLoss(0.2, (20, 8))
    found.memory_bank.bank.copy_(nn.functional.normalize(rows(9, 20, 8), dim=1))
    return found.double() if library is loss else found


# ---- what differs on purpose ----


def test_a_bank_that_wraps_loses_nothing() -> None:
    mine = ours.MemoryBankModule((10, 3))
    for step in range(3):
        mine(rows(step, 4, 3), update=True)
    assert mine.bank_ptr == 2
    assert torch.equal(mine.bank[8:], rows(2, 4, 3)[:2])
    assert torch.equal(mine.bank[:2], rows(2, 4, 3)[2:])


def test_a_bank_is_saved_and_lightlys_checkpoints_without_one_load() -> None:
    mine = ours.NTXentLoss(memory_bank_size=(10, 3))
    mine(rows(0, 4, 3).requires_grad_(), rows(1, 4, 3))
    again = ours.NTXentLoss(memory_bank_size=(10, 3))
    again.load_state_dict(mine.state_dict())
    assert torch.equal(again.memory_bank.bank, mine.memory_bank.bank)
    assert again.memory_bank.bank_ptr == 4
    again.load_state_dict(loss.NTXentLoss(memory_bank_size=(10, 3)).state_dict())
    older = {"memory_bank.bank": rows(5, 3, 10), "memory_bank.bank_ptr": torch.tensor([6])}
    again.load_state_dict(older)
    assert torch.equal(again.memory_bank.bank, older["memory_bank.bank"].T)


def test_the_center_stays_under_eval() -> None:
    mine = ours.DINOLoss(5).eval()
    mine([rows(0, 4, 5)], [rows(1, 4, 5), rows(2, 4, 5)])
    assert mine.center.eq(0).all()
    lightlys = loss.DINOLoss(5)
    lightlys([rows(0, 4, 5)], [rows(1, 4, 5), rows(2, 4, 5)])
    mine.load_state_dict(lightlys.state_dict())
    assert torch.equal(mine.center, lightlys.center)


def test_a_module_in_bfloat16_keeps_its_center_in_float32() -> None:
    mine = ours.DINOLoss(5).bfloat16()
    teacher = rows(0, 4, 5)
    mine([teacher.bfloat16()], [rows(1, 4, 5).bfloat16(), rows(2, 4, 5).bfloat16()])
    assert mine.center.shape == (1, 1, 5)
    torch.testing.assert_close(mine.center[0, 0], 0.1 * teacher.bfloat16().float().mean(0))


def test_a_teacher_gets_no_gradient() -> None:
    teacher, student = rows(0, 4, 5).requires_grad_(), rows(1, 2, 4, 5).requires_grad_()
    ours.DINOLoss(5)([teacher], list(student)).backward()
    assert teacher.grad is None
    assert student.grad.ne(0).any()


def test_a_bank_goes_where_the_features_are() -> None:
    """lightly's own loops leave the loss on the CPU."""
    criterion, elsewhere = ours.NTXentLoss(memory_bank_size=(10, 3)), rows(0, 4, 3).to("meta")
    criterion(elsewhere.clone().requires_grad_(), elsewhere)
    assert criterion.memory_bank.bank.is_meta
    assert criterion.memory_bank.bank_ptr.is_meta


def test_of_a_batch_larger_than_the_bank_the_last_stay() -> None:
    criterion, key = ours.NTXentLoss(memory_bank_size=(5, 3)), rows(1, 7, 3)
    bank = criterion.memory_bank.bank.clone()
    query = rows(0, 7, 3).requires_grad_()
    found = criterion(query, key)
    theirs = loss.NTXentLoss(memory_bank_size=(5, 3))
    theirs.memory_bank.bank.copy_(bank)
    torch.testing.assert_close(found, theirs(query, key))
    kept = nn.functional.normalize(key, dim=1)[-5:].roll(7 % 5, 0)
    torch.testing.assert_close(criterion.memory_bank.bank, kept)


X = rows(0, 4, 5)
BAD = {
    "temperature": (lambda: ours.NTXentLoss(-0.5), r"NTXentLoss: temperature must be finite and above 0; got -0\.5"),
    "no number": (lambda: ours.NTXentLoss(float("nan")), "NTXentLoss: temperature must be finite and above 0; got nan"),
    "a number alone": (lambda: ours.NTXentLoss(memory_bank_size=9), r"memory bank size 9: give \(num_features, dim\)"),
    "below 0": (lambda: ours.MemoryBankModule((-1, 3)), "all entries must be non-negative"),
    "batches": (lambda: ours.NTXentLoss()(X, X[1:]), r"must have the same shape \(N, D\); got \(4, 5\) and \(3, 5\)"),
    "batches, bank": (
        lambda: ours.NTXentLoss(memory_bank_size=(9, 5))(X, X[1:]),
        r"NTXentLoss: out0 and out1 must have the same shape \(N, D\); got \(4, 5\) and \(3, 5\)",
    ),
    "features": (
        lambda: ours.NTXentLoss(memory_bank_size=(9, 3))(X, X),
        r"NTXentLoss: the memory bank has features of 3; got \(4, 5\)",
    ),
    "of the bank": (
        lambda: ours.MemoryBankModule((9, 3))(X, update=True),
        r"MemoryBankModule: the memory bank has features of 3; got \(4, 5\)",
    ),
    "devices": (
        lambda: ours.NTXentLoss(memory_bank_size=(9, 5))(X, X.to("meta")),
        "NTXentLoss: out0 and out1 must be on one device; got cpu and meta",
    ),
    "nothing": (lambda: ours.NTXentLoss()(X[:0], X[:0]), "needs at least one sample and one feature"),
    "cosine": (
        lambda: ours.NegativeCosineSimilarity()(X, X[:1]),
        r"NegativeCosineSimilarity: x0 and x1 must have the same shape; got \(4, 5\) and \(1, 5\)",
    ),
    "no view": (lambda: ours.DINOLoss(5)([], [X]), "DINOLoss: teacher_out needs at least one view; got none"),
    "one view": (lambda: ours.DINOLoss(5)([X], [X]), "DINOLoss: needs two different crops"),
    "views": (
        lambda: ours.DINOLoss(5)([X], [X, X[1:]]),
        r"DINOLoss: the views of student_out must have one shape; got \(4, 5\) and \(3, 5\)",
    ),
    "samples": (lambda: ours.DINOLoss(5)([X], [X[1:], X[1:]]), "must agree on B and K"),
    "prototypes": (lambda: ours.DINOLoss(6)([X], [X, X]), r"student_out must have 6 prototypes; got \(2, 4, 5\)"),
    "center": (
        lambda: ours.DINOLoss(5)([X.to("meta")], [X.to("meta")] * 2),
        "DINOLoss: student_out and the center must be on one device; got meta and cpu",
    ),
    "teacher": (lambda: ours.DINOLoss(5)([X], [X, X], 0.0), r"teacher_temp must be finite and above 0; got 0\.0"),
    "teacher, below 0": (
        lambda: ours.DINOLoss(5, teacher_temp=-0.1),
        r"teacher_temp must be finite and above 0; got -0\.1",
    ),
    "student": (lambda: ours.DINOLoss(5, student_temp=0.0), r"DINOLoss: student_temp must be finite and above 0"),
    "center's": (
        lambda: ours.DINOLoss(5, center_momentum=2.0),
        r"DINOLoss: center_momentum must be a number in \[0, 1\]",
    ),
    "center's logits": (lambda: ours.DINOLoss(5).update_center(X), r"teacher_out must have shape \(T, N, K\)"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named(what: str) -> None:
    call, told = BAD[what]
    with pytest.raises(ValueError, match=told):
        call()


def test_a_tensor_as_temperature_is_refused() -> None:
    with pytest.raises(TypeError, match="NTXentLoss: temperature must be a number; got Tensor"):
        ours.NTXentLoss(torch.tensor(0.5))


def test_two_dtypes_are_refused() -> None:
    for call in (
        lambda: ours.NTXentLoss(memory_bank_size=(9, 5))(X, X.double()),
        lambda: ours.NegativeCosineSimilarity()(X, X.double()),
        lambda: ours.DINOLoss(5)([X], [X, X.double()]),
    ):
        with pytest.raises(TypeError, match="must have one dtype; got"):
            call()
