"""A view plan as one picture: a row an image, a column a view."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from fastssl.data.images import ImageSet
from fastssl.data.plans import ViewPlan
from fastssl.report.pictures import as_pillow, choose, visible_views

_SIDE, _GAP, _HEADING = 96, 6, 18  # pixels: of the largest views, between them, and of the line above
_PAPER, _INK, _FRAME = (255, 255, 255), (70, 76, 84), (205, 208, 212)


def draw_grid(images: ImageSet, plan: ViewPlan, *, rows: int, seed: int) -> Image.Image:
    """``rows`` images, drawn by ``seed``, each with its views by ``plan`` beside it.

    The largest views are drawn 96 pixels wide, smaller ones as much smaller as they are.
    """
    chosen = choose(images, rows, seed)
    originals = images.images[chosen]
    views = visible_views(originals, plan, seed)
    largest = max(view.shape[2] for view in views)
    sides = [_SIDE, *(max(1, round(_SIDE * view.shape[2] / largest)) for view in views)]
    headings = ["image", *(f"view {i}" for i in range(1, len(views) + 1))]
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    font = ImageFont.load_default()
    widths = [max(side, int(pen.textlength(text, font))) for side, text in zip(sides, headings, strict=True)]
    size = (sum(widths) + _GAP * (len(widths) + 1), _HEADING + _GAP + len(chosen) * (_SIDE + _GAP))
    picture = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(picture)
    left = _GAP
    for heading, width, side, column in zip(headings, widths, sides, [originals, *views], strict=True):
        pen.text((left + (width - pen.textlength(heading, font)) / 2, _GAP), heading, _INK, font)
        for row, image in enumerate(column):
            top = _HEADING + _GAP + row * (_SIDE + _GAP)
            place = (left + (width - side) // 2, top + (_SIDE - side) // 2)
            picture.paste(as_pillow(image).resize((side, side), Image.Resampling.LANCZOS), place)
            pen.rectangle((place[0] - 1, place[1] - 1, place[0] + side, place[1] + side), outline=_FRAME)
        left += width + _GAP
    return picture
