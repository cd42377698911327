"""Soft assignment of chroma to bins against a sort of all distances in float64, on every engine."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from fastssl.ops import encode_ab, gamut_bins, rgb_to_lab

BACKENDS = ("reference", "cpu", "cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(1, 2, 1, 1), (3, 2, 1, 7), (2, 2, 46, 45), (1, 2, 97, 101), (1, 2, 252, 123), (1, 2, 1, 507)]


def chroma(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Mostly in the gamut, some far outside."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return (40 * x + 1e3 * (x > 2.5)).to(dtype)


def definition(ab: Tensor, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ids, weights, and how much further than the fifth bin the sixth is, in float64."""
    pixels = ab.double().movedim(1, -1)[..., None, :]
    distance = (pixels - bins.double().to(ab.device)).square().sum(-1)
    ranked, ids = distance.sort(dim=-1, stable=True)
    gaps = ranked[..., 1:6] - ranked[..., :5] if len(bins) > 5 else torch.full_like(ranked, torch.inf)
    weights = (-ranked[..., :5] / 50).softmax(-1)
    return ids[..., :5].movedim(-1, 1), weights.movedim(-1, 1), gaps.amin(-1)


def assert_right(ab: Tensor, bins: Tensor) -> None:
    ids, weights = encode_ab(ab, bins)
    want_ids, want_weights, gap = definition(ab, bins)
    assert (ids.dtype, weights.dtype) == (torch.int64, torch.float64 if ab.dtype == torch.float64 else torch.float32)
    # a squared distance is rounded to a few units: nearer than that, either bin may come first
    scale = (ab.double().square().sum(1) + 2e4) * torch.finfo(weights.dtype).eps
    decided = gap > 16 * scale
    assert decided.double().mean() > 0.8  # ties of coarse types, and pixels far away
    assert torch.equal(ids.movedim(1, -1)[decided], want_ids.movedim(1, -1)[decided])
    error = (weights.double() - want_weights).abs().amax(1)
    assert torch.all(error <= 4 * torch.finfo(weights.dtype).eps + scale)
    assert ids.min() >= 0
    assert ids.max() < len(bins)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(engine, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_right(chroma(shape, dtype).to(engine.device), gamut_bins(device=engine.device))


def test_all_colours_of_a_photograph(engine) -> None:
    rgb = torch.rand(2, 3, 120, 121, generator=torch.Generator().manual_seed(0))
    assert_right(rgb_to_lab(rgb, backend="reference")[:, 1:].to(engine.device), gamut_bins(device=engine.device))


@pytest.mark.parametrize("case", ["random", "clustered", "one line", "all equal", "five", "many"])
def test_any_bins(engine, case: str) -> None:
    """Lists of every length: crowded cells, no cell at all, and a plane without width."""
    generator = torch.Generator().manual_seed(1)
    # too many for the pixels to pay for a grid, and more distances than the reference holds at a time
    random = 100 * torch.randn(1000 if case == "many" else 200, 2, generator=generator)
    bins = {
        "random": random,
        "many": random,
        "clustered": torch.cat([random[:20], random[20:] * 1e-3 + 50]),
        "one line": random * torch.tensor([1.0, 0.0]),
        "all equal": random[:1].expand(200, 2),
        "five": random[:5],
    }[case].to(engine.device)
    ab = 100 * torch.randn(2, 2, 101, 103, generator=generator).to(engine.device)
    ids, weights = encode_ab(ab, bins)
    want_ids, want_weights, gap = definition(ab, bins)
    decided = gap > 1e-1
    assert torch.equal(ids.movedim(1, -1)[decided], want_ids.movedim(1, -1)[decided])
    # where two are as near as rounding tells, their weights are the same all the same
    torch.testing.assert_close(weights.double(), want_weights, rtol=0, atol=1e-3)
    if case == "all equal":
        assert torch.equal(ids, torch.arange(5, device=ids.device).view(1, 5, 1, 1).expand_as(ids))


def test_of_equally_near_bins_the_lowest_come_first(engine) -> None:
    """Pixels on the grid and between its points, where every distance is exact."""
    bins = gamut_bins(device=engine.device)
    steps = torch.arange(-140, 141, 5, dtype=torch.float32)
    ab = torch.stack(torch.meshgrid(steps, steps, indexing="ij"))[None].to(engine.device).repeat(4, 1, 1, 1)
    ids, _ = encode_ab(ab, bins)
    assert torch.equal(ids, definition(ab, bins)[0])
    # few pixels take another way
    assert torch.equal(encode_ab(ab[:1, :, :40, :40], bins)[0], ids[:1, :, :40, :40])


def test_far_from_every_bin_the_nearest_counts(engine) -> None:
    ab, bins = torch.full((1, 2, 1, 1), 5e3, device=engine.device), gamut_bins(device=engine.device)
    ids, weights = encode_ab(ab, bins)
    assert weights.isfinite().all()
    assert weights[0, 0] > 0.99
    assert bins[ids[0, 0, 0, 0]].sum() == bins.sum(1).max()


def test_the_loss_of_the_docstring_is_that_of_the_dense_targets(engine) -> None:
    ab, bins = chroma((2, 2, 6, 7)).to(engine.device), gamut_bins(device=engine.device)
    ids, weights = encode_ab(ab, bins)
    logits = torch.randn(2, 313, 6, 7, device=engine.device)
    dense = torch.zeros_like(logits).scatter_(1, ids, weights)
    want = torch.nn.functional.cross_entropy(logits, dense)
    got = -(weights * logits.log_softmax(1).gather(1, ids)).sum(1).mean()
    torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    ab, bins = chroma((3, 2, 70, 71)).to(engine.device), gamut_bins(device=engine.device)
    before, want = torch.get_num_threads(), encode_ab(ab, bins)
    try:
        for threads in (1, 2, 3, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            assert all(torch.equal(got, expected) for got, expected in zip(encode_ab(ab, bins), want, strict=True))
    finally:
        torch.set_num_threads(before)


def test_non_contiguous_inputs(engine) -> None:
    lab = 50 * torch.randn(4, 3, 20, 22, device=engine.device)
    bins = gamut_bins(device=engine.device)
    want = encode_ab(lab[:, 1:].contiguous(), bins)
    for ab in (lab[:, 1:], lab.to(memory_format=torch.channels_last)[:, 1:]):
        got = encode_ab(ab, bins.T.contiguous().T)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_give_nan_and_valid_ids(engine, value: float, dtype: torch.dtype) -> None:
    ab, bins = (20 * torch.randn(2, 2, 90, 91)).to(engine.device, dtype), gamut_bins(device=engine.device)
    ab[1, 0, 4, 5] = ab[0, 1, 89, 90] = value
    ids, weights = encode_ab(ab, bins)
    assert weights[1, :, 4, 5].isnan().all()
    assert weights[0, :, 89, 90].isnan().all()
    assert int(weights.isnan().sum()) == 10
    assert ids.min() >= 0
    assert ids.max() < 313


def test_no_gradient_flows(engine) -> None:
    ab = chroma((1, 2, 4, 4)).to(engine.device).requires_grad_()
    assert not encode_ab(ab, gamut_bins(device=engine.device))[1].requires_grad


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def step(ab: Tensor, bins: Tensor) -> Tensor:
        ids, weights = encode_ab(ab * 2, bins)
        return bins[ids].mul(weights[..., None]).sum(1)

    ab, bins = chroma((2, 2, 8, 9)).to(engine.device), gamut_bins(device=engine.device)
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(ab, bins), step(ab, bins))


def test_shapes_alone_on_the_meta_device() -> None:
    ids, weights = encode_ab(torch.empty(2, 2, 4, 5, device="meta").half(), gamut_bins(device="meta"))
    assert (ids.shape, ids.dtype, weights.shape, weights.dtype) == (
        (2, 5, 4, 5),
        torch.int64,
        (2, 5, 4, 5),
        torch.float32,
    )


def test_the_bins_are_the_313_of_the_paper() -> None:
    """Every sRGB colour has its nearest grid point among them; all but four are corners of cells that colours hit."""
    bins = {tuple(map(int, row)) for row in gamut_bins().tolist()}
    assert (len(bins), gamut_bins()[0].tolist(), gamut_bins()[-1].tolist()) == (313, [-90, 50], [100, 0])
    assert torch.equal(gamut_bins(), torch.tensor(sorted(bins), dtype=torch.float32))
    levels = torch.linspace(0, 1, 256, dtype=torch.float64)
    u, v = torch.meshgrid(levels, levels, indexing="ij")
    # the ab of a solid colour lies under one on the cube's surface
    faces = [
        torch.stack(order)
        for s in (0.0, 1.0)
        for w in [torch.full_like(u, s)]
        for order in ((w, u, v), (u, w, v), (u, v, w))
    ]
    ab = rgb_to_lab(torch.stack(faces))[:, 1:].movedim(1, -1).reshape(-1, 2) / 10
    nearest = {tuple(row) for row in (10 * ab.round()).int().unique(dim=0).tolist()}
    assert nearest <= bins
    corners = {
        (10 * (a + i), 10 * (b + j)) for a, b in ab.floor().int().unique(dim=0).tolist() for i in (0, 1) for j in (0, 1)
    }
    assert len(corners) == 309
    assert corners <= bins


MEASURE = """
import re, sys, torch
from fastssl.ops import encode_ab, gamut_bins
torch.set_num_threads(2)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
for size in (8, 256):
    ab = torch.randn(1, 2, size, size)
    before = peak()
    encode_ab(ab, gamut_bins(), backend=sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_the_distances_are_never_stored() -> None:
    """65,536 pixels: 4 MB of results, and 82 MB of distances to every bin."""

    def extra_megabytes(backend: str) -> float:
        done = subprocess.run([sys.executable, "-c", MEASURE, backend], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert extra_megabytes("cpu") < 12
    assert extra_megabytes("reference") > 60  # the measurement does see them


A, B = torch.zeros(2, 2, 4, 4), torch.zeros(7, 2)
BAD = [
    (dict(ab=[1.0]), TypeError, "ab must be a tensor; got list"),
    (dict(ab=A.int()), TypeError, "ab must be float32.*got torch.int32"),
    (dict(ab=A[0]), ValueError, r"ab must have shape \(N, 2, H, W\); got \(2, 4, 4\)"),
    (dict(ab=torch.zeros(2, 3, 4, 4)), ValueError, r"ab must have shape \(N, 2, H, W\); got \(2, 3, 4, 4\)"),
    (dict(ab=A[:0]), ValueError, r"ab must not be empty; got \(0, 2, 4, 4\)"),
    (dict(bins=B.long()), TypeError, "bins must be float32.*got torch.int64"),
    (dict(bins=[1.0]), TypeError, "bins must be a tensor; got list"),
    (dict(bins=B[:4]), ValueError, r"bins must have shape \(B, 2\) with B >= 5; got \(4, 2\)"),
    (dict(bins=B.T), ValueError, r"with B >= 5; got \(2, 7\)"),
    (dict(bins=B.to("meta")), ValueError, "one device; got cpu and meta"),
    (dict(bins=B / 0), ValueError, "bins must be finite; got 14 values that are not"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode_ab(**{"ab": A, "bins": B, **change})  # type: ignore[arg-type]
