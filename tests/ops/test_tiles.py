"""Tiles against slices of each image by itself, on every engine."""

from __future__ import annotations

import pytest
import torch
from beyond_32_bits import zeros
from torch import Tensor

from fastssl.ops import tiles
from fastssl.ops.tiles import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "cuda")
pytestmark = pytest.mark.usefixtures("made_on_the_engine")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# images, grid, size
CASES = [
    ((1, 1, 1, 1), (1, 1), None),
    ((2, 3, 7, 9), (2, 2), (2, 3)),
    ((3, 3, 32, 32), (3, 3), (8, 8)),
    ((1, 2, 13, 31), (1, 5), (11, 1)),
    ((5, 1, 17, 16), (4, 3), None),
    ((2, 4, 75, 73), (3, 2), (20, 35)),
    ((1, 1, 123, 252), (2, 5), (59, 41)),
    ((1, 2, 39, 507), (1, 4), None),
]


def images_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(shape[2]), device="cpu") * 3 + 1
    return drawn.to(torch.get_default_device(), dtype)


def cells_of(shape: tuple[int, ...], grid: tuple[int, int]) -> tuple[int, int]:
    return shape[2] // grid[0], shape[3] // grid[1]


def definition(images: Tensor, grid: tuple[int, int], order: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """A slice at a time. The grid is in the middle of what does not divide."""
    cell = cells_of(images.shape, grid)
    border = [(images.shape[2 + axis] - grid[axis] * cell[axis]) // 2 for axis in (0, 1)]
    samples = []
    for image, wanted, places in zip(images, order.tolist(), offsets.tolist(), strict=True):
        taken = []
        for number in wanted:
            row, column = divmod(number, grid[1])
            top = border[0] + row * cell[0] + places[number][0]
            left = border[1] + column * cell[1] + places[number][1]
            taken.append(image[:, top : top + size[0], left : left + size[1]])
        samples.append(torch.stack(taken))
    return torch.stack(samples)


def normalized(cut: Tensor) -> Tensor:
    wide = cut.double()
    return torch.nn.functional.instance_norm(wide.flatten(0, 1)).view(cut.shape)


def drawn(shape: tuple[int, ...], grid: tuple[int, int], size: tuple[int, int], k: int) -> tuple[Tensor, Tensor]:
    """An order of k cells, some twice, and offsets."""
    generator, count, cell = torch.Generator().manual_seed(k), grid[0] * grid[1], cells_of(shape, grid)
    order = torch.randint(count, (shape[0], k), generator=generator, device="cpu")
    limits = [cell[axis] - size[axis] + 1 for axis in (0, 1)]
    room = [torch.randint(limit, (shape[0], count), generator=generator, device="cpu") for limit in limits]
    there = torch.get_default_device()
    return order.to(there), torch.stack(room, -1).to(there)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "grid", "size"), CASES, ids=[str(c[0]) for c in CASES])
def test_are_the_slices(engine, shape, grid, size, dtype: torch.dtype) -> None:
    images, size = images_of(shape, dtype), size or cells_of(shape, grid)
    for k in (1, 2, grid[0] * grid[1]):
        order, offsets = drawn(shape, grid, size, k)
        got = tiles(images, grid, order, size=size, offsets=offsets)
        assert got.dtype == dtype
        assert torch.equal(got, definition(images, grid, order, offsets, size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "grid", "size"), CASES, ids=[str(c[0]) for c in CASES])
def test_normalized_with_at_most_twice_the_error_of_plain_torch(engine, shape, grid, size, dtype: torch.dtype) -> None:
    images, size = images_of(shape, dtype), size or cells_of(shape, grid)
    if size == (1, 1):
        assert tiles(images, grid, normalize=True).eq(0).all()
        return
    order, offsets = drawn(shape, grid, size, 4)
    want = normalized(definition(images.double(), grid, order, offsets, size))
    got = tiles(images, grid, order, size=size, offsets=offsets, normalize=True)
    plain = reference(images, order, offsets, *grid, *size, True)
    assert got.dtype == dtype
    rounding = torch.finfo(dtype).eps
    assert (got - want).norm() <= 2 * (plain - want).norm() + rounding * want.norm() / 10
    # in float64 what is compared with is rounded too
    allowed = (32 if dtype == torch.float64 else 4) * rounding * max(1.0, float(want.abs().max()))
    assert (got - want).abs().max() <= allowed


def test_without_more_all_cells_in_their_order(engine) -> None:
    images = images_of((2, 3, 10, 16))
    got = tiles(images, (3, 4))
    assert got.shape == (2, 12, 3, 3, 4)
    for i in range(12):  # 10 rows are 3 cells of 3 and one left over, below
        top, left = i // 4 * 3, i % 4 * 4
        assert torch.equal(got[:, i], images[:, :, top : top + 3, left : left + 4])
    assert torch.equal(tiles(images, 2), tiles(images, (2, 2)))


def test_tiles_smaller_than_their_cells_are_in_the_middle(engine) -> None:
    images = images_of((1, 1, 9, 9))
    assert torch.equal(tiles(images, 1, size=3)[0, 0], images[0, :, 3:6, 3:6])
    assert torch.equal(tiles(images, 3, size=1)[0, :, 0, 0, 0], images[0, 0, 1::3, 1::3].flatten())


def test_more_pixels_than_32_bits_count(engine) -> None:
    images = zeros(1, 3, 27_000, 27_000, dtype=torch.float16, device=engine.device)
    first, last = images_of((2, 3, 27, 27), torch.float16)
    images[0, :, :27, :27], images[0, :, -27:, -27:] = first, last
    got = tiles(images, 1_000, torch.tensor([999_999, 0, 500_500]))
    assert torch.equal(got, torch.stack([last, first, torch.zeros_like(first)])[None])


def test_one_order_for_all_images(engine) -> None:
    images, order = images_of((3, 2, 8, 8)), torch.tensor([3, 0, 0])
    assert torch.equal(tiles(images, 2, order), tiles(images, 2, order.repeat(3, 1)))


def test_jitter_moves_each_tile_in_its_cell(engine) -> None:
    """Images whose pixels say where they are."""
    rows, columns = torch.meshgrid(torch.arange(27.0), torch.arange(27.0), indexing="ij")
    images = torch.stack([rows, columns]).expand(400, 2, 27, 27)
    got = tiles(images, 3, size=5, jitter=1, generator=torch.Generator(engine.device).manual_seed(0))
    again = tiles(images, 3, size=5, jitter=1, generator=torch.Generator(engine.device).manual_seed(0))
    other = tiles(images, 3, size=5, jitter=1, generator=torch.Generator(engine.device).manual_seed(1))
    assert torch.equal(got, again)
    assert not torch.equal(got, other)
    corner = got[:, :, :, 0, 0].long()
    middle = torch.stack([torch.arange(9) // 3, torch.arange(9) % 3], -1) * 9 + 2
    moved = corner - middle
    assert moved.aminmax() == (-1, 1)
    shares = torch.stack([(moved == step).float().mean(0) for step in (-1, 0, 1)])
    assert (shares - 1 / 3).abs().max() < 6 * (2 / 9 / 400) ** 0.5
    steps = torch.arange(5.0)
    assert torch.equal(got[:, :, 0, :, 0] - got[:, :, 0, :1, 0], steps.expand(400, 9, 5))


def test_normalized_tiles(engine) -> None:
    images = images_of((4, 3, 30, 30))
    images[0, 1] = 7.25  # a constant is 0, not 0 / 0
    got = tiles(images, 3, size=8, normalize=True).double()
    assert got[0, :, 1].eq(0).all()
    rest = got[1:]
    assert rest.mean((-2, -1)).abs().max() < 1e-6
    torch.testing.assert_close(rest.var((-2, -1), correction=0), torch.ones(3, 9, 3).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalized_tiles_whose_rows_lie_on_16_bytes(engine, dtype: torch.dtype) -> None:
    """A GPU's kernel moves these in packs, and keeps them in the block's memory meanwhile."""
    images = images_of((2, 3, 48, 48), dtype)
    got, want = tiles(images, 3, normalize=True).double(), normalized(tiles(images, 3))
    assert (got - want).abs().max() <= 4 * max(torch.finfo(dtype).eps, 1e-7) * want.abs().max()


def test_large_means_lose_no_digits(engine) -> None:
    images = images_of((2, 3, 64, 64)).double() + 1e4
    want = normalized(
        definition(images.float(), (2, 2), torch.arange(4).expand(2, 4), torch.zeros(2, 4, 2).long(), (32, 32))
    )
    got = tiles(images.float(), 2, normalize=True)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_stay_in_their_tile_and_channel(engine, value: float) -> None:
    images = images_of((2, 3, 12, 12))
    images[1, 2, 7, 7] = value
    got = tiles(images, 2, normalize=True)
    assert got[1, 3, 2].isnan().all()
    assert int(got.isnan().sum()) == 36
    plain = tiles(images, 2)
    assert int((~plain.isfinite()).sum()) == 1


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    images = images_of((9, 3, 75, 76))
    before, want = torch.get_num_threads(), tiles(images, 3, size=21, normalize=True)
    try:
        for threads in (1, 2, 3, 64, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            assert torch.equal(tiles(images, 3, size=21, normalize=True), want)
    finally:
        torch.set_num_threads(before)


def test_non_contiguous_inputs(engine) -> None:
    images = images_of((4, 3, 12, 10))
    order, offsets = drawn((4, 3, 12, 10), (2, 2), (3, 4), 3)
    want = tiles(images, 2, order, size=(3, 4), offsets=offsets)
    got = tiles(
        images.to(memory_format=torch.channels_last),
        2,
        order.T.contiguous().T,
        size=(3, 4),
        offsets=offsets.mT.contiguous().mT,
    )
    assert torch.equal(got, want)


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def step(images: Tensor, order: Tensor) -> Tensor:
        return tiles(images * 2, 2, order, size=4, normalize=True) + 1

    images, order = images_of((3, 2, 10, 11)), torch.tensor([[0, 3], [1, 1], [2, 0]])
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(images, order), step(images, order))


def test_shapes_alone_on_the_meta_device() -> None:
    images, order = torch.empty(2, 3, 9, 9, device="meta").half(), torch.empty(2, 5, device="meta").long()
    got = tiles(images, 3, order, size=2)
    assert (got.shape, got.dtype) == ((2, 5, 3, 2, 2), torch.float16)


def test_a_backward_is_refused(engine) -> None:
    images = images_of((1, 1, 4, 4)).requires_grad_()
    with pytest.raises(RuntimeError, match="tiles: gradients are not supported"):
        tiles(images, 2).sum().backward()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bad", [-1, 9, 2**40, -(2**62)])
def test_an_index_outside_is_a_tile_of_nan_on_a_gpu(engine, bad: int, normalize: bool) -> None:
    if engine.backend != "cuda":
        pytest.skip("it is named: see below")
    images = images_of((2, 3, 12, 15))
    order, offsets = drawn((2, 3, 12, 15), (3, 3), (2, 3), 4)
    want = tiles(images, 3, order, size=(2, 3), offsets=offsets, normalize=normalize)
    want[1, 2] = float("nan")
    order[1, 2] = bad
    got = tiles(images, 3, order, size=(2, 3), offsets=offsets, normalize=normalize)
    torch.testing.assert_close(got, want, equal_nan=True, rtol=0, atol=0)
    for axis in (0, 1):
        places = offsets.clone()
        places[1, :, axis] = bad
        got = tiles(images, 3, order, size=(2, 3), offsets=places, normalize=normalize)
        assert got[1].isnan().all()
        torch.testing.assert_close(got[0], want[0], rtol=0, atol=0)


def test_tiles_at_any_place_and_larger_than_the_memory_of_a_block(engine) -> None:
    """Aligned and not, in one call; and of 240 x 232 pixels."""
    images = images_of((2, 2, 480, 464))
    for size, column in (((240, 232), 0), ((64, 64), 8), ((64, 64), 3)):
        offsets = torch.tensor([0, column]).repeat(2, 4, 1)
        want = definition(images, (2, 2), torch.arange(4).repeat(2, 1), offsets, size)
        got = tiles(images, 2, size=size, offsets=offsets)
        assert torch.equal(got, want)
        got = tiles(images, 2, size=size, offsets=offsets, normalize=True)
        torch.testing.assert_close(got.double(), normalized(want), rtol=1e-4, atol=1e-5)


X, ORDER, OFFSETS = torch.zeros(2, 3, 9, 12), torch.zeros(2, 4).long(), torch.zeros(2, 9, 2).long()
BAD = [
    (dict(images=[1.0]), TypeError, "images must be a tensor; got list"),
    (dict(images=X.byte()), TypeError, "images must be float32.*got torch.uint8"),
    (dict(images=X[0]), ValueError, r"images must have shape \(N, C, H, W\); got \(3, 9, 12\)"),
    (dict(images=X[:0]), ValueError, "at least one image, channel and pixel"),
    (dict(grid=0), ValueError, "grid must be at least 1; got 0"),
    (dict(grid=(3, 2.0)), TypeError, "grid must be an integer; got float"),
    (dict(grid=(3, 2, 1)), ValueError, "grid must be one integer or two; got 3"),
    (dict(size=(3, 3, 3)), ValueError, "size must be one integer or two; got 3"),
    (dict(size=3.0), TypeError, "size must be an integer; got float"),
    (dict(jitter=1.0), TypeError, "jitter must be an integer; got float"),
    (dict(offsets=[0]), TypeError, "offsets must be a tensor; got list"),
    (dict(offsets=OFFSETS.to("meta")), ValueError, "images and offsets must be on one device; got cpu and meta"),
    (dict(normalize=1), TypeError, "normalize must be True or False; got int"),
    (dict(generator=3), TypeError, "generator must be a torch.Generator; got int"),
    (dict(grid=(10, 2)), ValueError, r"a grid of 10 x 2 needs as many pixels; got images \(2, 3, 9, 12\)"),
    (dict(size=(3, 5)), ValueError, "size must fit into a cell of 3 x 4; got 3 x 5"),
    (dict(size=0), ValueError, "size must be at least 1; got 0"),
    (dict(jitter=1), ValueError, r"jitter must be in \[0, 0\], for a tile has 0 x 1 pixels to move in; got 1"),
    (dict(jitter=-1, size=1), ValueError, r"jitter must be in \[0, 1\].*got -1"),
    (dict(jitter=1, size=1, offsets=OFFSETS), ValueError, "jitter must be 0; got 1"),
    (dict(offsets=OFFSETS.int()), TypeError, "offsets must be int64; got torch.int32"),
    (dict(offsets=OFFSETS[:, :4]), ValueError, r"offsets must have shape \(2, 9, 2\); got \(2, 4, 2\)"),
    (dict(offsets=OFFSETS + 1), ValueError, r"offsets' rows must be in \[0, 1\); got 1"),
    (dict(offsets=OFFSETS - torch.tensor([0, 1])), ValueError, r"offsets' columns must be in \[0, 2\); got -1"),
    (dict(order=[0]), TypeError, "order must be a tensor; got list"),
    (dict(order=ORDER.float()), TypeError, "order must be int64; got torch.float32"),
    (dict(order=ORDER[:1]), ValueError, r"order must have shape \(K\) or \(2, K\), K > 0; got \(1, 4\)"),
    (dict(order=ORDER[:, :0]), ValueError, "K > 0"),
    (dict(order=ORDER.to("meta")), ValueError, "images and order must be on one device; got cpu and meta"),
    (dict(order=ORDER + 9), ValueError, r"order must be in \[0, 9\); got 9"),
    (dict(order=ORDER - 1), ValueError, "got -1"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = dict(images=X, grid=3, size=(3, 3))
    with pytest.raises(error, match=message):
        tiles(**{**arguments, **change})  # type: ignore[arg-type]
