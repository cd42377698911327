"""Pictures in rows and columns as one: a row an image, a column what was made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastssl.data.engines import Engine
from fastssl.data.images import ImageSet
from fastssl.data.plans import ViewPlan
from fastssl.report.pictures import as_pillow
from fastssl.report.sample import Sample, draw_sample

_SIDE, _GAP, _HEADING, _LINE = 96, 6, 18, 12  # pixels: of the largest views, between them, above them, a further line
_PAPER, _INK, _FRAME = (255, 255, 255), (70, 76, 84), (205, 208, 212)


def draw_grid(images: ImageSet, plan: ViewPlan, *, rows: int, seed: int, engine: Engine = "native") -> Image.Image:
    """``rows`` images, drawn by ``seed``, each with its views by ``plan`` beside it, as ``engine`` makes them."""
    return draw_rows(draw_sample(images, plan, rows=rows, seed=seed, engine=engine), plan)


def draw_rows(sample: Sample, plan: ViewPlan) -> Image.Image:
    """The images of ``sample``, each with its views by ``plan`` beside it.

    The image is what the engine cuts views from: all of a file, or the square of it that is in memory. The largest
    views are drawn 96 pixels wide, smaller ones as much smaller as they are. Above each is its number and, if it has
    one, the name of its part of the plan.
    """
    originals, views = sample.images, sample.views
    largest = max(view.shape[2] for view in views)
    sides = [max(1, round(_SIDE * view.shape[2] / largest)) for view in views]
    parts = [part.name for part in plan.parts for _ in range(part.views)]
    names = [f"view {i}\n{part}".rstrip() for i, part in enumerate(parts, 1)]
    return _drawn([("image", originals, _SIDE), *zip(names, views, sides, strict=True)])


def draw_columns(columns: Mapping[str, Tensor]) -> Image.Image:
    """Batches of pictures, each under its heading.

    Args:
        columns: (N, 3, S, S) uint8 by heading, of one N; each picture is drawn 96 pixels wide.
    """
    return _drawn([(heading, batch, _SIDE) for heading, batch in columns.items()])


def _drawn(columns: Sequence[tuple[str, Sequence[Tensor] | Tensor, int]]) -> Image.Image:
    """Columns, each of a heading, N pictures (3, H, W) uint8, and the longer side of those on paper, in pixels."""
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    font = ImageFont.load_default()
    headings = [heading.split("\n") for heading, _, _ in columns]
    widths = [
        max(side, *(int(pen.textlength(line, font)) for line in lines))
        for lines, (_, _, side) in zip(headings, columns, strict=True)
    ]
    rows, above = len(columns[0][1]), _HEADING + _LINE * (max(map(len, headings)) - 1)
    size = (sum(widths) + _GAP * (len(widths) + 1), above + _GAP + rows * (_SIDE + _GAP))
    picture = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(picture)
    left = _GAP
    for width, lines, (_, batch, side) in zip(widths, headings, columns, strict=True):
        for i, line in enumerate(lines):
            pen.text((left + (width - pen.textlength(line, font)) / 2, _GAP + _LINE * i), line, _INK, font)
        for row, image in enumerate(batch):
            top = above + _GAP + row * (_SIDE + _GAP)
            drawn = _resized(image, side)
            place = (left + (width - drawn.width) // 2, top + (_SIDE - drawn.height) // 2)
            picture.paste(drawn, place)
            right, bottom = place[0] + drawn.width, place[1] + drawn.height
            pen.rectangle((place[0] - 1, place[1] - 1, right, bottom), outline=_FRAME)
        left += width + _GAP
    return picture


def _resized(image: Tensor, side: int) -> Image.Image:
    """(3, H, W) uint8 with ``side`` pixels along its longer side."""
    height, width = image.shape[1:]
    scale = side / max(height, width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    return as_pillow(image).resize(size, Image.Resampling.LANCZOS)
