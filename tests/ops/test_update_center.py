"""The center's moving average against float64, on every engine."""

from __future__ import annotations

import functools

import pytest
import torch
from beyond_32_bits import DEVICES, zeros
from torch import Tensor

from fastssl.ops import explain, update_center_
from fastssl.ops.update_center import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "cuda")
pytestmark = pytest.mark.usefixtures("made_on_the_engine")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(1, 1), (1, 1024), (2, 3, 507), (7, 123), (2, 64, 2049), (5000, 31), (252, 1025)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    drawn = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), device="cpu")
    there, wide = torch.get_default_device(), torch.float64 if dtype == torch.float64 else torch.float32
    teacher = (1 + drawn(shape)).to(there, dtype)
    return drawn(shape[-1], dtype=wide).to(there), teacher


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
def test_equals_the_formula(engine, shape: tuple[int, ...], dtype: torch.dtype, momentum: float) -> None:
    center, teacher = inputs(shape, dtype)
    want = momentum * center.double() + (1 - momentum) * teacher.double().reshape(-1, shape[-1]).mean(0)
    plain, largest = center.clone(), max(center.abs().max().item(), want.abs().max().item())
    reference(plain, teacher, momentum)
    assert update_center_(center, teacher, momentum) is None
    error, plain_error = ((x.double() - want).abs().max().item() for x in (center, plain))
    assert error <= 2 * plain_error + 2 * torch.finfo(center.dtype).eps * largest  # the two terms may cancel


def test_momentum_1_keeps_the_center(engine) -> None:
    center, teacher = inputs((8, 50))
    before = center.clone()
    update_center_(center, teacher, 1.0)
    assert torch.equal(center, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_momentum_0_and_1_take_nothing_of_the_other(engine, value: float) -> None:
    center, teacher = torch.full((50,), value), torch.ones(8, 50)
    update_center_(center, teacher, 0.0)
    assert center.eq(1.0).all()
    update_center_(center, torch.full((8, 50), value), 1.0)
    assert center.eq(1.0).all()


def test_a_wider_center(engine) -> None:
    center, teacher = inputs((8, 50), torch.bfloat16)
    center = center.double()
    want = 0.9 * center + 0.1 * teacher.double().mean(0)
    update_center_(center, teacher, 0.9)
    torch.testing.assert_close(center, want, rtol=1e-12, atol=1e-12)


def test_bad_values_reach_their_prototype_alone(engine) -> None:
    center, teacher = inputs((8, 2000))
    teacher[3, 1999], teacher[5, 4] = float("nan"), float("inf")
    update_center_(center, teacher, 0.9)
    assert center[1999].isnan()
    assert center[4] == float("inf")
    assert center.isfinite().sum() == 1998


@pytest.mark.parametrize("device", DEVICES)
def test_more_elements_than_32_bits_count(device: str) -> None:
    teacher = zeros(2_100, 2**20, dtype=torch.bfloat16, device=device)
    ramp = torch.arange(2**20, device=device) % 7
    teacher[0], teacher[-1] = 1, ramp
    center = torch.ones(2**20, device=device)
    update_center_(center, teacher, 0.0)
    torch.testing.assert_close(center, (1 + ramp) / 2_100, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    center, teacher = inputs((300, 5003))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 64, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            results.append(center.clone())
            update_center_(results[-1], teacher, 0.9)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_teacher_with_gaps(engine) -> None:
    center, teacher = inputs((2, 6, 40))
    want = center.clone()
    update_center_(want, teacher, 0.9)
    update_center_(center, teacher.mT.contiguous().mT, 0.9)
    assert torch.equal(center, want)


def test_a_center_with_gaps_is_served_by_the_reference() -> None:
    center = torch.zeros(6, 2)[:, 0]
    assert "it takes a center without gaps, got strides (2,)" in explain(update_center_, center, torch.ones(3, 6), 0.5)
    update_center_(center, torch.ones(3, 6), 0.5)
    assert center.eq(0.5).all()


def test_no_gradient_and_a_saved_center_is_not_used(engine) -> None:
    center, teacher = inputs((8, 50))
    x = torch.ones(50, requires_grad=True)
    loss = (center * x).sum()
    update_center_(center, teacher * x, 0.9)
    assert not center.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_inference_mode(engine) -> None:
    with torch.inference_mode():
        center = torch.zeros(4)
        update_center_(center, torch.ones(3, 4), 0.75)
        assert center.eq(0.25).all()


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def step(center: Tensor, teacher: Tensor) -> Tensor:
        update_center_(center, teacher + 1, 0.5)
        return teacher - center

    (center, teacher), (again, _) = inputs((2, 3, 10)), inputs((2, 3, 10))
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(center, teacher), step(again, teacher))
    torch.testing.assert_close(center, again)


def test_a_teacher_in_the_memory_of_the_center_is_refused(engine) -> None:
    memory = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="teacher and center share memory: clone the teacher first"):
        update_center_(memory[0], memory, 0.5)


Z = torch.zeros
BAD = [
    (dict(center=Z(1, 8)), ValueError, r"center must have shape \(K\); got \(1, 8\)"),
    (dict(center=Z(8).bfloat16()), TypeError, "center must be float32 or float64; got torch.bfloat16"),
    (dict(center=Z(8).long()), TypeError, "center must be float32.*got torch.int64"),
    (dict(center=Z(1).expand(8)), ValueError, "center is an expanded tensor"),
    (dict(center=Z(9)), ValueError, r"needs rows of the 9 prototypes of center; got \(2, 4, 8\)"),
    (dict(teacher=Z(8)), ValueError, r"teacher must have shape \(N, K\); got \(8\)"),
    (dict(teacher=Z(0, 8)), ValueError, r"needs rows of the 8 prototypes of center; got \(0, 8\)"),
    (dict(teacher=Z(2, 8).long()), TypeError, "teacher must be float32.*got torch.int64"),
    (dict(center=[1.0]), TypeError, "center must be a tensor; got list"),
    (dict(center=Z(0), teacher=Z(2, 0)), ValueError, r"needs rows of the 0 prototypes of center; got \(2, 0\)"),
    (dict(teacher=[1.0]), TypeError, "teacher must be a tensor; got list"),
    (dict(teacher=Z(2, 8).double()), TypeError, "a float64 teacher needs a float64 center; got torch.float32"),
    (dict(teacher=Z(2, 8, device="meta")), ValueError, "center and teacher must be on one device; got cpu and meta"),
    (dict(momentum=1.5), ValueError, r"momentum must be a number in \[0, 1\]; got 1.5"),
    (dict(momentum=float("nan")), ValueError, "got nan"),
    (dict(momentum="0.9"), ValueError, "got str"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"center": Z(8), "teacher": Z(2, 4, 8), "momentum": 0.9, **change}
    with pytest.raises(error, match=message):
        update_center_(**arguments)  # type: ignore[arg-type]
