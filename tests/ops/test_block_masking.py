"""Block masking against rectangles drawn one by one in Python, on every engine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastssl.ops import block_masking, random_masking
from fastssl.ops.block_masking import ATTEMPTS

BACKENDS = ("reference", "cpu", "cuda")
GRIDS = [(1, 1), (1, 9), (5, 3), (14, 14), (3, 41), (12, 21), (13, 39), (7, 64), (6, 65), (3, 130), (24, 24)]
RATIOS = [math.exp(math.log(0.3) + (i + 0.5) / 64 * (math.log(1 / 0.3) - math.log(0.3))) for i in range(64)]


def noise_of(batch: int, grid: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.rand(batch, 4 * ATTEMPTS + math.prod(grid), generator=torch.Generator().manual_seed(seed))


def part(u: float, count: int) -> int:
    return int(np.float32(u) * np.float32(count))


def one_mask(noise: list[float], grid: tuple[int, int], masked: int, least: int, most: int) -> list[list[bool]]:
    """BEiT's loop over the patches of one sample, and the patches of least noise for what is left."""
    height, width = grid
    mask = [[False] * width for _ in range(height)]
    left = masked
    for attempt in range(ATTEMPTS):
        u = noise[4 * attempt : 4 * attempt + 4]
        low, high = min(least, left), min(most, left)
        area, ratio = low + part(u[0], high - low + 1), RATIOS[part(u[1], 64)]
        h, w = max(1, int(math.sqrt(area * ratio) + 0.5)), max(1, int(math.sqrt(area / ratio) + 0.5))
        if left == 0 or h > height or w > width:
            continue
        top, start = part(u[2], height - h + 1), part(u[3], width - w + 1)
        block = [(y, x) for y in range(top, top + h) for x in range(start, start + w) if not mask[y][x]]
        if len(block) <= left:
            left -= len(block)
            for y, x in block:
                mask[y][x] = True
    free = [(noise[4 * ATTEMPTS + y * width + x], y, x) for y in range(height) for x in range(width) if not mask[y][x]]
    for _, y, x in sorted(free)[:left]:
        mask[y][x] = True
    return mask


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.75, 1.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_equals_rectangles_one_by_one(engine, grid: tuple[int, int], share: float) -> None:
    patches = math.prod(grid)
    masked, noise = round(share * patches), noise_of(7, grid)
    got = block_masking(7, grid, masked, min_block=4, noise=noise.to(engine.device))
    assert (got.shape, got.dtype, got.device.type) == ((7, *grid), torch.bool, engine.device.type)
    want = [one_mask(row, grid, masked, min(4, patches), patches) for row in noise.tolist()]
    assert torch.equal(got.cpu(), torch.tensor(want))


def test_a_number_a_sample(engine) -> None:
    """iBOT masks another share of each image, and none of some."""
    counts, noise = torch.tensor([0, 196, 20, 75, 1]), noise_of(5, (14, 14))
    got = block_masking(5, 14, counts.to(engine.device), max_block=60, noise=noise.to(engine.device))
    want = [one_mask(row, (14, 14), n, 16, 60) for row, n in zip(noise.tolist(), counts.tolist(), strict=True)]
    assert torch.equal(got.cpu(), torch.tensor(want))
    assert got.sum((1, 2)).cpu().equal(counts)


@pytest.mark.parametrize("masked", [1, 15, 75, 98, 150, 195])
@pytest.mark.parametrize("aspect", [(0.3, 1 / 0.3), (1, 1), (50.0, 60.0)])
def test_each_sample_has_exactly_as_many(engine, masked: int, aspect: tuple[float, float]) -> None:
    generator = torch.Generator(engine.device).manual_seed(masked)
    got = block_masking(200, 14, masked, aspect=aspect, generator=generator)
    assert got.sum((1, 2)).eq(masked).all()


def neighbours(mask: Tensor) -> float:
    """The share of masked patches whose right neighbour is masked too."""
    return float((mask[..., :-1] & mask[..., 1:]).sum() / mask[..., :-1].sum())


def test_masks_are_blocks_and_everywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = block_masking(2000, 14, 75, generator=generator)
    scattered = random_masking(2000, 196, 1 - 75.5 / 196, generator=generator)[2].bool().view(-1, 14, 14)
    assert neighbours(blocks) > 0.8
    assert neighbours(scattered) < 0.7
    share = blocks.float().mean(0)
    assert (share - share.flip(0)).abs().max() < 0.06  # as much of the top as of the bottom
    assert (share - share.flip(1)).abs().max() < 0.06
    assert share.min() > 0.02  # a corner is in few rectangles


def test_the_blocks_leave_little_to_fill() -> None:
    """With BEiT's settings nearly all masked patches come from blocks: another noise of the patches changes few."""
    noise = noise_of(1000, (14, 14))
    other = noise.clone()
    other[:, 4 * ATTEMPTS :] = 1 - other[:, 4 * ATTEMPTS :]
    masks = [block_masking(1000, 14, 75, noise=x) for x in (noise, other)]
    assert (masks[0] & ~masks[1]).sum() < 0.02 * masks[0].sum()


def test_aspect_is_height_over_width() -> None:
    settings = dict(min_block=16, max_block=16, generator=torch.Generator().manual_seed(0))
    tall = block_masking(50, 16, 16, aspect=(4, 4), **settings)
    assert tall.any(2).sum(1).eq(8).all()
    assert tall.any(1).sum(1).eq(2).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, 1.0, 1e30])
def test_noise_beyond_its_range_counts_as_the_nearest(engine, value: float) -> None:
    noise = torch.full((2, 4 * ATTEMPTS + 30), value, device=engine.device)
    got = block_masking(2, (5, 6), 11, min_block=4, noise=noise)
    inside = 0.0 if not value > 0 else 1 - 2**-24
    assert torch.equal(got, block_masking(2, (5, 6), 11, min_block=4, noise=torch.full_like(noise, inside)))


def test_a_block_is_not_placed_beyond_a_grid_of_more_rows_than_floats_tell_apart() -> None:
    grid = (2**24 + 8, 1)  # 2^24 + 4 places for a block of five rows
    noise = torch.ones(1, 4 * ATTEMPTS + math.prod(grid))
    mask = block_masking(1, grid, 5, min_block=1, max_block=1, aspect=(25.0, 25.0), noise=noise, backend="cpu")
    assert mask[0, -5:].all()
    assert mask.sum() == 5


def test_equal_noise_fills_the_first(engine) -> None:
    noise = torch.zeros(1, 4 * ATTEMPTS + 12, device=engine.device)
    noise[:, 4 * ATTEMPTS :] = torch.tensor([0.5, 0.0, -0.0, math.nan] * 3)
    got = block_masking(1, (3, 4), 8, aspect=(100, 100), noise=noise)  # no block fits
    assert got.flatten().nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6, 9, 10]


@pytest.mark.usefixtures("other_working_memory")
def test_any_number_of_threads(engine) -> None:
    noise = noise_of(300, (14, 14)).to(engine.device)
    before, want = torch.get_num_threads(), block_masking(300, 14, 75, noise=noise)
    try:
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            assert torch.equal(block_masking(300, 14, 75, noise=noise), want)
    finally:
        torch.set_num_threads(before)


def test_non_contiguous_inputs(engine) -> None:
    noise, counts = noise_of(6, (8, 8)).to(engine.device), torch.arange(12, device=engine.device)
    got = block_masking(6, 8, counts[::2], noise=noise.T.contiguous().T)
    assert torch.equal(got, block_masking(6, 8, counts[::2].contiguous(), noise=noise))


def test_the_generator_decides(engine) -> None:
    def draw(seed: int) -> Tensor:
        return block_masking(4, 14, 75, generator=torch.Generator(engine.device).manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert draw(1).device.type == engine.device.type


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def masked(x: Tensor, noise: Tensor) -> Tensor:
        return x * block_masking(2, (4, 5), 9, min_block=2, noise=noise)

    x, noise = torch.randn(2, 4, 5, device=engine.device), noise_of(2, (4, 5)).to(engine.device)
    assert torch.equal(torch.compile(masked, fullgraph=True)(x, noise), masked(x, noise))


def test_shapes_alone_on_the_meta_device() -> None:
    got = block_masking(3, (4, 5), 7, device="meta")
    assert (got.shape, got.dtype, got.device.type) == ((3, 4, 5), torch.bool, "meta")


def test_a_number_outside_counts_as_the_nearest_on_a_gpu(engine) -> None:
    if engine.backend != "cuda":
        pytest.skip("it is named: see below")
    noise = noise_of(4, (5, 6)).to(engine.device)
    got, want = (
        block_masking(4, (5, 6), torch.tensor(counts, device=engine.device), noise=noise)
        for counts in ([-1, 31, 2**40, -(2**62)], [0, 30, 30, 0])
    )
    assert torch.equal(got, want)


def test_large_grids(engine) -> None:
    """Several warps, many words a row; and one that no block's memory holds."""
    noise = noise_of(2, (45, 150)).to(engine.device)
    got = block_masking(2, (45, 150), 3000, noise=noise)
    want = [one_mask(row, (45, 150), 3000, 16, 45 * 150) for row in noise.tolist()]
    assert torch.equal(got.cpu(), torch.tensor(want))
    if engine.backend == "cuda":
        with pytest.raises(RuntimeError, match="patches in rows of 64, got a grid of 7000 x 1"):
            block_masking(1, (7000, 1), 5)


BAD = [
    (dict(batch=0), ValueError, "batch must be at least 1; got 0"),
    (dict(batch=2.0), TypeError, "batch must be an integer; got float"),
    (dict(grid=0), ValueError, "grid must be at least 1; got 0"),
    (dict(grid=(1, 2, 3)), ValueError, "grid must be one integer or two; got 3"),
    (dict(masked=37), ValueError, r"masked must be in \[0, 36\], the patches of the grid; got 37"),
    (dict(masked=-1), ValueError, "got -1"),
    (dict(masked=0.4), TypeError, "masked must be an integer; got float"),
    (dict(masked=torch.tensor([1, 37])), ValueError, r"masked must be in \[0, 37\); got 37"),
    (dict(masked=torch.tensor([1])), ValueError, r"masked must have shape \(2\); got \(1\)"),
    (dict(masked=torch.tensor([0.1, 0.2])), TypeError, "masked must be int64; got torch.float32"),
    (dict(min_block=0), ValueError, "min_block must be at least 1 and at most max_block; got 0 and None"),
    (dict(min_block=9, max_block=8), ValueError, "got 9 and 8"),
    (dict(aspect=2.0), TypeError, "aspect must be two numbers; got 2.0"),
    (dict(aspect=(0, 1)), ValueError, "aspect must be finite and above 0; got 0"),
    (dict(aspect=(2, 1)), ValueError, r"aspect must be \(least, largest\); got \(2.0, 1.0\)"),
    (dict(grid=6.0), TypeError, "grid must be an integer; got float"),
    (dict(masked=torch.tensor([1, -1])), ValueError, r"masked must be in \[0, 37\); got -1"),
    (dict(masked=torch.tensor([1, 2], device="meta")), ValueError, "masked must be on cpu; got meta"),
    (dict(min_block=2.5), TypeError, "min_block must be an integer; got float"),
    (dict(max_block="9"), TypeError, "max_block must be an integer; got str"),
    (dict(aspect=(1, float("inf"))), ValueError, "aspect must be finite and above 0; got inf"),
    (dict(noise=[0.5]), TypeError, "noise must be a tensor; got list"),
    (
        dict(generator=torch.Generator(), device="cuda"),
        ValueError,
        "generator is on cpu, and device=cuda was asked for",
    ),
    (dict(generator=0), TypeError, "generator must be a torch.Generator; got int"),
    (dict(noise=torch.rand(2, 36)), ValueError, r"noise must have shape \(2, 164\); got \(2, 36\)"),
    (dict(noise=torch.rand(2, 164).double()), TypeError, "noise must be float32; got torch.float64"),
    (dict(noise=torch.rand(2, 164), device="cuda"), ValueError, "noise is on cpu, and device=cuda was asked for"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        block_masking(**{"batch": 2, "grid": 6, "masked": 10, **change})  # type: ignore[arg-type]
