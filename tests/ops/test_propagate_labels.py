"""Label propagation against a sort of all affinities in float64, on every engine."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from beyond_32_bits import DEVICES, NEAR, needles
from torch import Tensor
from torch.nn.functional import normalize

from fastssl.ops import propagate_labels
from fastssl.ops.propagate_labels import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "triton")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TEMPERATURES = [0.1, 0.01, 0.02, 0.07, 0.2]
# frames, features, height, width, classes
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 1, 7, 2),
    (3, 31, 5, 4, 1),
    (2, 128, 9, 17, 3),
    (4, 130, 13, 11, 5),
    (1, 300, 8, 19, 2),
    (1, 123, 12, 21, 2),
    (1, 31, 13, 39, 1),
]


def data(
    frames: int,
    d: int,
    height: int,
    width: int,
    classes: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: object = "cpu",
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(d + width)
    shapes = ((d, height, width), (frames, d, height, width))
    target, context = (torch.randn(s, generator=generator).to(device=device, dtype=dtype) for s in shapes)
    return [target, context, torch.rand(frames, classes, height, width, generator=generator).to(device)]


def definition(
    target: Tensor, context: Tensor, labels: Tensor, radius: int | None, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """The labels, and how far the k-th affinity of each pixel is from the next, in float64."""
    (frames, _, height, width), classes = context.shape, labels.shape[1]
    x = normalize(target.double().flatten(1).T, dim=1)
    c = normalize(context.double().movedim(1, -1).reshape(-1, len(target)), dim=1)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([rows, columns], -1).view(-1, 2).to(target.device)
    far = torch.zeros(len(x), len(x), dtype=torch.bool, device=target.device)
    if radius is not None:
        far = (place[:, None] - place).abs().amax(-1) > radius
    affinity = (x @ c.T).masked_fill(far.repeat(1, frames), -torch.inf)
    ranked, ids = affinity.sort(dim=1, descending=True, stable=True)
    weights = ((ranked[:, :k] - ranked[:, :1]) / temperature).exp()
    chosen = labels.double().movedim(1, -1).reshape(-1, classes)[ids[:, :k]]
    out = (weights[..., None] * chosen).sum(1) / weights.sum(1, keepdim=True)
    gap = ranked[:, k - 1] - ranked[:, k] if k < ranked.shape[1] else torch.full((len(x),), torch.inf)
    return out.T.reshape(classes, height, width), gap.nan_to_num(torch.inf).view(height, width)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(engine, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if engine.backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernels take no float64")
    if engine.slow:  # fewer blocks of frames and features, as ragged
        shape = (min(shape[0], 2), min(shape[1], 64 + shape[1] % 16), *shape[2:])
    pixels = shape[0] * shape[2] * shape[3]
    inputs = data(*shape, dtype=dtype, device=engine.device)
    radii, ks = (1, None) if engine.slow else (0, 1, 3, 12, None), {min(5, pixels), pixels}
    ks |= {1, min(40, pixels)} if not engine.slow else set()
    if engine.slow and pixels > 64:  # all pixels, sought or kept, are what takes an interpreter minutes
        radii, ks = (1, None) if pixels < 200 else (1,), {5}
    settings = itertools.product(radii, sorted(ks))
    for (radius, k), temperature in zip(settings, itertools.cycle(TEMPERATURES), strict=False):
        got = propagate_labels(*inputs, radius=radius, k=k, temperature=temperature)
        want, gap = definition(*inputs, radius, k, temperature)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        rounding = 32 * torch.finfo(got.dtype).eps
        decided = gap > rounding
        assert decided.double().mean() >= 0.9
        assert (got.double() - want).abs()[:, decided].max() <= rounding / temperature


def test_so_many_neighbours_that_few_pixels_fit_into_working_memory(engine) -> None:
    if engine.slow:
        pytest.skip("of the C++ kernel, which takes few tiles at a time then")
    inputs = data(1, 20, 60, 62, 2, device=engine.device)
    want, gap = definition(*inputs, None, 3000, 1.0)
    got = propagate_labels(*inputs, radius=None, k=3000, temperature=1.0)
    decided = gap > 1e-6
    assert decided.double().mean() >= 0.9
    torch.testing.assert_close(got.double()[:, decided], want[:, decided], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_at_most_twice_the_error_of_plain_torch(engine, dtype: torch.dtype) -> None:
    height, width = (5, 9) if engine.slow else (12, 13)
    inputs = data(2, 96, height, width, 4, dtype=dtype, device=engine.device)
    k = 2 * height * width
    exact = [x.double() for x in inputs]
    want, _ = definition(*exact, 4, k, 0.07)
    ours = propagate_labels(*inputs, radius=4, k=k, temperature=0.07).double() - want
    plain = reference(*inputs, 4, k, 0.07).double() - want
    assert ours.norm() <= 2 * plain.norm()


def test_a_copy_of_the_frame_gives_its_labels(engine) -> None:
    target, context, labels = data(3, 64, 10, 12, 4, device=engine.device)
    context[1] = 7 * target  # lengths do not matter
    got = propagate_labels(target, context, labels, radius=2, k=5, temperature=0.01)
    torch.testing.assert_close(got, labels[1], rtol=0, atol=1e-4)


def test_a_shift_is_followed_within_the_window_and_not_beyond(engine) -> None:
    target, context, labels = data(1, 64, 12, 20, 3, device=engine.device)
    context[0] = target.roll((2, 3), dims=(1, 2))
    got = propagate_labels(target, context, labels, radius=3, k=1, temperature=0.1)
    assert torch.equal(got[:, :-2, :-3], labels[0][:, 2:, 3:])
    short = propagate_labels(target, context, labels, radius=2, k=1, temperature=0.1)
    assert (short[:, :-2, :-3] != labels[0][:, 2:, 3:]).any(0).all()


@pytest.mark.parametrize("radius", [12, 2**62, 2**63 - 1])
def test_a_radius_beyond_the_frame_is_none(engine, radius: int) -> None:
    inputs = data(2, 5, 3, 13, 2, device=engine.device)
    got, want = (propagate_labels(*inputs, radius=r, k=9, temperature=0.1) for r in (radius, None))
    assert torch.equal(got, want)


@pytest.mark.parametrize("k", [1, 3, 9, 17, 18, 40])
@pytest.mark.parametrize("radius", [1, None])
def test_of_equal_pixels_the_first_are_taken(engine, k: int, radius: int | None) -> None:
    """All features are equal; each context pixel carries its own number, and a class of its own tells who voted."""
    target, context = torch.ones(3, 4, 5, device=engine.device), torch.ones(2, 3, 4, 5, device=engine.device)
    labels = torch.eye(40, device=engine.device).view(2, 4, 5, 40).movedim(-1, 1)
    got = propagate_labels(target, context, labels, radius=radius, k=k, temperature=1.0)
    want, _ = definition(target, context, labels, radius, k, 1.0)
    assert torch.equal(got > 0, want > 0)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


def test_fewer_pixels_in_reach_than_k(engine) -> None:
    target, context, labels = data(2, 8, 6, 7, 2, device=engine.device)
    labels[:, :, 3, 3] = torch.nan  # and what is out of reach does not count, whatever it is
    got = propagate_labels(target, context, labels, radius=1, k=60, temperature=0.3)
    want, _ = definition(target, context, labels.nan_to_num(0), radius=1, k=60, temperature=0.3)
    touched = torch.zeros(6, 7, dtype=torch.bool)
    touched[2:5, 2:5] = True
    assert got[:, touched].isnan().all()
    torch.testing.assert_close(got[:, ~touched].double(), want[:, ~touched], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-4, 1e-20, 1e-60])
def test_low_temperatures_leave_the_nearest_alone(engine, temperature: float) -> None:
    inputs = data(2, 16, 6, 7, 2, device=engine.device)
    got = propagate_labels(*inputs, radius=3, k=9, temperature=temperature)
    want = propagate_labels(*inputs, radius=3, k=1, temperature=1.0)
    torch.testing.assert_close(got, want, rtol=0, atol=0.1 if temperature == 1e-4 else 1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_more_pairs_than_32_bits_count(device: str) -> None:
    frames, side = 9, 128  # 128^2 x 9 x 128^2 > 2^31
    directions, pixels, places = needles(frames * side**2)
    asked = torch.arange(side**2) % 6
    labels = torch.rand(len(pixels), 2, generator=torch.Generator().manual_seed(0))
    target = directions[asked].T.reshape(4, side, side).to(device)
    context, given = (x.view(frames, side, side, -1).movedim(-1, 1).to(device) for x in (pixels, labels))
    got = propagate_labels(target, context, given, radius=None, k=3, temperature=0.5)
    want = torch.einsum("k,dkc->dc", (NEAR / 0.5).softmax(0), labels[places])
    torch.testing.assert_close(got.cpu(), want[asked].T.reshape(2, side, side), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    inputs = data(3, 48, *((9, 11) if engine.slow else (21, 23)), 3, device=engine.device)
    before, want = torch.get_num_threads(), propagate_labels(*inputs, radius=5, k=5, temperature=0.1)
    try:
        for threads in (2,) if engine.slow else (1, 2, 3, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            assert torch.equal(propagate_labels(*inputs, radius=5, k=5, temperature=0.1), want)
    finally:
        torch.set_num_threads(before)


def test_non_contiguous_inputs_and_other_labels(engine) -> None:
    target, context, labels = data(2, 24, 9, 10, 3, device=engine.device)
    want = propagate_labels(target, context, labels, radius=4, k=5, temperature=0.1)
    got = propagate_labels(
        target.mT.contiguous().mT,
        context.to(memory_format=torch.channels_last),
        labels.double().to(memory_format=torch.channels_last),
        radius=4,
        k=5,
        temperature=0.1,
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 if engine.backend == "reference" else 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_give_nan_where_they_are_in_reach(engine, value: float, dtype: torch.dtype) -> None:
    if engine.backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernels take no float64")
    target, context, labels = data(2, 24, 9, 10, 3, dtype=dtype, device=engine.device)
    bad = target.clone()
    bad[7, 3, 4] = value
    got = propagate_labels(bad, context, labels, radius=2, k=5, temperature=0.1)
    assert got[:, 3, 4].isnan().all()
    assert int(got.isnan().sum()) == 3
    context[1, 23, 8, 9] = value
    got = propagate_labels(target, context, labels, radius=2, k=5, temperature=0.1)
    assert got[:, 6:, 7:].isnan().all()
    assert int(got.isnan().sum()) == 27


def test_no_gradient_flows(engine) -> None:
    inputs = [x.requires_grad_() for x in data(2, 8, 4, 5, 2, device=engine.device)]
    assert not propagate_labels(*inputs, radius=2, k=3, temperature=0.1).requires_grad


@pytest.mark.one_isa
@pytest.mark.parametrize("radius", [2, None])
def test_under_compile(engine, radius: int | None) -> None:
    def step(target: Tensor, context: Tensor, labels: Tensor) -> Tensor:
        return propagate_labels(target * 2, context, labels, radius=radius, k=3, temperature=0.1) + 1

    inputs = data(2, 8, 4, 5, 2, device=engine.device)
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(*inputs), step(*inputs))


def test_autocast_changes_nothing(engine) -> None:
    inputs = data(2, 8, 4, 5, 2, device=engine.device)
    want = propagate_labels(*inputs, radius=2, k=3, temperature=0.1)
    with torch.autocast(engine.device.type, torch.bfloat16):
        assert torch.equal(propagate_labels(*inputs, radius=2, k=3, temperature=0.1), want)


def test_shapes_alone_on_the_meta_device() -> None:
    target, context, labels = (torch.empty(s, device="meta").half() for s in ((8, 4, 5), (2, 8, 4, 5), (2, 3, 4, 5)))
    got = propagate_labels(target, context, labels, radius=2, k=3, temperature=0.1)
    assert (got.shape, got.dtype) == ((3, 4, 5), torch.float32)


MEASURE = """
import re, sys, torch
from fastssl.ops import propagate_labels
torch.set_num_threads(2)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
for size in (4, 64):
    inputs = [torch.randn(s, size, size) for s in (16,)] + [torch.randn(2, c, size, size) for c in (16, 2)]
    before = peak()
    propagate_labels(*inputs, radius=None, k=5, temperature=0.1, backend=sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_the_affinities_are_never_stored() -> None:
    """4096 x 8192 of them are 134 MB; the reference holds 64 MB at a time."""

    def extra_megabytes(backend: str) -> float:
        done = subprocess.run([sys.executable, "-c", MEASURE, backend], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert extra_megabytes("cpu") < 12
    assert extra_megabytes("reference") > 60  # the measurement does see them


T, C, L = torch.zeros(3, 4, 5), torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 4, 5)
BAD = [
    (dict(target=[1.0]), TypeError, "target must be a tensor; got list"),
    (dict(context=C.int()), TypeError, "context must be float32.*got torch.int32"),
    (dict(labels=L.long()), TypeError, "labels must be float32.*got torch.int64"),
    (dict(target=T[0]), ValueError, r"target must have shape \(D, H, W\); got \(4, 5\)"),
    (dict(context=C.double()), TypeError, "one dtype; got torch.float32 and torch.float64"),
    (dict(context=C.to("meta")), ValueError, "one device; got cpu and meta"),
    (dict(labels=L.to("meta")), ValueError, "target and labels must be on one device; got cpu and meta"),
    (dict(context=C[:, :2]), ValueError, r"must agree; got \(3, 4, 5\), \(2, 2, 4, 5\) and \(2, 6, 4, 5\)"),
    (dict(labels=L[:1]), ValueError, "must agree"),
    (dict(labels=L[..., :4]), ValueError, "must agree"),
    (dict(labels=L[:, :0]), ValueError, "at least one frame, feature, pixel and class"),
    (dict(context=C[:0], labels=L[:0]), ValueError, "at least one frame"),
    (dict(radius=-1), ValueError, "radius must be at least 0, or None; got -1"),
    (dict(k=0), ValueError, r"k must be in \[1, 40\], the pixels of the context; got 0"),
    (dict(k=41), ValueError, "got 41"),
    (dict(radius=2.0), TypeError, "radius must be an integer; got float"),
    (dict(k=3.0), TypeError, "k must be an integer; got float"),
    (dict(context=C[0]), ValueError, r"context must have shape \(T, D, H, W\); got \(3, 4, 5\)"),
    (dict(labels=L[0]), ValueError, r"labels must have shape \(T, C, H, W\); got \(6, 4, 5\)"),
    (dict(temperature=float("inf")), ValueError, "got inf"),
    (dict(temperature=0.0), ValueError, "temperature must be finite and above 0; got 0.0"),
    (dict(temperature="1"), TypeError, "temperature must be a number; got str"),
    (dict(backend="cuda"), RuntimeError, "no such backend, only triton, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = dict(target=T, context=C, labels=L, radius=2, k=3, temperature=0.1)
    with pytest.raises(error, match=message):
        propagate_labels(**{**arguments, **change})  # type: ignore[arg-type]
