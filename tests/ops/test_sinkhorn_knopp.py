"""Sinkhorn-Knopp against its formula in float64, on every engine."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from fastssl.ops import sinkhorn_knopp

BACKENDS = ("reference", "cpu", "cuda")
pytestmark = pytest.mark.usefixtures("made_on_the_engine")
# the C++ kernel takes blocks of 64 to 512 columns, by the number of rows; the CUDA kernel strips of 16
SHAPES = [(1, 1), (1, 100), (100, 1), (2, 3), (7, 507), (37, 501), (123, 252), (128, 4099), (1500, 130), (16, 1024)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def scores_of(rows: int, columns: int, *, dtype: torch.dtype = torch.float32, spread: float = 0.3) -> Tensor:
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), device="cpu")
    return (spread * drawn).to(torch.get_default_device(), dtype)


def with_global_maximum(scores: Tensor, temp: float, iterations: int) -> Tensor:
    """As SwAV writes it, in scores' own dtype: one constant for all, every sum divided by how many there are."""
    q = torch.exp((scores - scores.max()) / temp)
    rows, columns = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(0, keepdim=True) * columns
        q /= q.sum(1, keepdim=True) * rows
    return q * rows


def assert_as_good_as_plain_torch(scores: Tensor, temp: float, iterations: int) -> None:
    """At most twice the error that plain torch makes in the same dtype, both against float64."""
    got = sinkhorn_knopp(scores, temp=temp, iterations=iterations)
    want = with_global_maximum(scores.double(), temp, iterations)
    plain = with_global_maximum(scores if scores.dtype == torch.float64 else scores.float(), temp, iterations)
    assert got.dtype == plain.dtype
    error, plain_error = (((x.double() - want).norm() / want.norm()).item() for x in (got, plain))
    logit = (scores.abs().max() / temp).item()  # its rounding: below this, which of the two is nearer is chance
    assert error <= 2 * plain_error + logit * torch.finfo(plain.dtype).eps
    assert torch.allclose(got.sum(1), torch.ones_like(got[:, 0]), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_equals_the_formula(engine, rows: int, columns: int, dtype: torch.dtype) -> None:
    if engine.slow and rows * columns > 200_000:
        pytest.skip("large for an emulated GPU; smaller ones take the same way")
    for temp, iterations in ((0.05, 3), (0.07, 1), (0.3, 10)):
        assert_as_good_as_plain_torch(scores_of(rows, columns, dtype=dtype), temp, iterations)


@pytest.mark.parametrize(("rows", "columns"), [(3, 16_400), (35, 17_001)])
def test_many_prototypes(engine, rows: int, columns: int) -> None:
    """Where the CUDA kernel takes strips of 64."""
    assert_as_good_as_plain_torch(scores_of(rows, columns), 0.05, 2)


def test_a_maximum_for_each_row_would_be_wrong(engine) -> None:
    """Samples with higher scores weigh more in the first sums: three iterations do not forget it."""
    scores = scores_of(64, 200) + torch.linspace(-1, 1, 64)[:, None]
    want = with_global_maximum(scores.double(), 0.1, 3)
    wrong = with_global_maximum((scores - scores.amax(1, keepdim=True)).double(), 0.1, 3)
    got = sinkhorn_knopp(scores, temp=0.1, iterations=3).double()
    assert (got - want).norm() <= 1e-5 * want.norm()
    assert (got - wrong).norm() >= 0.05 * want.norm()


def test_prototypes_are_used_alike_in_the_end(engine) -> None:
    got = sinkhorn_knopp(scores_of(50, 20), temp=0.2, iterations=500)
    torch.testing.assert_close(got.sum(0), torch.full((20,), 2.5), rtol=1e-3, atol=0)


def in_logarithms(scores: Tensor, temp: float) -> Tensor:
    """Three iterations in float64, where no sum vanishes."""
    logs = scores.double() / temp
    for _ in range(3):
        logs = torch.log_softmax(torch.log_softmax(logs, 0), 1)
    return logs.exp()


def assert_near_logarithms(scores: Tensor, temp: float) -> None:
    got, want = sinkhorn_knopp(scores, temp=temp, iterations=3), in_logarithms(scores, temp)
    assert got.isfinite().all()
    logit = (scores.abs().max() / temp).item()
    assert (got.double() - want).norm() <= (1e-6 + 2 * logit * 1.2e-7) * want.norm()


@pytest.mark.parametrize("temp", [0.01, 0.02, 0.07, 0.2])
def test_temperatures_at_which_the_formula_underflows(engine, temp: float) -> None:
    assert_near_logarithms(scores_of(37, 501), temp)


CASES = ["wide", "low prototype", "low sample", "low block", "high sample", "duplicates", "all equal"]
CASES += ["lower first sample", "lowest first sample", "uneven first sample"]


@pytest.mark.parametrize("case", CASES)
def test_no_sum_vanishes(engine, case: str) -> None:
    """Ranges at which one maximum for all underflows even in float64, or at least in float32."""
    scores = scores_of(40, 700, spread=1.0)
    if case == "wide":
        scores *= 100
    elif case == "low prototype":
        scores[:, 130] -= 30
    elif case == "low sample":
        scores[7] -= 30
    elif case == "low block":
        scores[:20, :512] -= 15
    elif case == "high sample":
        scores[7] += 1000
    elif case == "lower first sample":
        scores[0] -= 2.5
    elif case == "lowest first sample":
        scores[0] -= 30
    elif case == "uneven first sample":
        scores[0, ::3] -= 1.5
        scores[0, 1::3] += 3
    elif case == "duplicates":
        scores[1::2], scores[:, 1::2] = scores[::2], scores[:, ::2]
    else:
        scores = torch.full_like(scores, 4.0)
    assert_near_logarithms(scores, 0.05)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_give_nan(engine, value: float) -> None:
    scores = scores_of(40, 700)
    scores[3, 650] = value
    assert sinkhorn_knopp(scores, temp=0.05, iterations=3).isnan().all()


def test_minus_infinity_is_a_probability_of_0(engine) -> None:
    scores = scores_of(40, 700)
    scores[:20, 3], scores[5, 100:600] = float("-inf"), float("-inf")
    got = sinkhorn_knopp(scores, temp=0.05, iterations=3)
    want = with_global_maximum(scores.double(), 0.05, 3)
    assert (got.double() - want).norm() <= 1e-5 * want.norm()
    assert got[5, 100:600].eq(0).all()
    for all_of in (scores[:, 3], scores[7]):
        all_of.fill_(float("-inf"))
        assert sinkhorn_knopp(scores, temp=0.05, iterations=3).isnan().all()


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    scores = scores_of(130, 3001)
    before = torch.get_num_threads()
    want = sinkhorn_knopp(scores, temp=0.05, iterations=3)
    try:
        for threads in (1, 2, 3, 64, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            assert torch.equal(sinkhorn_knopp(scores, temp=0.05, iterations=3), want)
    finally:
        torch.set_num_threads(before)


def test_inputs_stay_as_they_are_and_may_have_gaps(engine) -> None:
    scores = scores_of(30, 90)
    want = sinkhorn_knopp(scores, temp=0.05, iterations=3)
    assert torch.equal(scores, scores_of(30, 90))
    assert torch.equal(sinkhorn_knopp(scores.T.contiguous().T, temp=0.05, iterations=3), want)
    assert torch.equal(sinkhorn_knopp(scores.repeat(1, 2)[:, :90], temp=0.05, iterations=3), want)


def test_no_gradient(engine) -> None:
    scores = scores_of(5, 7).requires_grad_()
    assert not sinkhorn_knopp(scores, temp=0.05, iterations=3).requires_grad


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def step(scores: Tensor) -> Tensor:
        return 2 * sinkhorn_knopp(scores + 1, temp=0.1, iterations=2)

    scores = scores_of(20, 30)
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(scores), step(scores))


def test_shapes_alone_on_the_meta_device() -> None:
    got = sinkhorn_knopp(torch.empty(4, 8, device="meta", dtype=torch.bfloat16), temp=0.1, iterations=3)
    assert (got.shape, got.dtype) == ((4, 8), torch.float32)


MEASURE = """
import re, sys, torch
from fastssl.ops import sinkhorn_knopp
torch.set_num_threads(2)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
for prototypes in (64, 65536):
    scores = torch.randn(128, prototypes)
    before = peak()
    out = sinkhorn_knopp(scores, temp=0.5, iterations=3, backend=sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_nothing_but_the_result_is_stored() -> None:
    """Which is 32 MB, but for an eighth of it for the groups of rows."""

    def extra_megabytes(backend: str) -> float:
        command = [sys.executable, "-c", MEASURE, backend]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert 31 < extra_megabytes("cpu") < 39
    assert extra_megabytes("reference") > 60  # the measurement does see temporaries


BAD = [
    (dict(scores=torch.zeros(8)), ValueError, r"scores must have shape \(B, K\); got \(8\)"),
    (dict(scores=torch.zeros(0, 8)), ValueError, r"at least one sample and one prototype; got \(0, 8\)"),
    (dict(scores=torch.zeros(8, 0)), ValueError, r"got \(8, 0\)"),
    (dict(scores=torch.zeros(8, 2).long()), TypeError, "scores must be float32.*got torch.int64"),
    (dict(scores=None), TypeError, "scores must be a tensor; got NoneType"),
    (dict(temp=0.0), ValueError, "temp must be finite and above 0; got 0.0"),
    (dict(temp=float("nan")), ValueError, "got nan"),
    (dict(temp="0.05"), TypeError, "temp must be a number; got str"),
    (dict(scores=torch.zeros(8, 2).to_sparse()), TypeError, "scores must be dense; got torch.sparse_coo"),
    (dict(iterations=0), ValueError, "iterations must be at least 1; got 0"),
    (dict(iterations=3.0), TypeError, "iterations must be an integer; got float"),
    (dict(iterations=True), TypeError, "iterations must be an integer; got bool"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"scores": torch.zeros(4, 8), "temp": 0.05, "iterations": 3, **change}
    with pytest.raises(error, match=message):
        sinkhorn_knopp(**arguments)  # type: ignore[arg-type]
