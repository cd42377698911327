"""MAELoss: patches in the paper's order, their normalised pixels, and only what was removed counts."""

from __future__ import annotations

import pytest
import torch

from fastssl.losses import MAELoss, patchify, unpatchify

IMAGES = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_patches_are_read_as_text_and_channels_come_last() -> None:
    patches = patchify(IMAGES, 2)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            block = IMAGES[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[1, 3 * row + column], block.permute(1, 2, 0).flatten())


def test_unpatchify_gives_the_images_back() -> None:
    for images in (IMAGES, IMAGES.byte(), IMAGES[:0]):
        assert torch.equal(unpatchify(patchify(images, 2), 2, (2, 3)), images)
    for patches in (torch.zeros(2, 6, 12)[0], torch.zeros(2, 5, 12), torch.zeros(2, 6, 11)):
        with pytest.raises(ValueError, match=r"must be \(N, 6, 4 C\) for a grid of 2 x 3 and patches of 2 pixels; got"):
            unpatchify(patches, 2, (2, 3))


@pytest.mark.parametrize("normalize_pixels", [True, False])
def test_pixels_are_the_inverse_of_the_target(normalize_pixels: bool) -> None:
    loss = MAELoss(2, normalize_pixels=normalize_pixels)
    torch.testing.assert_close(loss.pixels(IMAGES, loss.target(IMAGES)), patchify(IMAGES, 2))


@pytest.mark.parametrize("normalize_pixels", [True, False])
def test_equals_the_formula(normalize_pixels: bool) -> None:
    mask = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 1, 0, 1, 0, 0]])
    prediction = torch.randn(2, 6, 12)
    errors = []
    for image, row in zip(*mask.nonzero(as_tuple=True), strict=True):
        target = patchify(IMAGES, 2)[image, row]
        if normalize_pixels:
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
        errors.append((prediction[image, row] - target).square().mean())
    loss = MAELoss(2, normalize_pixels=normalize_pixels)
    for removed in (mask, mask.bool(), mask.float()):
        torch.testing.assert_close(loss(IMAGES, prediction, removed), torch.stack(errors).mean())


def test_without_removed_patches_it_is_0() -> None:
    assert MAELoss(2)(IMAGES, torch.zeros(2, 6, 12), torch.zeros(2, 6)) == 0


def test_what_is_compared_in_what() -> None:
    masked = torch.ones(2, 6)
    assert MAELoss(2)(IMAGES.half(), torch.zeros(2, 6, 12).bfloat16(), masked).dtype == torch.float32
    assert MAELoss(2)(IMAGES, torch.zeros(2, 6, 12).double(), masked).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.complex64], ids=str)
def test_patches_of_any_numbers(dtype: torch.dtype) -> None:
    images = (100 * IMAGES).abs().to(dtype)
    patches = patchify(images, 2)
    assert patches.dtype == dtype
    assert torch.equal(patches[0, 0], images[0, :, :2, :2].permute(1, 2, 0).flatten())


def test_bad_input_is_named() -> None:
    mask, prediction = torch.ones(2, 6), torch.zeros(2, 6, 12)
    with pytest.raises(ValueError, match="MAELoss: patches of 4 pixels do not fill images of 4 x 6"):
        MAELoss(4)(IMAGES, prediction, mask)
    with pytest.raises(
        ValueError, match=r"MAELoss: prediction must be \(2, 6, 12\) for images \(2, 3, 4, 6\); got \(2, 6, 11\)"
    ):
        MAELoss(2)(IMAGES, prediction[..., :11], mask)
    with pytest.raises(ValueError, match=r"MAELoss: mask must be \(2, 6\); got \(2, 5\)"):
        MAELoss(2)(IMAGES, prediction, mask[:, :5])
    with pytest.raises(TypeError, match=r"MAELoss: images must be float32, .*; got torch\.uint8"):
        MAELoss(2)(IMAGES.byte(), prediction, mask)
    with pytest.raises(TypeError, match=r"MAELoss: mask must be bool or real; got torch\.complex64"):
        MAELoss(2)(IMAGES, prediction, mask + 0j)
    with pytest.raises(ValueError, match=r"patchify: images must have shape \(N, C, H, W\); got \(3, 4, 6\)"):
        patchify(IMAGES[0], 2)
    with pytest.raises(ValueError, match="MAELoss: patch_size must be at least 1; got 0"):
        MAELoss(0)
