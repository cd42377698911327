"""Draws what a finished run's method makes of test images: a picture for its page in docs/methods.

python docs/draw_methods.py runs/mae-clipart docs/methods/mae.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from fastssl.data import images
from fastssl.data.views import make_views
from fastssl.report.grid import draw_columns
from fastssl.report.pictures import drawn_by
from fastssl.report.sample import choose
from fastssl.train.reproduce import reproducible
from fastssl.train.trained import Trained, open_run

ROWS, SEED = 6, 9


def picture(trained: Trained) -> Image.Image:
    """A row for each of some test images, a column for each of the method's pictures."""
    config = trained.config
    splits = images.load(config.data, size=config.image_size, seed=config.seed)
    shown = splits.train if splits.test is None else splits.test
    chosen = shown.images[choose(shown, ROWS, SEED)]
    with reproducible(SEED, config.threads):
        plan = config.view_plan()
        views = make_views(chosen, plan, torch.Generator().manual_seed(SEED))
        drawn = drawn_by(trained.method, views, plan, torch.device("cpu"))
    return draw_columns(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("out", type=Path, help="picture to write")
    options = parser.parse_args()
    picture(open_run(options.run)).save(options.out, quality=88, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
