"""Views against the formula in float64, and against torchvision's, on every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from beyond_32_bits import zeros
from torch import Tensor
from view_helpers import CASES, HEIGHT, WIDTH, committed, image, neutral, params_of, random_params, torchvisions

from benchmarks import rivals
from fastssl import ops
from fastssl.ops import PackedImages, ViewParams, augment
from fastssl.ops.augment import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "cuda")
pytestmark = pytest.mark.usefixtures("made_on_the_engine")
LEVEL = 1 / 255
NEAR = 2e-5  # roundings of float32, of values in [0, 1]


def images_of(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator, device="cpu")
    noise = noise.to(torch.get_default_device())
    noise[1::3] = noise[1::3, :1]  # greys
    noise[2::3] = torch.where(noise[2::3] < 128, 0, 255).byte()  # primaries
    return noise


def exact(images: Tensor, params: ViewParams, sizes: list[int], bicubic: bool = False) -> list[Tensor]:
    """In [0, 1], by the formula in float64."""
    return reference(images, None, *params, sizes, [0.0] * 3, [1.0] * 3, bicubic, torch.float64, False)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize(
    ("count", "height", "width", "size"),
    [(1, 1, 1, 1), (2, 1, 1, 5), (3, 9, 1, 4), (2, 1, 40, 3), (5, 12, 12, 12), (7, 33, 61, 17), (3, 90, 100, 7),
     (4, 10, 8, 67), (3, 48, 36, 112), (1, 400, 3, 2), (2, 50, 60, 200)],
)  # fmt: skip
def test_everything_at_once_is_the_formula(engine, count: int, height: int, width: int, size: int, bicubic) -> None:
    images, params = images_of(count, height, width), random_params(2, count, height, width, seed=size)
    got = augment(images, params, size, interpolation="bicubic" if bicubic else "bilinear")
    for view, want in zip(got, exact(images, params, [size, size], bicubic), strict=True):
        assert view.shape == (count, 3, size, size)
        assert (view - want).abs().max() < 2 * NEAR


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flip": True},
        *({"factors": torch.where(torch.arange(4) == i, x, torch.tensor([1.0, 1, 1, 0]))}
          for i, x in ((0, 0.3), (0, 1.9), (1, 0.3), (1, 1.9), (2, 0.0), (2, 1.9), (3, -0.5), (3, 0.31))),
        {"gray": True},
        {"solarize": True},
        {"sigma": 0.3},
        {"sigma": 1.5},
        {"sigma": 1e4},
        {"sigma": 1e-44},
    ],
    ids=str,
)  # fmt: skip
def test_each_step_is_the_formula(engine, changes: dict[str, object]) -> None:
    images = images_of(3, 40, 40)
    params = neutral(1, 3, 40, 40, **changes)
    (got,) = augment(images, params, 40)
    (want,) = exact(images, params, [40])
    assert (got - want).abs().max() < NEAR
    changed = float((want - images / 255).abs().max())
    assert changed > 0.01 or changes in ({}, {"sigma": 1e-44})


@pytest.mark.one_isa
@pytest.mark.parametrize("size", [390, 700])
def test_large_views_by_a_wide_blur(engine, size: int) -> None:
    """The GPU's kernel cuts them into strips of 32 and 16 columns."""
    images, params = images_of(1, 7, 9), neutral(1, 1, 7, 9, rot90=1, sigma=size / 100)
    (got,) = augment(images, params, size)
    (want,) = exact(images, params, [size])
    assert (got - want).abs().max() < NEAR


@pytest.mark.parametrize("size", [1, 5, 16, 37])
def test_neutral_parameters_give_the_image_back(engine, size: int) -> None:
    images = images_of(3, size, size)
    (view,) = augment(images, neutral(1, 3, size, size), size, std=(LEVEL,) * 3)
    torch.testing.assert_close(view, images.float(), rtol=2e-7, atol=0)
    assert torch.equal(view.round(), images.float())


def test_crops_at_the_borders_are_parts_of_the_image(engine) -> None:
    images = images_of(4, 20, 30)
    corners = torch.tensor([[0, 0], [0, 23], [13, 0], [13, 23]])
    crop = torch.cat([corners, torch.full((4, 2), 7)], 1)
    (view,) = augment(images, neutral(1, 4, 20, 30, crop=crop), 7)
    for i, (top, left) in enumerate(corners.tolist()):
        part = images[i, :, top : top + 7, left : left + 7] / 255
        torch.testing.assert_close(view[i], part, rtol=2e-7, atol=0)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_quarter_turns_come_after_the_flip(engine, turns: int, flip: bool) -> None:
    images, crop = images_of(3, 19, 23), [3, 2, 14, 20]
    (upright,) = augment(images, neutral(1, 3, 19, 23, crop=crop, flip=flip), 17)
    (plain,) = augment(images, neutral(1, 3, 19, 23, crop=crop), 17)
    (turned,) = augment(images, neutral(1, 3, 19, 23, crop=crop, flip=flip, rot90=turns), 17)
    torch.testing.assert_close(upright, plain.flip(3) if flip else plain, rtol=0, atol=NEAR)
    torch.testing.assert_close(turned, upright.rot90(turns, (2, 3)), rtol=0, atol=NEAR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [3, 32, 43])
def test_every_type_and_layout_is_the_same_view_rounded_once(engine, dtype, channels_last: bool, size: int) -> None:
    images, params = images_of(5, 30, 31), random_params(2, 5, 30, 31)
    settings = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    plain = augment(images, params, size, **settings)
    got = augment(images, params, size, dtype=dtype, channels_last=channels_last, **settings)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for view, want, raw in zip(got, plain, exact(images, params, [size, size]), strict=True):
        assert view.dtype == dtype
        assert view.is_contiguous(memory_format=layout)
        assert torch.equal(view, want.to(dtype))
        means, stds = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
        assert (want - (raw - means) / stds).abs().max() < 10 * NEAR


def test_large_views_are_written_past_the_caches_all_the_same(engine) -> None:
    images, params = images_of(11, 60, 50), random_params(1, 11, 60, 50)
    (view,) = augment(images, params, 384)
    for i in (0, 10):
        (one,) = augment(images[i : i + 1], ViewParams(*(x[:, i : i + 1] for x in params)), 384)
        assert torch.equal(view[i], one[0]) or engine.backend == "reference"
        torch.testing.assert_close(view[i], one[0], rtol=0, atol=NEAR)


def test_images_in_any_layout(engine) -> None:
    images, params = images_of(4, 18, 22), random_params(1, 4, 18, 22)
    (want,) = augment(images, params, 12)
    wide = torch.zeros(4, 5, 20, 44, dtype=torch.uint8)
    wide[:, 1:4, 1:19, ::2] = images
    fours = torch.zeros(4, 18, 22, 4, dtype=torch.uint8)
    fours[..., :3] = images.movedim(1, 3)
    layouts = {
        "channels last": images.to(memory_format=torch.channels_last),
        "(N, H, W, 3)": images.movedim(1, 3).contiguous(),
        "a part": wide[:, 1:4, 1:19, ::2],
        "columns first": images.mT.contiguous().mT,
        "four channels": fours[..., :3],
    }
    for name, x in layouts.items():
        (got,) = augment(x, params, 12)
        torch.testing.assert_close(got, want, rtol=0, atol=NEAR, msg=lambda m, name=name: f"{name}: {m}")
    (got,) = augment(images[:1].expand(4, -1, -1, -1), params, 12)
    (want,) = augment(images[:1].repeat(4, 1, 1, 1), params, 12)
    assert torch.equal(got, want)


def test_parameters_in_any_layout(engine) -> None:
    images, params = images_of(4, 18, 22), random_params(2, 4, 18, 22)
    moved = ViewParams(*(x.transpose(0, 1).contiguous().transpose(0, 1) for x in params))
    for got, want in zip(augment(images, moved, 12), augment(images, params, 12), strict=True):
        assert torch.equal(got, want)


def test_views_of_several_sizes_in_one_call(engine) -> None:
    images, params = images_of(5, 40, 40), random_params(4, 5, 40, 40)
    sizes = [24, 24, 9, 9]
    views = augment(images, params, sizes)
    assert [view.shape[2] for view in views] == sizes
    for v, view in enumerate(views):
        (alone,) = augment(images, ViewParams(*(x[v : v + 1] for x in params)), sizes[v])
        assert torch.equal(view, alone)


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    images, params = images_of(23, 50, 60), random_params(1, 23, 50, 60)
    before, (want,) = torch.get_num_threads(), augment(images, params, 48)
    try:
        for threads in (1, 2, 3, 64, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            assert torch.equal(augment(images, params, 48)[0], want)
    finally:
        torch.set_num_threads(before)


def packed(parts: list[Tensor]) -> PackedImages:
    """(3, H, W) images with seven bytes before each."""
    gap = torch.full((7,), 99, dtype=torch.uint8)
    pieces = [x for part in parts for x in (gap, part.movedim(0, 2).flatten())]
    lengths = torch.tensor([part.numel() + 7 for part in parts])
    shapes = torch.tensor([part.shape[1:] for part in parts])
    return PackedImages(torch.cat(pieces), lengths.cumsum(0) - lengths + 7, shapes[:, 0], shapes[:, 1])


def test_packed_images_of_different_sizes(engine) -> None:
    parts = [images_of(1, *shape)[0] for shape in ((5, 9), (1, 1), (40, 17), (31, 64))]
    each = [random_params(2, 1, *part.shape[1:], seed=i) for i, part in enumerate(parts)]
    params = ViewParams(*(torch.cat(columns, 1) for columns in zip(*each, strict=True)))
    views = augment(packed(parts), params, [13, 20])
    for i, part in enumerate(parts):
        for view, want in zip(views, augment(part[None], each[i], [13, 20]), strict=True):
            torch.testing.assert_close(view[i : i + 1], want, rtol=0, atol=NEAR)


def test_more_pixels_than_32_bits_count(engine) -> None:
    if engine.backend == "reference":
        pytest.skip("its matrices would be as long as the image")
    images, corner = zeros(1, 3, 27_000, 27_000, dtype=torch.uint8, device=engine.device), images_of(1, 27, 27)
    images[:, :, -27:, -27:] = corner
    (view,) = augment(images, neutral(1, 1, 27, 27, crop=[27_000 - 27] * 2 + [27] * 2), 27)
    torch.testing.assert_close(view, corner / 255, rtol=2e-7, atol=0)


@pytest.mark.parametrize("made_by", ["committed", "installed"])
def test_views_are_torchvisions(engine, made_by: str) -> None:
    """In float to rounding; to a level where it rounds to bytes between its steps, two for the blur and saturation."""
    if made_by == "installed":
        try:
            functional = rivals.load("torchvision.transforms.v2.functional")
        except rivals.NotInstalledError as missing:
            pytest.skip(str(missing))
        wanted = torchvisions(functional)
    else:
        wanted = committed()
    assert {name.partition(" ")[2] for name in wanted} == set(CASES)
    for name, want in wanted.items():
        kind, _, key = name.partition(" ")
        drawn = CASES[key]
        how = "bicubic" if drawn["bicubic"] else "bilinear"
        (view,) = augment(image()[None], params_of(drawn), drawn["size"], interpolation=how)
        want = want.to(view.device)
        if kind == "float":
            assert (view[0] - want).abs().max() < 2 * NEAR, name
        else:
            # of saturation it cuts off the fraction of the grey, and then of the blend
            levels = 2 if "sigma" in drawn or key.startswith("step 2 ") else 1
            assert ((view[0] * 255).round() - want).abs().max() <= levels, name


def test_under_compile(engine) -> None:
    def step(images: Tensor, params: ViewParams) -> Tensor:
        first, second = augment(images, params, (6, 4), dtype=torch.bfloat16)
        return first.sum() + second.sum()

    images, params = images_of(3, 10, 11), random_params(2, 3, 10, 11)
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(images, params), step(images, params))


def test_shapes_alone_on_the_meta_device() -> None:
    params = ViewParams(*(x.to("meta") for x in random_params(2, 3, 9, 8)))
    first, second = augment(torch.empty(3, 9, 8, 3, dtype=torch.uint8, device="meta"), params, [7, 4], dtype=torch.half)
    assert (first.shape, second.shape, first.dtype) == ((3, 3, 7, 7), (3, 3, 4, 4), torch.float16)


def test_a_backward_is_refused(engine) -> None:
    params = neutral(1, 1, 4, 4)
    params.factors.requires_grad_()
    with pytest.raises(RuntimeError, match="augment: gradients are not supported"):
        augment(images_of(1, 4, 4), params, 4)[0].sum().backward()


def test_only_the_reference_gives_float64() -> None:
    images, params = images_of(2, 6, 6), random_params(1, 2, 6, 6)
    assert augment(images, params, 4, dtype=torch.float64)[0].dtype == torch.float64
    assert "asked for torch.float64" in ops.explain(augment, images, params, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="it gives float32, bfloat16 and float16"):
        augment(images, params, 4, dtype=torch.float64, backend="cpu")


OUTSIDE = [
    {"crop": [-1, 0, 9, 12]},
    {"crop": [0, 1, 9, 12]},
    {"crop": [1, 0, 9, 12]},
    {"crop": [0, 0, 0, 12]},
    {"crop": [0, 0, 9, -1]},
    {"crop": [2**63 - 1, 0, 2, 2]},
    {"rot90": 4},
    {"rot90": -1},
    {"order": [0, 1, 2, 4]},
    {"order": [0, 0, 1, 1]},
    *({"factors": [1.0, x, 1.0, 0.0]} for x in (-1.0, float("inf"), float("nan"))),
    *({"factors": [1.0, 1.0, 1.0, x]} for x in (0.6, -0.6, float("nan"))),
    *({"sigma": x} for x in (-1.0, float("inf"), float("nan"))),
]


@pytest.mark.one_isa
@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("bad", OUTSIDE, ids=str)
def test_what_is_outside_its_range_is_a_view_of_nan_on_a_gpu(engine, bad: dict[str, Any], size: int) -> None:
    if engine.backend != "cuda":
        pytest.skip("another engine names it")
    images, params = images_of(3, 9, 12), random_params(2, 3, 9, 12)
    (first, second) = augment(images, params, size)
    for name, value in bad.items():
        getattr(params, name)[1, 1] = torch.tensor(value)
    (same, changed) = augment(images, params, size)
    assert torch.equal(same, first)
    assert changed[1].isnan().all()
    assert torch.equal(changed[::2], second[::2])


@pytest.mark.one_isa
@pytest.mark.parametrize(
    "place", [(325, 9, 12), (-1, 9, 12), (0, 0, 12), (0, 9, -12), (0, 1, 2**62), (0, 2**40, 2**40)]
)
def test_a_place_beyond_the_bytes_is_a_view_of_nan_on_a_gpu(engine, place: tuple[int, int, int]) -> None:
    if engine.backend != "cuda":
        pytest.skip("another engine names it")
    images = PackedImages(
        images_of(2, 9, 12).movedim(1, 3).flatten(),
        torch.tensor([0, 324]),
        torch.tensor([9, 9]),
        torch.tensor([12, 12]),
    )
    params = random_params(1, 2, 1, 1)
    (want,) = augment(images, params, 5)
    for column, value in zip(images[1:], place, strict=True):
        column[1] = value
    (got,) = augment(images, params, 5)
    assert got[1].isnan().all()
    assert torch.equal(got[0], want[0])


@pytest.mark.one_isa
def test_a_view_too_large_for_the_gpus_kernel_is_refused_in_words(engine) -> None:
    if not engine.slow:
        pytest.skip("needs no GPU")
    images, params = images_of(1, 2, 2), neutral(1, 1, 2, 2)
    with pytest.raises(RuntimeError, match="it makes views of at most 1680 pixels a side, got 1681"):
        augment(images, params, 1681)


def test_the_image_of_the_cases_is_large_enough() -> None:
    assert image().shape == (3, HEIGHT, WIDTH)
