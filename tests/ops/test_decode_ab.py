"""The annealed mean of bins against its formula in float64, on every engine."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from beyond_32_bits import DEVICES, zeros
from torch import Tensor

from fastssl.ops import decode_ab, encode_ab, gamut_bins
from fastssl.ops.decode_ab import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [
    (1, 1, 1, 1),
    (1, 313, 1, 1),
    (3, 7, 1, 7),
    (2, 313, 13, 17),
    (1, 31, 64, 65),
    (1, 123, 12, 21),
    (1, 252, 13, 39),
]


def data(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: object = "cpu") -> tuple[Tensor, Tensor]:
    logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    bins = (
        gamut_bins() if shape[1] == 313 else 50 * torch.randn(shape[1], 2, generator=torch.Generator().manual_seed(1))
    )
    return logits.to(device=device, dtype=dtype), bins.to(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.07, 0.2, 0.38, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_at_most_twice_the_error_of_plain_torch(
    engine, shape: tuple[int, ...], temperature: float, dtype: torch.dtype
) -> None:
    logits, bins = data(shape, dtype, engine.device)
    got = decode_ab(logits, bins, temperature=temperature)
    want = reference(logits.double(), bins, temperature)
    assert (got.shape, got.dtype) == (want.shape, torch.float64 if dtype == torch.float64 else torch.float32)
    error, plain = ((x.double() - want).abs().max() for x in (got, reference(logits, bins, temperature)))
    # in float64 the formula that both are held against errs as much as they do
    rounding = (16 if dtype == torch.float64 else 8) * torch.finfo(got.dtype).eps
    assert error <= 2 * plain + rounding * 100 / temperature


def test_of_one_bin_and_of_equal_logits(engine) -> None:
    bins = gamut_bins(device=engine.device)
    got = decode_ab(torch.zeros(1, 313, 2, 3, device=engine.device), bins)
    torch.testing.assert_close(got, bins.mean(0).view(1, 2, 1, 1).expand_as(got), rtol=1e-5, atol=1e-4)
    logits = torch.full((1, 313, 1, 1), float("-inf"), device=engine.device)
    logits[0, 17] = -5.0
    assert torch.equal(decode_ab(logits, bins).flatten(), bins[17])


@pytest.mark.parametrize("temperature", [1e-6, 1e-20, 1e-60])
def test_low_temperatures_give_the_mode(engine, temperature: float) -> None:
    logits, bins = data((2, 313, 5, 5), device=engine.device)
    got = decode_ab(1e3 * logits, bins, temperature=temperature)
    torch.testing.assert_close(got, bins[logits.argmax(1)].movedim(-1, 1))


def test_undoes_the_encoding(engine) -> None:
    """Five bins around a pixel average to near it."""
    ab, bins = 30 * torch.randn(2, 2, 20, 20, device=engine.device), gamut_bins(device=engine.device)
    ids, weights = encode_ab(ab.clamp(-40, 40), bins)
    logits = torch.full((2, 313, 20, 20), float("-inf"), device=engine.device).scatter_(1, ids, weights.log())
    assert (decode_ab(logits, bins, temperature=1.0) - ab.clamp(-40, 40)).abs().max() < 5


@pytest.mark.parametrize("device", DEVICES)
def test_more_logits_than_32_bits_count(device: str) -> None:
    logits = zeros(1, 1024, 1450, 1450, dtype=torch.bfloat16, device=device)
    logits[0, 1000, 0, 0] = logits[0, -1, -1, -1] = 100
    bins = (50 * torch.randn(1024, 2, generator=torch.Generator().manual_seed(0))).to(device)
    want = bins.mean(0).view(1, 2, 1, 1).repeat(1, 1, 1450, 1450)
    want[0, :, 0, 0], want[0, :, -1, -1] = bins[1000], bins[-1]
    torch.testing.assert_close(decode_ab(logits, bins), want, rtol=1e-5, atol=1e-3)


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    logits, bins = data((2, 50, 70, 71), device=engine.device)
    before, want = torch.get_num_threads(), decode_ab(logits, bins)
    try:
        for threads in (1, 2, 3, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            assert torch.equal(decode_ab(logits, bins), want)
    finally:
        torch.set_num_threads(before)


def test_non_contiguous_inputs(engine) -> None:
    logits, bins = data((2, 313, 13, 17), device=engine.device)
    want = decode_ab(logits, bins)
    got = decode_ab(logits.to(memory_format=torch.channels_last), bins.T.contiguous().T)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 if engine.backend == "reference" else 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 150, 312])
def test_bad_values_give_nan(engine, value: float, at: int, dtype: torch.dtype) -> None:
    logits, bins = data((2, 313, 13, 17), dtype, engine.device)
    logits[1, at, 4, 5] = value
    got = decode_ab(logits, bins)
    assert got[1, :, 4, 5].isnan().all()
    assert int(got.isnan().sum()) == 2


def test_gradients_are_refused(engine) -> None:
    logits, bins = data((1, 313, 2, 2), device=engine.device)
    with pytest.raises(RuntimeError, match="decode_ab: gradients are not supported"):
        decode_ab(logits.requires_grad_(), bins).sum().backward()


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def step(logits: Tensor, bins: Tensor) -> Tensor:
        return decode_ab(logits * 2, bins) + 1

    logits, bins = data((2, 313, 4, 5), device=engine.device)
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(logits, bins), step(logits, bins))


def test_autocast_changes_nothing(engine) -> None:
    logits, bins = data((2, 313, 4, 5), device=engine.device)
    want = decode_ab(logits, bins)
    with torch.autocast(engine.device.type, torch.bfloat16):
        assert torch.equal(decode_ab(logits, bins), want)


def test_shapes_alone_on_the_meta_device() -> None:
    got = decode_ab(torch.empty(2, 313, 4, 5, device="meta").half(), gamut_bins(device="meta"))
    assert (got.shape, got.dtype) == ((2, 2, 4, 5), torch.float32)


MEASURE = """
import re, sys, torch
from fastssl.ops import decode_ab, gamut_bins
torch.set_num_threads(2)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
for size in (8, 256):
    logits = torch.randn(1, 313, size, size)
    before = peak()
    decode_ab(logits, gamut_bins(), backend=sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_the_softmax_is_never_stored() -> None:
    """65,536 pixels: 82 MB of it."""

    def extra_megabytes(backend: str) -> float:
        done = subprocess.run([sys.executable, "-c", MEASURE, backend], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert extra_megabytes("cpu") < 8
    assert extra_megabytes("reference") > 60  # the measurement does see it


L, B = torch.zeros(2, 7, 4, 4), torch.zeros(7, 2)
BAD = [
    (dict(logits=[1.0]), TypeError, "logits must be a tensor; got list"),
    (dict(logits=L.int()), TypeError, "logits must be float32.*got torch.int32"),
    (dict(logits=L[0]), ValueError, r"logits must have shape \(N, B, H, W\); got \(7, 4, 4\)"),
    (dict(logits=L[:, :6]), ValueError, r"agree on B; got \(2, 6, 4, 4\) and \(7, 2\)"),
    (dict(logits=L[:0]), ValueError, r"logits must not be empty; got \(0, 7, 4, 4\)"),
    (dict(bins=B.long()), TypeError, "bins must be float32.*got torch.int64"),
    (dict(bins=[1.0]), TypeError, "bins must be a tensor; got list"),
    (dict(bins=B[:, :1]), ValueError, r"bins must have shape \(B, 2\) with B >= 1; got \(7, 1\)"),
    (dict(bins=B.to("meta")), ValueError, "one device; got cpu and meta"),
    (dict(temperature=0.0), ValueError, "temperature must be finite and above 0; got 0.0"),
    (dict(temperature=float("inf")), ValueError, "got inf"),
    (dict(temperature="1"), TypeError, "temperature must be a number; got str"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        decode_ab(**{"logits": L, "bins": B, **change})  # type: ignore[arg-type]
