"""DAVIS's J and F: on masks whose values are counted by hand, and on others against every pair of pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastssl.eval.segmentation import boundaries, boundary_accuracy, dilated, region_similarity


def half(first: int, side: int = 100, rows: slice = slice(None)) -> Tensor:
    """(side, side): from column ``first`` on, in ``rows``."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[rows, first:] = True
    return mask


def test_j_is_the_intersection_over_the_union() -> None:
    assert region_similarity(half(60), half(50)).item() == 40 / 50
    assert region_similarity(half(50), ~half(50)).item() == 0
    empty = torch.zeros(4, 4, dtype=torch.bool)
    assert region_similarity(empty, empty).item() == 1
    assert region_similarity(empty, ~empty).item() == 0


def test_a_boundary_is_the_pixel_before_a_change() -> None:
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[2:4, 2:5] = True
    drawn = ["".join(".#"[pixel] for pixel in row) for row in boundaries(mask).int().tolist()]
    assert drawn == ["......", ".####.", ".#..#.", ".####.", "......"]
    # nothing lies beyond the last row and column
    assert not boundaries(torch.ones(3, 3, dtype=torch.bool)).any()
    assert boundaries(half(2, 4)).nonzero().tolist() == [[row, 1] for row in range(4)]


def test_f_of_boundaries_two_pixels_apart_and_three() -> None:
    # the diagonal of 100 x 100 is 141.4, and 0.8 % of it rounded up are 2 pixels
    assert boundary_accuracy(half(52), half(50)).item() == 1
    assert boundary_accuracy(half(53), half(50)).item() == 0


def test_f_of_a_boundary_of_which_a_part_is_right() -> None:
    """30 of 100 rows: 30 pixels down, and below them a row of 50.

    Of these 80 the first 30 are right, and of the row the two that are next to them: precision 32 / 80. Of the true
    100, the 30 and the two below them: recall 32 / 100.
    """
    part = half(50, rows=slice(0, 30))
    assert int(boundaries(part).sum()) == 80
    precision, recall = 32 / 80, 32 / 100
    expected = 2 * precision * recall / (precision + recall)
    assert boundary_accuracy(part, half(50)).item() == pytest.approx(expected, rel=1e-12)


def test_f_where_a_boundary_is_missing() -> None:
    empty = torch.zeros(50, 50, dtype=torch.bool)
    assert boundary_accuracy(empty, empty).item() == 1
    assert boundary_accuracy(empty, half(20, 50)).item() == 0
    assert boundary_accuracy(half(20, 50), empty).item() == 0


def test_void_pixels_do_not_count() -> None:
    void = half(60) & ~half(70)  # ten columns
    assert region_similarity(half(60), half(70)).item() == 30 / 40
    assert region_similarity(half(60), half(70), void).item() == 1
    assert boundary_accuracy(half(60), half(70)).item() == 0
    assert boundary_accuracy(half(60), half(70), void).item() == 1


def by_pairs(masks: Tensor, truth: Tensor) -> float:
    """F by the distance of each pixel of one boundary to each of the other, in float64."""
    radius = math.ceil(0.008 * math.hypot(*masks.shape))
    own, true = (boundaries(x).nonzero().double() for x in (masks, truth))
    if not len(own) or not len(true):
        return float(len(own) == len(true))
    near = torch.cdist(own, true) <= radius + 1e-9
    precision, recall = near.any(1).double().mean().item(), near.any(0).double().mean().item()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("shape", [(30, 47), (61, 200), (240, 427)])
def test_f_is_that_of_all_pairs_of_pixels(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 2, 5, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, shape, mode="bicubic") > 0.6
    expected = [by_pairs(*pair) for pair in smooth]
    found = boundary_accuracy(smooth[:, 0], smooth[:, 1])
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_dilation_is_by_a_disk() -> None:
    lines = torch.zeros(2, 300, 300, dtype=torch.bool)  # 0.8 % of 424.3, rounded up, are 4
    lines[1, 100, 100] = True
    rows, columns = torch.meshgrid(torch.arange(300), torch.arange(300), indexing="ij")
    assert torch.equal(dilated(lines)[1], (rows - 100) ** 2 + (columns - 100) ** 2 <= 16)
    assert not dilated(lines)[0].any()


@pytest.mark.parametrize("measure", [region_similarity, boundary_accuracy])
def test_what_is_no_pair_of_masks_is_refused(measure) -> None:  # type: ignore[no-untyped-def]
    mask = half(1, 4)
    with pytest.raises(ValueError, match=r"all alike; got \(4, 4\), \(5, 5\)"):
        measure(mask, half(1, 5))
    with pytest.raises(ValueError, match=r"all alike; got \(4, 4\), \(4, 4\), \(2, 4\)"):
        measure(mask, mask, mask[:2])
    with pytest.raises(TypeError, match="uint8"):
        measure(mask, mask.byte())
