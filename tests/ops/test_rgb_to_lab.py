"""sRGB to CIELAB against its formula in float64 and scikit-image, on every engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastssl.ops import rgb_to_lab
from fastssl.ops.rgb_to_lab import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [
    (3, 1, 1),
    (1, 3, 1, 7),
    (2, 3, 5, 13),
    (2, 2, 3, 16, 17),
    (3, 3, 46, 45),
    (1, 3, 64, 65),
    (3, 252, 123),
    (3, 1, 507),
]


def colours(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uniform, with dark ones among them: the linear parts of both curves."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return torch.where(x < 0.2, 0.3 * x, x).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_at_most_twice_the_error_of_plain_torch(engine, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = colours(shape, dtype).to(engine.device)
    want = reference(x.double())
    got = rgb_to_lab(x)
    assert (got.shape, got.dtype) == (x.shape, dtype)
    error, plain = ((y.double() - want).abs().max() for y in (got, reference(x)))
    # of few pixels, which of the two is nearer is chance; in float64 plain torch is what both are held against
    chance = 150 * torch.finfo(torch.float32).eps if dtype != torch.float64 else 3000 * torch.finfo(dtype).eps
    assert error <= 2 * plain + chance


def test_equals_scikit_image(engine) -> None:
    color = pytest.importorskip("skimage.color")
    x = colours((3, 128, 128), torch.float32)
    want = torch.from_numpy(color.rgb2lab(x.permute(1, 2, 0).double().numpy())).permute(2, 0, 1)
    torch.testing.assert_close(rgb_to_lab(x.to(engine.device)).cpu().double(), want, rtol=1e-4, atol=2e-4)


def test_known_colours(engine) -> None:
    """Of the standard, to its four digits."""
    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]])
    lab = [
        [100.0, 0, 0],
        [0, 0, 0],
        [53.24, 80.09, 67.20],
        [87.73, -86.18, 83.18],
        [32.30, 79.19, -107.86],
        [53.39, 0, 0],
    ]
    got = rgb_to_lab(rgb.T.reshape(3, 6, 1).to(engine.device))[..., 0].T
    torch.testing.assert_close(got.cpu(), torch.tensor(lab), rtol=0, atol=0.02)


def test_both_sides_of_the_thresholds_and_beyond_the_range(engine) -> None:
    near = torch.tensor([0.04045, 0.008856 * 12.92, 0.0, 1.0], dtype=torch.float64)
    x = (near[:, None] + torch.linspace(-1e-5, 1e-5, 101, dtype=torch.float64)).flatten()
    x = torch.cat([x, torch.tensor([-0.5, -2.0, 1.5, 10.0, 1e-30, -1e-30, 1e4])]).float()
    grid = torch.stack(torch.broadcast_tensors(x[:, None], x, x.flip(0))).to(engine.device)
    want = reference(grid.double())
    torch.testing.assert_close(rgb_to_lab(grid).double(), want, rtol=2e-6, atol=2e-4)


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    x = colours((3, 3, 70, 71), torch.float32).to(engine.device)
    before, want = torch.get_num_threads(), rgb_to_lab(x)
    try:
        for threads in (1, 2, 3, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            assert torch.equal(rgb_to_lab(x), want)
    finally:
        torch.set_num_threads(before)


def test_non_contiguous_inputs(engine) -> None:
    x = colours((4, 3, 10, 12), torch.float32).to(engine.device)
    want = rgb_to_lab(x)
    # torch's own powers differ a little between whole vectors and the rest
    close = 1e-3 if engine.backend == "reference" else 0.0
    for view in (lambda y: y.to(memory_format=torch.channels_last), lambda y: y[::2, :, 1:, ::3], lambda y: y.mT):
        torch.testing.assert_close(rgb_to_lab(view(x)), view(want), rtol=0, atol=close)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_stay_in_their_pixel(engine, value: float, dtype: torch.dtype) -> None:
    x = colours((2, 3, 9, 9), dtype).to(engine.device)
    for channel in range(3):
        bad = x.clone()
        bad[1, channel, 4, 5] = value
        got = rgb_to_lab(bad)
        elsewhere = torch.ones(2, 9, 9, dtype=torch.bool, device=engine.device)
        elsewhere[1, 4, 5] = False
        assert got.movedim(1, -1)[elsewhere].isfinite().all()
        assert not got[1, :, 4, 5].isfinite().all()


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def convert(x: Tensor) -> Tensor:
        return rgb_to_lab(x * 0.5) + 1

    x = colours((2, 3, 8, 9), torch.float32).to(engine.device)
    torch.testing.assert_close(torch.compile(convert, fullgraph=True)(x), convert(x))


def test_gradients_are_refused(engine) -> None:
    x = colours((2, 3, 4, 4), torch.float32).to(engine.device).requires_grad_()
    with pytest.raises(RuntimeError, match="rgb_to_lab: gradients are not supported"):
        rgb_to_lab(x).sum().backward()
    assert not rgb_to_lab(x.detach()).requires_grad


def test_shapes_alone_on_the_meta_device() -> None:
    x = torch.empty(2, 3, 4, 5, dtype=torch.float16, device="meta")
    assert (rgb_to_lab(x).shape, rgb_to_lab(x).dtype) == (x.shape, x.dtype)


BAD = [
    ([1.0], TypeError, "rgb must be a tensor; got list"),
    (torch.zeros(3, 4, 4, dtype=torch.uint8), TypeError, "rgb must be float32.*got torch.uint8"),
    (torch.zeros(4, 4), ValueError, r"rgb must have shape \(..., 3, H, W\); got \(4, 4\)"),
    (torch.zeros(4, 4, 3), ValueError, r"got \(4, 4, 3\)"),
    (torch.zeros(0, 3, 4, 4), ValueError, r"must not be empty; got \(0, 3, 4, 4\)"),
]


@pytest.mark.parametrize(("value", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rgb_to_lab(value)  # type: ignore[arg-type]


def test_a_backend_that_cannot_serve_says_so() -> None:
    with pytest.raises(RuntimeError, match="no such backend, only cuda, cpu, reference"):
        rgb_to_lab(torch.zeros(3, 2, 2), backend="triton")
