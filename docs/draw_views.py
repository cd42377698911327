"""Draws every view plan on the embedded drawings: writes docs/views.md and docs/views/*.jpg.

python docs/draw_views.py
"""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path

from PIL import Image

from fastssl.data import images, plan_words, plans
from fastssl.data.images import ImageSet
from fastssl.report.grid import draw_grid

PAGE = Path(__file__).with_name("views.md")
PICTURES = Path(__file__).with_name("views")
ROWS, SEED = 4, 0  # of the draws of this seed each step is to be seen: grey and solarized views, and coloured ones
# 96 pixels is where SimCLR's recipe for large images begins; CIFAR's recipe is for small ones.
SIZES = {name: 32 if name == "cifar" else 96 for name in plans.names()}

HEAD = """\
# Views

What each preset of `fastssl.data.plans` does, in words and on the [embedded drawings](data.md#the-embedded-set): a row
an image, a column a view. The words are `plan_words.describe(plan)`; `python docs/draw_views.py` draws the pictures.
On your own images, by the engine that is to train on them:

```
fastssl views photos --preset dino --image_size 224 --engine stream --out dino.png
```

Above each view stands its number and, where a plan has several parts, the name of its part. Every setting of a plan
can be changed, for all views or for a part by its name ([how](data.md#changing-a-plan)), but for the normalisation: by
ImageNet's mean and standard deviation, whatever else is changed. A run's report shows its views and the same words.
"""


@functools.cache
def drawings(size: int) -> ImageSet:
    """The embedded drawings, no larger than they are."""
    return images.load("clipart", size=min(size, 64)).train


def picture(name: str) -> Image.Image:
    """The grid of a preset."""
    size = SIZES[name]
    return draw_grid(drawings(size), plans.get(name)(size), rows=ROWS, seed=SEED)


def page() -> str:
    """The text of docs/views.md."""
    parts = [HEAD]
    for name in plans.names():
        preset = plans.get(name)
        told = re.sub(r"``|(?<!`)`(?!`)", "`", inspect.getdoc(preset) or "")
        words = plan_words.describe(preset(SIZES[name]))
        parts.append(f"## {name}\n\n{told}\n\n```\n{words}\n```\n\n![views by {name}](views/{name}.jpg)\n")
    return "\n".join(parts)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for name in plans.names():
        picture(name).save(PICTURES / f"{name}.jpg", quality=88, subsampling=0, optimize=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
