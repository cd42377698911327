"""Views as colours: normalisation undone, CIELAB, and grey of the same lightness."""

from __future__ import annotations

import pytest
import torch

from fastssl.data import lab, plans
from fastssl.data.views import make_views
from fastssl.ops import rgb_to_lab


def photos() -> torch.Tensor:
    return torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_view_is_the_colours_it_was_made_of() -> None:
    (views,) = make_views(photos(), plans.eval(8), torch.Generator())
    torch.testing.assert_close(lab.to_rgb(views), photos() / 255, atol=1e-6, rtol=0)
    torch.testing.assert_close(lab.from_rgb(lab.to_rgb(views)), views)
    torch.testing.assert_close(lab.to_lab(views), rgb_to_lab(photos() / 255), atol=1e-3, rtol=0)
    torch.testing.assert_close(lab.from_lab(lab.to_lab(views)), views, atol=1e-3, rtol=0)


def test_grey_has_three_equal_channels_and_the_same_lightness() -> None:
    (views,) = make_views(photos(), plans.eval(8), torch.Generator())
    lightness = lab.to_lab(views)[:, :1]
    rgb = lab.to_rgb(lab.grey(lightness))
    assert (rgb - rgb[:, :1]).abs().max() < 1e-4  # a white of five digits
    again = lab.to_lab(lab.grey(lightness))
    torch.testing.assert_close(again[:, :1], lightness, atol=1e-3, rtol=0)
    assert again[:, 1:].abs().max() < 0.05


def test_which_images_have_colour() -> None:
    shades = torch.rand(3, 1, 4, 4).expand(3, 3, 4, 4).clone()
    shades[1, 0, 2, 2] += 0.3
    shades[2, 0] += 0.005
    assert lab.has_colour(rgb_to_lab(shades)).tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 4, 8, 8), (3, 8, 8)])
def test_refuses_what_is_not_in_colour(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"views must be \(N, 3, H, W\), in colour; got"):
        lab.to_rgb(torch.zeros(shape))
