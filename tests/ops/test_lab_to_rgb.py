"""CIELAB to sRGB against its formula in float64 and scikit-image, on every engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastssl.ops import lab_to_rgb, rgb_to_lab
from fastssl.ops.lab_to_rgb import reference  # type: ignore[attr-defined]

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
    """Half of them in the gamut, half anywhere."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    offset, scale = torch.tensor([0.0, -100.0, -100.0]), torch.tensor([100.0, 200.0, 200.0])
    anywhere = offset[:, None, None] + scale[:, None, None] * x.flip(-1)
    return torch.where(x[..., :1, :, :] < 0.5, rgb_to_lab(x, backend="reference"), anywhere).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_at_most_twice_the_error_of_plain_torch(engine, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = colours(shape, dtype).to(engine.device)
    want = reference(x.double())
    got = lab_to_rgb(x)
    assert (got.shape, got.dtype) == (x.shape, dtype)
    error, plain = ((y.double() - want).abs().max() for y in (got, reference(x)))
    # of few pixels, which of the two is nearer is chance; in float64 plain torch is what both are held against
    chance = 8 * torch.finfo(torch.float32).eps if dtype != torch.float64 else 160 * torch.finfo(dtype).eps
    assert error <= 2 * plain + chance


def test_equals_scikit_image(engine) -> None:
    color = pytest.importorskip("skimage.color")
    x = colours((3, 128, 128), torch.float32)
    want = torch.from_numpy(color.lab2rgb(x.permute(1, 2, 0).double().numpy())).permute(2, 0, 1)
    torch.testing.assert_close(lab_to_rgb(x.to(engine.device)).cpu().double(), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-5), (torch.float64, 1e-9)])
def test_is_the_inverse(engine, dtype: torch.dtype, close: float) -> None:
    levels = torch.linspace(0, 1, 18, dtype=dtype)
    rgb = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).view(3, 18, -1).to(engine.device)
    # the curves' two halves do not quite meet in the standard
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, rtol=0, atol=close + 2e-6)


def test_out_of_gamut_is_clamped(engine) -> None:
    lab = torch.tensor([[50.0, 150, 0], [110, 0, 0], [-10, 0, 0], [5, 0, 128], [50, -128, -128]])
    x = lab.T.reshape(3, 5, 1).to(engine.device)
    got = lab_to_rgb(x)
    assert got.min() == 0
    assert got.max() == 1
    torch.testing.assert_close(got.double(), reference(x.double()), rtol=0, atol=2e-6)


def test_both_sides_of_the_thresholds(engine) -> None:
    """Grey levels through the linear parts: L of 8 in Lab, linear light of 0.0031308 in sRGB."""
    level = torch.cat([torch.linspace(0, 10, 2001), torch.linspace(2.7, 2.9, 101)])
    x = torch.stack([level, torch.zeros_like(level), torch.zeros_like(level)])[:, None].to(engine.device)
    torch.testing.assert_close(lab_to_rgb(x).double(), reference(x.double()), rtol=2e-6, atol=2e-6)


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    x = colours((3, 3, 70, 71), torch.float32).to(engine.device)
    before, want = torch.get_num_threads(), lab_to_rgb(x)
    try:
        for threads in (1, 2, 3, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            assert torch.equal(lab_to_rgb(x), want)
    finally:
        torch.set_num_threads(before)


def test_non_contiguous_inputs(engine) -> None:
    x = colours((4, 3, 10, 12), torch.float32).to(engine.device)
    want = lab_to_rgb(x)
    # torch's own powers differ a little between whole vectors and the rest
    close = 1e-3 if engine.backend == "reference" else 0.0
    for view in (lambda y: y.to(memory_format=torch.channels_last), lambda y: y[::2, :, 1:, ::3], lambda y: y.mT):
        torch.testing.assert_close(lab_to_rgb(view(x)), view(want), rtol=0, atol=close)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_stay_in_their_pixel(engine, value: float, dtype: torch.dtype) -> None:
    x = colours((2, 3, 9, 9), dtype).to(engine.device)
    for channel in range(3):
        bad = x.clone()
        bad[1, channel, 4, 5] = value
        got = lab_to_rgb(bad)
        elsewhere = torch.ones(2, 9, 9, dtype=torch.bool, device=engine.device)
        elsewhere[1, 4, 5] = False
        assert got.movedim(1, -1)[elsewhere].isfinite().all()
        if value != value:
            assert got[1, :, 4, 5].isnan().any()


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def convert(x: Tensor) -> Tensor:
        return lab_to_rgb(x * 0.5) + 1

    x = colours((2, 3, 8, 9), torch.float32).to(engine.device)
    torch.testing.assert_close(torch.compile(convert, fullgraph=True)(x), convert(x))


def test_gradients_are_refused(engine) -> None:
    x = colours((2, 3, 4, 4), torch.float32).to(engine.device).requires_grad_()
    with pytest.raises(RuntimeError, match="lab_to_rgb: gradients are not supported"):
        lab_to_rgb(x).sum().backward()
    assert not lab_to_rgb(x.detach()).requires_grad


def test_shapes_alone_on_the_meta_device() -> None:
    x = torch.empty(2, 3, 4, 5, dtype=torch.float16, device="meta")
    assert (lab_to_rgb(x).shape, lab_to_rgb(x).dtype) == (x.shape, x.dtype)


BAD = [
    ([1.0], TypeError, "lab must be a tensor; got list"),
    (torch.zeros(3, 4, 4, dtype=torch.uint8), TypeError, "lab must be float32.*got torch.uint8"),
    (torch.zeros(4, 4), ValueError, r"lab must have shape \(..., 3, H, W\); got \(4, 4\)"),
    (torch.zeros(4, 4, 3), ValueError, r"got \(4, 4, 3\)"),
    (torch.zeros(0, 3, 4, 4), ValueError, r"must not be empty; got \(0, 3, 4, 4\)"),
]


@pytest.mark.parametrize(("value", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lab_to_rgb(value)  # type: ignore[arg-type]


def test_a_backend_that_cannot_serve_says_so() -> None:
    with pytest.raises(RuntimeError, match="no such backend, only cuda, cpu, reference"):
        lab_to_rgb(torch.zeros(3, 2, 2), backend="triton")
