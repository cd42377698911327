"""The distillation loss against its formula in float64, on every engine."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import pytest
import torch
from beyond_32_bits import DEVICES, zeros
from torch import Tensor

from fastssl.ops import distillation_loss, update_center_
from fastssl.ops.distillation_loss import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "cuda")
pytestmark = pytest.mark.usefixtures("made_on_the_engine")
# students, teachers, batch, prototypes; the C++ kernel's blocks are 2048 prototypes
SHAPES = [
    (2, 1, 1, 1),
    (1, 2, 3, 5),
    (2, 2, 1, 7),
    (10, 2, 4, 507),
    (3, 1, 2, 123),
    (4, 3, 2, 2049),
    (2, 2, 3, 4096),
    (2, 6, 2, 252),
    (5, 5, 7, 64),
    (10, 2, 1, 6151),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def crops(
    students: int,
    teachers: int,
    batch: int,
    prototypes: int,
    *,
    dtype: torch.dtype = torch.float32,
    spread: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits that agree somewhat, as in training, and a center."""
    drawn = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), device="cpu")
    common, there = drawn(batch, prototypes), torch.get_default_device()
    student, teacher = (
        spread * (common + drawn(crops, batch, prototypes)).to(there, dtype) for crops in (students, teachers)
    )
    return student, teacher, 0.1 * drawn(prototypes).to(there)


def plain(
    student: Tensor, teacher: Tensor, *, student_temp: float, teacher_temp: float | None, center: Tensor | None = None
) -> Tensor:
    return reference(student, teacher, center, student_temp, teacher_temp)


def with_gradient(loss_function, student: Tensor, teacher: Tensor, **settings: object) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    loss = loss_function(student, teacher, **settings)
    loss.backward()
    return loss.detach(), student.grad


def in_float64(
    student: Tensor, teacher: Tensor, center: Tensor | None = None, **settings: object
) -> tuple[Tensor, Tensor]:
    return with_gradient(
        plain, student.double(), teacher.double(), center=None if center is None else center.double(), **settings
    )


def assert_as_good_as_plain_torch(student: Tensor, teacher: Tensor, **settings: object) -> None:
    """At most twice the error that plain torch makes in the same dtype, both against float64."""
    ours = with_gradient(distillation_loss, student, teacher, **settings)
    rivals = with_gradient(plain, student, teacher, **settings)
    exact = in_float64(student, teacher, **settings)
    largest_logit = student.abs().max().item() / settings["student_temp"]
    # rounding the largest logit and its log-sum-exp: below this, which of the two is nearer is chance
    chance = torch.finfo(torch.float64 if student.dtype == torch.float64 else torch.float32).eps * (1 + largest_logit)
    for got, rival, want in zip(ours, rivals, exact, strict=True):
        error, rival_error = ((x.double() - want).abs().max().item() for x in (got, rival))
        # of one prototype the gradient is 0, and what is rounded is a probability of 1 over the temperature
        natural = 1 / settings["student_temp"] if want.dim() and not want.any() else 1.0 - bool(want.dim())
        scale = max(want.abs().max().item(), natural)
        rounded = torch.finfo(got.dtype).eps * scale
        assert error <= 2 * rival_error + 2 * chance * scale + rounded, (error, rival_error, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_formula(engine, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    student, teacher, center = crops(*shape, dtype=dtype)
    for student_temp, teacher_temp in ((0.1, 0.04), (0.2, 0.07), (1.0, 1.0), (0.02, 0.01), (0.07, 0.2)):
        for c in (center, None):
            assert_as_good_as_plain_torch(
                student, teacher, student_temp=student_temp, teacher_temp=teacher_temp, center=c
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_teacher_of_probabilities(engine, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Taken as they are: their sums need not be 1."""
    student, teacher, _ = crops(*shape, dtype=dtype)
    teacher = (1.3 * torch.softmax(teacher, -1)).to(dtype)
    assert_as_good_as_plain_torch(student, teacher, student_temp=0.1, teacher_temp=None)


def test_probabilities_are_what_the_kernel_makes_of_logits(engine) -> None:
    student, teacher, center = crops(6, 2, 5, 3000)
    want = with_gradient(distillation_loss, student, teacher, student_temp=0.1, teacher_temp=0.05, center=center)
    p = torch.softmax((teacher - center) / 0.05, -1)
    for got, expected in zip(
        with_gradient(distillation_loss, student, p, student_temp=0.1, teacher_temp=None), want, strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("student_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("teacher_dtype", DTYPES[:3], ids=str)
def test_mixed_dtypes_are_each_read_as_they_are(engine, student_dtype: torch.dtype, teacher_dtype: torch.dtype) -> None:
    student, teacher, center = crops(4, 2, 3, 300)
    student, teacher = student.to(student_dtype), teacher.to(teacher_dtype)
    settings = dict(student_temp=0.1, teacher_temp=0.05, center=center)
    loss, grad = with_gradient(distillation_loss, student, teacher, **settings)
    want, want_grad = in_float64(student, teacher, **settings)
    assert loss.dtype == (torch.float64 if student_dtype == torch.float64 else torch.float32)
    assert grad.dtype == student_dtype
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
    assert (grad.double() - want_grad).norm() <= max(torch.finfo(student_dtype).eps, 1e-6) * want_grad.norm()


@pytest.mark.parametrize("case", ["alike", "constant", "one-hot", "zeros"])
def test_degenerate_rows(engine, case: str) -> None:
    student, teacher, _ = crops(4, 2, 3, 5000)
    if case == "alike":
        student, teacher = teacher[:1].expand(4, -1, -1), teacher[:1].expand(2, -1, -1)
    elif case == "constant":
        student, teacher = torch.full_like(student, 3e4), torch.full_like(teacher, -2e4)
    elif case == "one-hot":
        student, teacher = torch.zeros_like(student), torch.zeros_like(teacher)
        student[..., 4000], teacher[..., 4000] = 100.0, 50.0
    else:
        student, teacher = torch.zeros_like(student), torch.zeros_like(teacher)
    assert_as_good_as_plain_torch(student, teacher, student_temp=0.1, teacher_temp=0.04)


@pytest.mark.parametrize("spread", [1e-3, 30.0, 1e4])
def test_logits_of_any_size(engine, spread: float) -> None:
    """Maxima of blocks thousands apart, and probabilities that would be subnormal."""
    student, teacher, _ = crops(4, 2, 2, 7000, spread=spread)
    assert_as_good_as_plain_torch(student, teacher, student_temp=0.1, teacher_temp=0.04)


def test_a_peaked_teacher_leaves_the_others_gradient_exact(engine) -> None:
    """The first student learns from the second teacher, whose probabilities are 10^4 times under the first's."""
    student, teacher, _ = crops(2, 2, 1, 10_000, spread=0.01)
    teacher[0, 0, 7] = 100.0
    _, grad = with_gradient(distillation_loss, student, teacher, student_temp=1.0, teacher_temp=1.0)
    _, want = in_float64(student, teacher, student_temp=1.0, teacher_temp=1.0)
    assert (grad[0].double() - want[0]).norm() <= 1e-4 * want[0].norm()


def test_an_excluded_prototype_gets_no_gradient(engine) -> None:
    """-inf in the teacher is a probability of 0, whole blocks of them too."""
    student, teacher, _ = crops(3, 2, 2, 5000)
    teacher[..., :2100] = float("-inf")
    settings = dict(student_temp=0.1, teacher_temp=0.04)
    loss, grad = with_gradient(distillation_loss, student, teacher, **settings)
    want, want_grad = in_float64(student, teacher, **settings)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
    assert (grad.double() - want_grad).norm() <= 1e-5 * want_grad.norm()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["student", "teacher"])
def test_bad_values_give_no_finite_loss(engine, where: str, value: float) -> None:
    student, teacher, _ = crops(3, 2, 2, 5000)
    if where == "student":
        student[2, 1, 4997] = value
    elif value < 0:
        teacher[1, 1] = value
    else:
        teacher[1, 1, 4997] = value
    loss = distillation_loss(student, teacher, student_temp=0.1, teacher_temp=0.04)
    assert not loss.isfinite()
    if value != value or value > 0:
        assert loss.isnan()


@pytest.mark.parametrize("device", DEVICES)
def test_more_logits_than_32_bits_count(device: str) -> None:
    """All equal but in three rows of the student, of which the first is not compared: it is the teacher's own crop."""
    crops, batch, prototypes, high = 66, 512, 65_536, 9_984
    student = zeros(crops, batch, prototypes, dtype=torch.bfloat16, device=device)
    teacher = zeros(1, batch, prototypes, dtype=torch.bfloat16, device=device)
    student[0, 0, 0] = student[1, 0, 0] = student[-1, -1, -1] = high
    loss = distillation_loss(student, teacher, student_temp=1.0, teacher_temp=1.0)
    rows, apart = (crops - 1) * batch, high - high / prototypes
    want = ((rows - 2) * math.log(prototypes) + 2 * apart) / rows
    assert abs(loss.item() - want) <= 1e-6 * want


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    student, teacher, center = crops(5, 2, 5, 5003)
    settings = dict(student_temp=0.1, teacher_temp=0.04, center=center)
    before = torch.get_num_threads()
    want = with_gradient(distillation_loss, student, teacher, **settings)
    try:
        for threads in (1, 2, 3, 64, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            for got, expected in zip(with_gradient(distillation_loss, student, teacher, **settings), want, strict=True):
                assert torch.equal(got, expected)
    finally:
        torch.set_num_threads(before)


def test_non_contiguous_inputs(engine) -> None:
    student, teacher, center = crops(4, 2, 6, 40)
    settings = dict(student_temp=0.1, teacher_temp=0.04)
    want = with_gradient(distillation_loss, student, teacher, center=center, **settings)
    strided = torch.stack([center, center], dim=1)[:, 0]
    got = with_gradient(
        distillation_loss,
        student.transpose(0, 2).contiguous().transpose(0, 2),
        teacher.mT.contiguous().mT,
        center=strided,
        **settings,
    )
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y)


def test_gradient_only_where_asked(engine) -> None:
    student, teacher, center = (x.requires_grad_() for x in crops(3, 2, 4, 10))
    distillation_loss(student, teacher, student_temp=0.1, teacher_temp=0.04, center=center).backward()
    assert teacher.grad is None
    assert center.grad is None
    assert student.grad is not None
    loss = distillation_loss(student.detach(), teacher, student_temp=0.1, teacher_temp=0.04, center=center)
    assert not loss.requires_grad


@pytest.mark.parametrize("factor", [-3.0, 0.0, 65536.0, 1e-6])
def test_gradient_is_scaled_by_what_comes_from_above(engine, factor: float) -> None:
    student, teacher, _ = crops(4, 2, 3, 100)
    settings = dict(student_temp=0.1, teacher_temp=0.04)
    _, grad = with_gradient(distillation_loss, student, teacher, **settings)
    _, scaled = with_gradient(lambda *x, **s: factor * distillation_loss(*x, **s), student, teacher, **settings)
    torch.testing.assert_close(scaled, factor * grad, rtol=1e-5, atol=1e-6 * abs(factor) * grad.abs().max().item())


@pytest.mark.parametrize("teacher_temp", [0.6, None])
def test_gradcheck(engine, teacher_temp: float | None) -> None:
    student, teacher, _ = crops(3, 2, 2, 6, dtype=torch.float64)
    student.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return distillation_loss(x, teacher, student_temp=0.7, teacher_temp=teacher_temp)

    assert torch.autograd.gradcheck(loss, (student,))


@pytest.mark.one_isa
@pytest.mark.parametrize("teacher_temp", [0.05, None])
def test_under_compile(engine, teacher_temp: float | None) -> None:
    student, teacher, center = crops(4, 2, 3, 50)
    center_or_none = center if teacher_temp is not None else None

    def step(student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = student * 2, teacher.softmax(-1)
        return distillation_loss(student, teacher, student_temp=0.1, teacher_temp=teacher_temp, center=center_or_none)

    compiled = torch.compile(step, fullgraph=True)
    for got, want in zip(with_gradient(compiled, student, teacher), with_gradient(step, student, teacher), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.one_isa
@pytest.mark.parametrize("compiler", [None, "aot_eager", "inductor"])
def test_the_center_may_move_before_the_backward(engine, compiler: str | None) -> None:
    """As DINO's own loss moves it."""
    student, teacher, center = crops(4, 2, 3, 50)
    want = with_gradient(distillation_loss, student, teacher, student_temp=0.1, teacher_temp=0.04, center=center)

    def step(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
        loss = distillation_loss(student, teacher, student_temp=0.1, teacher_temp=0.04, center=center)
        update_center_(center, teacher, 0.5)
        return loss

    compiled = step if compiler is None else torch.compile(step, fullgraph=True, backend=compiler)
    moved = center.clone()
    for got, expected in zip(with_gradient(compiled, student, teacher, center=moved), want, strict=True):
        torch.testing.assert_close(got, expected)
    assert not moved.equal(center)


def test_autocast_computes_in_float32(engine) -> None:
    student, teacher, center = crops(4, 2, 3, 50, dtype=torch.bfloat16)
    settings = dict(student_temp=0.1, teacher_temp=0.04, center=center)
    with torch.autocast(engine.device.type, torch.bfloat16):
        got = distillation_loss(student, teacher, **settings)
    want = distillation_loss(student.float(), teacher.float(), **settings)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_shapes_alone_on_the_meta_device() -> None:
    student = torch.empty(4, 3, 8, device="meta", requires_grad=True)
    loss = distillation_loss(student, torch.empty(2, 3, 8, device="meta"), student_temp=0.1, teacher_temp=0.04)
    loss.backward()
    assert (loss.shape, loss.dtype, student.grad.shape) == ((), torch.float32, (4, 3, 8))


def test_second_derivative_is_refused(engine) -> None:
    student, teacher, _ = crops(3, 2, 2, 6)
    student.requires_grad_()
    loss = distillation_loss(student, teacher, student_temp=0.1, teacher_temp=0.04)
    (grad,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


MEASURE = """
import re, sys, torch
from fastssl.ops import distillation_loss, update_center_
torch.set_num_threads(2)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
for prototypes in (64, int(sys.argv[1])):
    student = torch.randn(10, 8, prototypes).requires_grad_()
    teacher = torch.randn(2, 8, prototypes)
    before = peak()
    loss = distillation_loss(student, teacher, student_temp=0.1, teacher_temp=0.04, backend=sys.argv[2])
    forward = peak()
    loss.backward()
print(forward - before, peak() - before)
"""


def extra_megabytes(prototypes: int, backend: str) -> list[float]:
    """The high-water marks that a forward, and a forward and backward, add in a process of their own."""
    command = [sys.executable, "-c", MEASURE, str(prototypes), backend]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_softmaxes_are_never_stored() -> None:
    """80 student rows and 16 teacher rows of 65536 prototypes: 20 MB and 4 MB."""
    forward, both = extra_megabytes(65536, "cpu")
    assert forward < 3
    assert 20 <= both < 24  # the gradient
    assert extra_megabytes(65536, "reference")[1] > 40  # the measurement does see what is stored


Z = torch.zeros
BAD = [
    (dict(student=Z(3, 5, 8)), ValueError, r"must agree on B and K; got \(3, 5, 8\) and \(2, 4, 8\)"),
    (dict(student=Z(3, 4, 9)), ValueError, r"must agree on B and K; got \(3, 4, 9\) and \(2, 4, 8\)"),
    (dict(student=Z(4, 8)), ValueError, r"student must have shape \(S, B, K\); got \(4, 8\)"),
    (dict(teacher=Z(4, 8)), ValueError, r"teacher must have shape \(T, B, K\); got \(4, 8\)"),
    (dict(student=Z(0, 4, 8)), ValueError, r"at least one crop, sample and prototype; got student \(0, 4, 8\)"),
    (dict(teacher=Z(0, 4, 8)), ValueError, r"and teacher \(0, 4, 8\)"),
    (dict(student=Z(3, 0, 8), teacher=Z(2, 0, 8)), ValueError, "at least one crop, sample and prototype"),
    (dict(student=Z(3, 4, 0), teacher=Z(2, 4, 0)), ValueError, "at least one crop, sample and prototype"),
    (dict(student=Z(1, 4, 8), teacher=Z(1, 4, 8)), ValueError, "two different crops to compare"),
    (dict(teacher=Z(2, 4, 8).double()), TypeError, "a float64 teacher needs a float64 student; got torch.float32"),
    (dict(student=Z(3, 4, 8).long()), TypeError, "student must be float32.*got torch.int64"),
    (dict(teacher=[1.0]), TypeError, "teacher must be a tensor; got list"),
    (dict(teacher=Z(2, 4, 8, device="meta")), ValueError, "one device; got cpu and meta"),
    (dict(center=Z(8, device="meta")), ValueError, "teacher and center must be on one device; got cpu and meta"),
    (dict(center=Z(1, 8)), ValueError, r"center must have shape \(K\); got \(1, 8\)"),
    (dict(center=Z(9)), ValueError, "center must have the 8 prototypes of the teacher; got 9"),
    (dict(center=Z(8).long()), TypeError, "center must be float32.*got torch.int64"),
    (dict(center=Z(8), teacher_temp=None), ValueError, "probabilities, which take no center"),
    (dict(student_temp=0.0), ValueError, "student_temp must be finite and above 0; got 0.0"),
    (dict(student=None), TypeError, "student must be a tensor; got NoneType"),
    (dict(student_temp=float("inf")), ValueError, "student_temp must be finite and above 0; got inf"),
    (dict(student_temp=None), TypeError, "student_temp must be a number; got NoneType"),
    (dict(teacher_temp=float("nan")), ValueError, "teacher_temp must be finite and above 0; got nan"),
    (dict(teacher_temp="0.04"), TypeError, "teacher_temp must be a number; got str"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"student": Z(3, 4, 8), "teacher": Z(2, 4, 8), "student_temp": 0.1}
    arguments |= {"teacher_temp": 0.04, **change}
    with pytest.raises(error, match=message):
        distillation_loss(**arguments)  # type: ignore[arg-type]
