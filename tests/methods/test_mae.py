"""MAE: what its encoder sees, what its loss counts, its decoder against the authors' way, its pictures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastssl import models
from fastssl.errors import UserError
from fastssl.losses import patchify
from fastssl.methods.mae import MAE, MAEConfig
from fastssl.models.vit import VisionTransformer
from fastssl.ops import random_masking

LENGTH, KEPT = 16, 4  # patches of `tiny`'s images, and those that 75 % masking leaves


def tiny(**settings: Any) -> MAE:
    torch.manual_seed(0)
    return MAE(VisionTransformer(patch_size=4, width=32, depth=3, heads=2, image_size=16), MAEConfig(**settings))


def images(batch: int = 3, size: int = 16) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def drawn_masks(batch: int = 3, length: int = LENGTH, ratio: float = 0.75) -> tuple[Tensor, Tensor, Tensor]:
    """What the method draws at the same seed."""
    torch.manual_seed(7)
    masks = random_masking(batch, length, ratio)
    torch.manual_seed(7)
    return masks


def authors_decoder(method: MAE, tokens: Tensor, ids_restore: Tensor) -> Tensor:
    """The decoder as the authors write it: mask tokens repeated, concatenated and gathered, then positions added."""
    decoder = method.decoder
    x = decoder.embed(tokens)
    mask_tokens = decoder.mask_token.repeat(len(x), ids_restore.shape[1] + 1 - x.shape[1], 1)
    patches = torch.cat([x[:, 1:], mask_tokens], dim=1)
    patches = torch.gather(patches, 1, ids_restore[:, :, None].repeat(1, 1, x.shape[2]))
    x = torch.cat([x[:, :1], patches], dim=1) + decoder.pos_embed
    return decoder.pred(decoder.norm(decoder.blocks(x)))[:, 1:]


@pytest.mark.parametrize("normalize_pixels", [True, False])
def test_the_loss_is_the_papers(normalize_pixels: bool) -> None:
    method, x = tiny(normalize_pixels=normalize_pixels), images()
    method.double()
    x = x.double()
    ids_keep, ids_restore, mask = drawn_masks()
    loss = method([x])
    encoder = method.encoder
    embedded = encoder.patch_embed.proj(x).flatten(2).transpose(1, 2) + encoder.pos_embed[:, 1:]
    visible = torch.stack([row[ids] for row, ids in zip(embedded, ids_keep, strict=True)])
    class_token = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(3, -1, -1)
    tokens = encoder.norm(encoder.blocks(torch.cat([class_token, visible], dim=1)))
    prediction = authors_decoder(method, tokens, ids_restore)
    errors = []
    for n in range(3):
        for patch in range(LENGTH):
            if mask[n, patch]:
                target = patchify(x, 4)[n, patch]
                if normalize_pixels:
                    target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                errors.append((prediction[n, patch] - target).square().mean())
    assert len(errors) == 3 * (LENGTH - KEPT)
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=1e-10, atol=1e-12)


def test_the_encoder_sees_a_quarter_and_the_decoder_all() -> None:
    method, seen = tiny(), {}
    for name, part in (("encoder", method.encoder.blocks), ("decoder", method.decoder.blocks)):
        part.register_forward_hook(lambda _m, inputs, _o, name=name: seen.update({name: inputs[0].shape[1]}))
    method([images()])
    assert seen == {"encoder": 1 + KEPT, "decoder": 1 + LENGTH}


def test_what_was_visible_is_not_part_of_the_loss_and_what_was_hidden_is_not_seen() -> None:
    method, x = tiny(), images()
    _, _, mask = drawn_masks()
    method.loss.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[1:]))
    seen: list[tuple[Tensor, Tensor]] = []
    method([x])
    hidden = mask.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).bool()
    torch.manual_seed(7)
    method([torch.where(hidden, torch.zeros(()), x)])
    (prediction, used), (again, _) = seen
    assert torch.equal(used, mask)
    assert torch.equal(again, prediction)


def test_masks_are_drawn_anew_and_repeat_with_the_seed() -> None:
    method, x = tiny(), images()
    torch.manual_seed(0)
    first, second = method([x]), method([x])
    torch.manual_seed(0)
    assert torch.equal(method([x]), first)
    assert not torch.equal(first, second)


def test_the_decoder_is_the_papers_share_of_the_encoder() -> None:
    large = VisionTransformer(patch_size=8, width=64, depth=6, image_size=32)
    decoder = MAE(large, MAEConfig()).decoder
    assert (decoder.embed.out_features, len(decoder.blocks)) == (32, 2)
    own = MAE(large, MAEConfig(decoder_width=16, decoder_depth=1)).decoder
    assert (own.embed.out_features, len(own.blocks)) == (16, 1)
    assert own.pred.out_features == 3 * 8 * 8


def test_images_of_another_size_than_it_was_built_for() -> None:
    assert math.isfinite(tiny()([images(2, 24)]).item())


def test_predicting_each_patchs_mean_costs_one() -> None:
    """Normalised pixels have mean 0 and, by N - 1, a square of (N - 1) / N on average."""
    method = tiny()
    nn.init.zeros_(method.decoder.pred.weight)
    assert method([images()]).item() == pytest.approx(47 / 48, rel=1e-3)


@pytest.mark.parametrize("normalize_pixels", [True, False])
def test_pictures(normalize_pixels: bool) -> None:
    method, x = tiny(normalize_pixels=normalize_pixels), images()
    _, _, mask = drawn_masks()
    shown = method.pictures([x])
    assert list(shown) == ["masked", "reconstructed", "original"]
    assert torch.equal(shown["original"], x)
    hidden = mask.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).bool().expand_as(x)
    assert torch.equal(shown["masked"], x.masked_fill(hidden, 0.0))
    assert torch.equal(shown["reconstructed"][~hidden], x[~hidden])
    torch.manual_seed(7)
    prediction, _ = method._rebuild(x)
    # the picture of a prediction is what the loss would take for right
    repainted = method.loss.pixels(x, method.loss.target(x))
    torch.testing.assert_close(repainted, patchify(x, 4))
    expected = method.loss.pixels(x, prediction)[mask.bool()]
    torch.testing.assert_close(patchify(shown["reconstructed"], 4)[mask.bool()], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio of MAE must lie between 0 and 1; got 0.0"),
        ({"mask_ratio": 1.0}, "mask_ratio of MAE must lie between 0 and 1; got 1.0"),
        ({"mask_ratio": math.nan}, "mask_ratio of MAE must lie between 0 and 1; got nan"),
        ({"decoder_width": 0}, "decoder_width of MAE must be 1 or more; got 0"),
        ({"decoder_depth": 0}, "decoder_depth of MAE must be 1 or more; got 0"),
        ({"mask_ratio": 0.99}, "a mask_ratio of 0.99 hides 16 of 16 patches"),
        ({"mask_ratio": 1e-9}, "a mask_ratio of 1e-09 hides 0 of 16 patches"),
    ],
)
def test_refuses_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**settings)


def test_refuses_an_encoder_without_patches() -> None:
    with pytest.raises(UserError, match=r"which a ResNet does not have: give it a vit_\*"):
        MAE(models.get("resnet18")(width=4), MAEConfig())


def test_refuses_grayscale_and_sides_that_patches_do_not_fill() -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\); got \(2, 1, 16, 16\)"):
        tiny()([torch.zeros(2, 1, 16, 16)])
    with pytest.raises(ValueError, match="patches of 4 pixels do not fill images of 16 x 18"):
        tiny()([torch.zeros(2, 3, 16, 18)])
