"""NT-Xent against its formula in float64, on every engine."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from beyond_32_bits import DEVICES, coded, how_many
from contrastive_helpers import (
    CANCELLING,
    DTYPES,
    TEMPERATURES,
    assert_any_layout,
    assert_as_good_as_plain_torch,
    assert_wrong_gradients_are_refused,
    pairs,
)
from torch import Tensor
from torch.nn.functional import normalize

from fastssl.ops import nt_xent
from fastssl.ops.nt_xent import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "triton")
SHAPES = [(1, 1), (2, 3), (7, 128), (48, 5), (96, 16), (97, 64), (123, 100), (252, 128), (507, 31)]


def views(n: int, d: int, *, dtype: torch.dtype = torch.float32, device: object = "cpu") -> list[Tensor]:
    return [z.to(device) for z in pairs(n, d, dtype)]


def with_gradients(loss_function, z0: Tensor, z1: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    z0, z1 = z0.detach().clone().requires_grad_(), z1.detach().clone().requires_grad_()
    loss = loss_function(z0, z1, temperature=temperature)
    loss.backward()
    return loss.detach(), z0.grad, z1.grad


def check(z0: Tensor, z1: Tensor, temperature: float, cancels: bool = False) -> None:
    ours, plain = (lambda a, b, f=f: f(a, b, temperature=temperature) for f in (nt_xent, reference))
    assert_as_good_as_plain_torch(ours, plain, z0, z1, scale=1 / temperature, cancels=cancels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_equals_the_formula(engine, n: int, d: int, dtype: torch.dtype) -> None:
    if engine.backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernel takes no float64")
    if engine.slow and n > 200:
        pytest.skip("sizes that take Triton's interpreter minutes")
    for temperature in TEMPERATURES[1::2] if engine.slow else TEMPERATURES:
        check(*views(n, d, dtype=dtype, device=engine.device), temperature, cancels=n == 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_wrong_gradient_is_refused(dtype: torch.dtype) -> None:
    for t in TEMPERATURES:
        assert_wrong_gradients_are_refused(globals(), "nt_xent", lambda t=t: check(*pairs(20, 16, dtype), t))


@pytest.mark.parametrize("case", ["duplicates", "all equal", "orthogonal views", "zeros"])
def test_degenerate_rows(engine, case: str) -> None:
    z0, z1 = views(100, 16, device=engine.device)
    if case == "duplicates":
        z0[1::2], z1[1::2] = z0[::2], z1[::2]
    elif case == "all equal":
        z0, z1 = z0[:1].expand(100, -1).contiguous(), z0[:1].expand(100, -1).contiguous()
    elif case == "orthogonal views":
        z0, z1 = torch.eye(100, 16, device=engine.device), torch.eye(100, 16, device=engine.device).flip(1)
    else:
        z0, z1 = torch.zeros_like(z0), torch.zeros_like(z1)
    check(z0, z1, 0.1, cancels=case in CANCELLING)


@pytest.mark.parametrize(("length", "temperature", "d"), [(1.0, 0.01, 1), (30.0, 0.5, 16), (100.0, 1.0, 16)])
def test_large_log_sum_exps_cost_no_accuracy(engine, length: float, temperature: float, d: int) -> None:
    z0, z1 = (length * z for z in views(200, d, device=engine.device))
    ours = with_gradients(nt_xent, z0, z1, temperature)
    plain = with_gradients(reference, z0, z1, temperature)
    exact = with_gradients(reference, z0.double(), z1.double(), temperature)
    for got, rival, want in zip(ours, plain, exact, strict=True):
        error, rival_error = ((x.double() - want).norm() / want.norm() for x in (got, rival))
        assert error <= 2 * rival_error + 1e-6


def test_rows_of_very_different_lengths(engine) -> None:
    """Log-sum-exps hundreds apart: no single shift serves a tile, forward or backward."""
    z0, z1 = views(150, 32, device=engine.device)
    scale = torch.logspace(-2, 1.3, 150, device=engine.device)[:, None]
    loss, grad0, grad1 = with_gradients(nt_xent, z0 * scale, z1 * scale, 0.5)
    want = with_gradients(reference, (z0 * scale).double(), (z1 * scale).double(), 0.5)
    for got, expected in zip((loss, grad0, grad1), want, strict=True):
        assert (got.double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_more_pairs_than_32_bits_count(device: str) -> None:
    n = 23_200  # 46,400^2 > 2^31
    codes, (code,) = coded(2 * n)
    rows = codes.float()[code].to(device)
    z0, z1 = rows[:n].clone().requires_grad_(), rows[n:].clone().requires_grad_()
    loss = nt_xent(z0, z1, temperature=0.5)
    loss.backward()

    similar, count = (codes @ codes.T / 0.5), how_many(code)
    lse = ((similar.exp() * count).sum(1) - similar.diagonal().exp()).log()
    other = code.roll(n)
    torch.testing.assert_close(loss.item(), (lse[code] - similar[code, other]).mean().item(), rtol=1e-6, atol=0)
    weights = (similar - lse[:, None]).exp() + (similar - lse).exp()
    own = weights.diagonal()[:, None] * codes
    want = ((weights * count) @ codes - own)[code] - 2 * codes[other]
    got = torch.cat([z0.grad, z1.grad]).cpu().double() * (0.5 * 2 * n)
    assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    z0, z1 = views(300, 48, device=engine.device)
    before = torch.get_num_threads()
    want = with_gradients(nt_xent, z0, z1, 0.1)
    try:
        for threads in (before,) if engine.slow else (1, 2, 3, before):  # a GPU's kernels know of no threads
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            for got, expected in zip(with_gradients(nt_xent, z0, z1, 0.1), want, strict=True):
                assert torch.equal(got, expected)
    finally:
        torch.set_num_threads(before)


def test_non_contiguous_inputs(engine) -> None:
    z0, z1 = views(60, 24, device=engine.device)
    exactly = engine.backend != "reference"
    assert_any_layout(lambda z0, z1: nt_xent(z0, z1, temperature=0.3), z0, z1, exactly=exactly)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_bad_values_give_nan(engine, value: float, where: int) -> None:
    pair = views(120, 8, device=engine.device)
    pair[where][100, 3] = value
    assert torch.isnan(nt_xent(*pair, temperature=0.5))


def test_gradient_only_where_asked(engine) -> None:
    z0, z1 = views(10, 4, device=engine.device)
    z1.requires_grad_()
    nt_xent(z0, z1, temperature=0.5).backward()
    assert z0.grad is None
    assert z1.grad is not None
    with torch.no_grad():
        assert not nt_xent(z0, z1, temperature=0.5).requires_grad


def test_gradient_is_scaled_by_what_comes_from_above(engine) -> None:
    z0, z1 = views(40, 8, device=engine.device)
    _, grad0, _ = with_gradients(nt_xent, z0, z1, 0.5)
    _, scaled, _ = with_gradients(lambda *z, temperature: 3 * nt_xent(*z, temperature=temperature), z0, z1, 0.5)
    torch.testing.assert_close(scaled, 3 * grad0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1 / 64, 0.25])  # numbers that every type holds
def test_a_temperature_tensor_receives_its_gradient(engine, temperature: float, dtype: torch.dtype) -> None:
    if engine.backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernel takes no float64")
    pair = views(123, 16, dtype=dtype, device=engine.device)

    ours, plain = (lambda a, b, t, f=f: f(a, b, temperature=t) for f in (nt_xent, reference))
    t = torch.tensor(temperature, dtype=torch.promote_types(dtype, torch.float32), device=engine.device)
    assert_as_good_as_plain_torch(ours, plain, *pair, t, scale=1 / temperature)


def test_gradcheck_of_the_temperature(engine) -> None:
    if engine.backend == "triton":
        pytest.skip("Triton's kernel takes no float64")
    z0, z1 = (z.requires_grad_() for z in views(9, 5, dtype=torch.float64, device=engine.device))
    t = torch.tensor(0.3, dtype=torch.float64, device=engine.device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, t: nt_xent(a, b, temperature=t), (z0, z1, t))


def test_gradcheck(engine) -> None:
    if engine.backend == "triton":
        pytest.skip("Triton's kernel takes no float64")
    z0, z1 = (z.requires_grad_() for z in views(9, 5, dtype=torch.float64, device=engine.device))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.3), (z0, z1))


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def step(a: Tensor, b: Tensor, temperature: float) -> Tensor:
        return nt_xent(normalize(a, dim=1), normalize(b, dim=1), temperature=temperature)

    z0, z1 = views(20, 8, device=engine.device)
    compiled = torch.compile(step, fullgraph=True)
    for got, want in zip(with_gradients(compiled, z0, z1, 0.5), with_gradients(step, z0, z1, 0.5), strict=True):
        torch.testing.assert_close(got, want)


def test_autocast_computes_in_float32(engine) -> None:
    z0, z1 = views(20, 8, dtype=torch.bfloat16, device=engine.device)
    with torch.autocast(engine.device.type, torch.bfloat16):
        got = nt_xent(z0, z1.float(), temperature=0.5)
    assert torch.equal(got, nt_xent(z0.float(), z1.float(), temperature=0.5))


def test_autocast_leaves_float64_and_so_refuses_a_mixture(engine) -> None:
    z0, z1 = views(20, 8, device=engine.device)
    with torch.autocast(engine.device.type, torch.bfloat16):
        for pair in ((z0.double(), z1), (z0, z1.double())):
            with pytest.raises(TypeError, match="one dtype"):
                nt_xent(*pair, temperature=0.5)
        if engine.backend != "triton":
            assert nt_xent(z0.double(), z1.double(), temperature=0.5).dtype == torch.float64


@pytest.mark.one_isa
def test_under_compile_and_autocast(engine) -> None:
    z0, z1 = views(20, 8, dtype=torch.bfloat16, device=engine.device)

    def step(a: Tensor, b: Tensor, temperature: float) -> Tensor:
        with torch.autocast(engine.device.type, torch.bfloat16):
            return nt_xent(a, b.float(), temperature=temperature)

    compiled = torch.compile(step, fullgraph=True)
    for got, want in zip(with_gradients(compiled, z0, z1, 0.5), with_gradients(step, z0, z1, 0.5), strict=True):
        torch.testing.assert_close(got, want)


def test_shapes_alone_on_the_meta_device() -> None:
    z = torch.empty(4, 8, device="meta", requires_grad=True)
    loss = nt_xent(z, z, temperature=0.5)
    loss.backward()
    assert (loss.shape, loss.dtype, z.grad.shape) == ((), torch.float32, (4, 8))


def test_second_derivative_is_refused(engine) -> None:
    z0, z1 = (z.requires_grad_() for z in views(10, 4, device=engine.device))
    (grad,) = torch.autograd.grad(nt_xent(z0, z1, temperature=0.5), z0, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


MEASURE = """
import re, sys, torch
from fastssl.ops import nt_xent
torch.set_num_threads(2)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
for n in (64, int(sys.argv[1])):
    z0, z1 = (torch.nn.functional.normalize(torch.randn(n, 128), dim=1).requires_grad_() for _ in range(2))
    before = peak()
    nt_xent(z0, z1, temperature=0.5, backend=sys.argv[2]).backward()
print(peak() - before)
"""


def extra_megabytes(n: int, backend: str) -> float:
    """The high-water mark that one forward and backward adds in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEASURE, str(n), backend], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_the_matrix_of_similarities_is_never_stored() -> None:
    """4096 rows: the matrix alone is 64 MB."""
    assert extra_megabytes(2048, "cpu") < 16
    assert extra_megabytes(2048, "reference") > 128  # the measurement does see a stored matrix


SCARCE = """
import resource, torch
from pathlib import Path
from fastssl.ops import nt_xent
torch.set_num_threads(1)
nt_xent(torch.randn(4, 8), torch.randn(4, 8), temperature=0.5, backend="cpu")
views = torch.zeros(2, 1, 180_000)  # a block of rows takes 69 MB, more than is kept, in each order
for extra in range(0, 400, 40):
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (extra << 20), resource.RLIM_INFINITY))
    try:
        print(nt_xent(*views, temperature=0.5, backend="cpu").item())
        break
    except MemoryError:
        print("MemoryError")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory as Linux does")
def test_memory_that_cannot_be_had_is_an_error() -> None:
    """Whichever of the allocations it is that fails."""
    done = subprocess.run([sys.executable, "-c", SCARCE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = done.stdout.split()
    assert told == ["MemoryError"] * (len(told) - 1) + ["0.0"]
    assert len(told) > 3


BAD = [
    (dict(z1=torch.zeros(8, 3)), ValueError, r"same shape \(N, D\); got \(8, 4\) and \(8, 3\)"),
    (dict(z0=torch.zeros(8)), ValueError, r"z0 must have shape \(N, D\); got \(8\)"),
    (
        dict(z0=torch.zeros(0, 4), z1=torch.zeros(0, 4)),
        ValueError,
        r"at least one sample and one feature; got \(0, 4\)",
    ),
    (
        dict(z0=torch.zeros(4, 0), z1=torch.zeros(4, 0)),
        ValueError,
        r"at least one sample and one feature; got \(4, 0\)",
    ),
    (dict(z1=torch.zeros(8, 4).double()), TypeError, "one dtype; got torch.float32 and torch.float64"),
    (dict(z0=torch.zeros(8, 4).long()), TypeError, "z0 must be float32.*got torch.int64"),
    (dict(z0=[1.0]), TypeError, "z0 must be a tensor; got list"),
    (dict(z1=torch.zeros(8, 4, device="meta")), ValueError, "one device; got cpu and meta"),
    (dict(temperature=0.0), ValueError, "temperature must be finite and above 0; got 0.0"),
    (dict(temperature=-1.0), ValueError, "got -1.0"),
    (dict(temperature=float("nan")), ValueError, "got nan"),
    (dict(temperature=float("inf")), ValueError, "got inf"),
    (dict(temperature=torch.ones(2)), ValueError, r"temperature must have shape \(\); got \(2\)"),
    (dict(temperature=torch.tensor(1)), TypeError, "temperature must be float32.*got torch.int64"),
    (
        dict(temperature=torch.tensor(1.0, device="meta")),
        ValueError,
        "temperature must be on the CPU; got meta",
    ),
    (dict(temperature=True), TypeError, "temperature must be a number; got bool"),
    (dict(temperature="0.5"), TypeError, "temperature must be a number; got str"),
    (dict(backend="triton"), RuntimeError, "'triton' was asked for and cannot serve this call: it takes cuda tensors"),
    (dict(backend="fpga"), ValueError, "unknown backend 'fpga': choose one of cpu, cuda, reference, triton"),
    (dict(backend="cuda"), RuntimeError, "no such backend, only triton, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"z0": torch.zeros(8, 4), "z1": torch.zeros(8, 4), "temperature": 0.5, **change}
    with pytest.raises(error, match=message):
        nt_xent(**arguments)  # type: ignore[arg-type]
