"""Context encoders: holes, the loss written out, the discriminator's turns, sharpness, and photos of any size."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import models
from fastssl.data.lab import from_rgb, to_rgb
from fastssl.errors import UserError
from fastssl.methods.inpainting import Inpainting, InpaintingConfig, gradient_magnitude

HOLES = ("center", "block", "region")


def method_of(size: int = 32, **settings: object) -> Inpainting:
    torch.manual_seed(0)
    encoder = models.get("resnet18")(stem="cifar", width=4)
    return Inpainting(encoder, InpaintingConfig(**settings), size)  # type: ignore[arg-type]


def images(batch: int = 4, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rgb = F.interpolate(torch.rand(batch, 3, 4, 4, generator=generator), size=(size, size), mode="bicubic")
    return from_rgb(rgb.clamp(0, 1))


def drawn(method: Inpainting, count: int = 4) -> Tensor:
    """What the method hides at the same seed."""
    torch.manual_seed(7)
    hidden = method.holes(count, torch.device("cpu"))
    torch.manual_seed(7)
    return hidden


@pytest.mark.parametrize("hole", ["block", "region"])
@pytest.mark.parametrize("size", [16, 32, 50])
def test_a_quarter_is_hidden_at_places_drawn_anew(hole: str, size: int) -> None:
    hidden = method_of(size, hole=hole).holes(20, torch.device("cpu"))
    assert hidden.shape == (20, 1, size, size)
    assert hidden.dtype == torch.bool
    torch.testing.assert_close(hidden.float().mean((1, 2, 3)), torch.full((20,), 0.25), atol=0.02, rtol=0)
    assert hidden.flatten(1).unique(dim=0).shape[0] == 20
    assert hidden.float().mean((0, 1)).max() < 0.7  # no place is always hidden
    inner = F.max_pool2d((~hidden).float(), 3, 1, 1) == 0
    assert inner.any()  # holes, not single pixels


def test_the_center_is_half_as_wide_less_a_band_that_is_seen() -> None:
    method = method_of(64, hole="center")
    hidden = drawn(method, 2)
    assert hidden[0, 0].nonzero().aminmax(dim=0).min.tolist() == [18, 18]
    assert hidden[0, 0].nonzero().aminmax(dim=0).max.tolist() == [45, 45]
    assert hidden.sum() == 2 * 28 * 28
    assert torch.equal(hidden[0], hidden[1])
    assert (method.painted.start, method.painted.stop, method.band) == (16, 48, 2)


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("weight", [0.0, 0.001, 0.25])
def test_loss_is_equation_3_with_the_band_counted_tenfold(hole: str, weight: float) -> None:
    method, x = method_of(hole=hole, adversarial_weight=weight), images()
    painted: list[Tensor] = []
    method.decoder.register_forward_hook(lambda _module, _inputs, output: painted.append(output.double().tanh()))
    judged: list[Tensor] = []
    if method.adversary is not None:
        method.adversary.judge.register_forward_hook(lambda _m, inputs, output: judged.extend((*inputs, output)))
    hidden = drawn(method)
    loss = method([x]).item()
    start, stop = method.painted.start, method.painted.stop
    whole = torch.zeros(4, 3, 32, 32, dtype=torch.float64)
    whole[..., start:stop, start:stop] = painted[0]
    truth = 2 * to_rgb(x).double() - 1
    total, pixels = 0.0, 0
    for n in range(4):
        for y in range(32):
            for i in range(32):
                near = hidden[n, 0, max(0, y - 1) : y + 2, max(0, i - 1) : i + 2].any()
                if near:
                    counts = 1 if hidden[n, 0, y, i] else 10
                    total += counts * float((whole[n, :, y, i] - truth[n, :, y, i]).square().sum())
                    pixels += 3
    expected = (1 - weight) * total / pixels
    if weight:
        fake, logits = judged
        expected -= weight * float(torch.sigmoid(logits.double()).log().mean())
        around = F.max_pool2d(hidden.float(), 3, 1, 1).bool()
        filled = torch.where(around, whole, truth)[..., start:stop, start:stop]
        torch.testing.assert_close(fake.double(), filled, atol=1e-6, rtol=0)
    else:
        assert method.adversary is None
    assert loss == pytest.approx(expected, rel=1e-4)


def test_of_the_center_the_discriminator_sees_what_was_painted_alone() -> None:
    method = method_of(hole="center")
    assert method.adversary is not None
    assert method.adversary.judge.size == 16
    method([images()])
    assert method._judged is not None
    assert [x.shape for x in method._judged] == [(4, 3, 16, 16)] * 2
    assert method.holes(1, torch.device("cpu"))[..., 9:23, 9:23].all()


@pytest.mark.parametrize("hole", HOLES)
def test_what_is_hidden_is_not_seen(hole: str) -> None:
    method, x = method_of(hole=hole).eval(), images()
    hidden = drawn(method)
    filled = method.fill(x, hidden)
    assert torch.equal(method.fill(torch.where(hidden, torch.randn_like(x), x), hidden), filled)
    outside = ~hidden.expand_as(x)
    assert torch.equal(filled[outside], x[outside])
    assert (filled - x)[~outside].abs().mean() > 0.05


def test_the_discriminator_takes_a_step_each_turn_and_the_optimizer_leaves_it_alone() -> None:
    method, x = method_of(), images()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    assert method.adversary is not None
    weight = method.adversary.judge.layers[0].weight
    for turn in (1, 2):
        before = weight.clone()
        optimizer.zero_grad()
        method([x]).backward()
        optimizer.step()
        assert torch.equal(weight, before)
        method.after_step(turn / 2)
        assert not torch.equal(weight, before)
        assert method.adversary.steps == turn
        assert method._judged is None
    method.after_step(1.0)
    method.eval()([x])
    method.after_step(1.0)
    assert method.adversary.steps == 2


def test_errors_and_sharpness_are_of_what_was_hidden() -> None:
    method, x = method_of(adversarial_weight=0.0), images()
    hidden = drawn(method).expand(4, 3, 32, 32)
    painted: list[Tensor] = []
    method.decoder.register_forward_hook(lambda _module, _inputs, output: painted.append(output.tanh()))
    method([x])
    noted, truth = method.metrics(0.0, 4), to_rgb(x)
    answer = (painted[0] + 1) / 2
    assert noted["pretext_error"] == pytest.approx((answer - truth)[hidden].square().mean().sqrt().item(), rel=1e-4)
    known = torch.stack([image[:, ~mask[0]].mean(1) for image, mask in zip(truth, hidden, strict=True)])
    error = (known[:, :, None, None] - truth)[hidden].square().mean().sqrt()
    assert noted["constant_error"] == pytest.approx(error.item(), rel=1e-4)
    filled = torch.where(hidden, answer, truth)
    ratio = gradient_magnitude(filled, hidden[:, :1]) / gradient_magnitude(truth, hidden[:, :1])
    assert noted["sharpness"] == pytest.approx(ratio.item(), rel=1e-4)


def test_gradient_magnitude_of_a_slope_and_of_its_blur() -> None:
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    slope = (3 * x + 4 * y).expand(2, 3, 8, 8)
    everywhere = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    assert gradient_magnitude(slope, everywhere).item() == pytest.approx(5)
    noise = torch.rand(2, 3, 8, 8)
    blurred = F.avg_pool2d(noise, 3, 1, 1)
    assert gradient_magnitude(blurred, everywhere) < 0.5 * gradient_magnitude(noise, everywhere)
    corner = torch.zeros_like(everywhere)
    corner[..., :4, :4] = True
    half = torch.where(corner, noise, 0.0)
    torch.testing.assert_close(
        gradient_magnitude(half, F.pad(corner[..., :3, :3], (0, 5, 0, 5))),
        gradient_magnitude(noise, F.pad(corner[..., :3, :3], (0, 5, 0, 5))),
    )


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_loss_falls_on_one_batch(descend, hole: str, precision: torch.dtype) -> None:
    losses = descend(method_of(hole=hole), [images(8)], precision=precision)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.7 * losses[0]


def test_pictures() -> None:
    method, x = method_of().eval(), images()
    hidden = drawn(method)
    shown = method.pictures([x])
    assert list(shown) == ["original", "masked", "filled"]
    assert torch.equal(shown["original"], x)
    assert torch.equal(shown["masked"], x.masked_fill(hidden, 0.0))
    assert torch.equal(shown["filled"], method.fill(x, hidden))


@pytest.mark.parametrize(("size", "side"), [(32, 4), (64, 8), (128, 8)])
def test_no_map_larger_than_the_layer_that_all_places_meet_in(size: int, side: int) -> None:
    method = method_of(size)
    assert method.exchange.side == side
    assert method.fill(images(2, size), method.holes(2, torch.device("cpu"))).shape == (2, 3, size, size)


@pytest.mark.parametrize(("height", "width"), [(100, 140), (40, 36), (20, 90)])
def test_a_hole_in_a_photo_is_filled_and_nothing_else_changes(height: int, width: int) -> None:
    method = method_of().eval()
    photo = torch.rand(1, 3, height, width)
    hidden = torch.zeros(1, 1, height, width, dtype=torch.bool)
    hidden[..., 5:15, 2:20] = True
    hidden[..., 12:19, 10:30] = True
    filled = method.fill_photo(photo, hidden)
    changed = (filled != photo).any(1, keepdim=True)
    assert bool((changed <= hidden).all())
    assert changed[hidden].float().mean() > 0.99
    again = method.fill_photo(torch.where(hidden, torch.rand_like(photo), photo), hidden)
    assert torch.equal(again, filled)
    assert filled.min() >= 0
    assert filled.max() <= 1


@pytest.mark.parametrize("hole", HOLES)
def test_without_a_mask_the_middle_is_filled(hole: str) -> None:
    method = method_of(hole=hole).eval()
    photo = torch.rand(1, 3, 64, 100)
    changed = (method.fill_photo(photo) != photo).any(1)[0]
    assert changed.nonzero().aminmax(dim=0).min.tolist() == [18, 36]
    assert changed.nonzero().aminmax(dim=0).max.tolist() == [45, 63]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hole": "centre"}, "unknown hole of inpainting 'centre': did you mean 'center'"),
        ({"adversarial_weight": 1.0}, r"adversarial_weight of inpainting must lie in \[0, 1\)"),
        ({"adversarial_weight": math.nan}, "adversarial_weight of inpainting must lie"),
        ({"discriminator_lr": 0.0}, "discriminator_lr of inpainting must be a finite number above 0; got 0.0"),
        ({"discriminator_lr": math.inf}, "discriminator_lr of inpainting must be a finite number above 0; got inf"),
    ],
)
def test_refuses_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InpaintingConfig(**settings)  # type: ignore[arg-type]


def test_refuses_images_that_it_was_not_made_for() -> None:
    with pytest.raises(UserError, match="inpainting needs images of at least 16 x 16 pixels; got 15 x 15"):
        Inpainting.view_plan(15)
    with pytest.raises(UserError, match="at least 16 x 16 pixels; got 8 x 8"):
        method_of(8)
    with pytest.raises(ValueError, match="was built for images of 32 x 32 pixels; got 24 x 24"):
        method_of().fill(images(2, 24), torch.zeros(2, 1, 24, 24, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"views must be \(N, 3, H, W\), in colour; got \(2, 1, 32, 32\)"):
        method_of()([torch.zeros(2, 1, 32, 32)])
    with pytest.raises(UserError, match="a SplitEncoder has none: take a resnet"):
        Inpainting(models.get("alexnet_split")(width=4), InpaintingConfig(), 64)
