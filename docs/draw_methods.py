"""Draws what a finished run's method makes of test images, or what its encoder takes for alike: for docs/methods.

python docs/draw_methods.py runs/mae-clipart docs/methods/mae.jpg
python docs/draw_methods.py runs/simclr docs/methods/simclr.jpg --neighbours

A row for each of some test images. With --neighbours the training images whose features are nearest stand beside it,
nearest first: those of the trained encoder, then those of the same encoder at its random start.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from fastssl.data import images
from fastssl.data.imageset import ImageSet
from fastssl.data.views import make_views
from fastssl.eval.features import extract
from fastssl.report.grid import draw_columns
from fastssl.report.pictures import drawn_by, nearest
from fastssl.report.sample import choose
from fastssl.train.reproduce import reproducible
from fastssl.train.trained import Trained, open_run

ROWS, COUNT, SEED = 6, 5, 9


def images_of(trained: Trained) -> tuple[ImageSet, ImageSet]:
    """The run's training images, and those that are shown: its test images, or the same if there are no others."""
    config = trained.config
    splits = images.load(config.data, size=config.image_size, seed=config.seed)
    return splits.train, splits.train if splits.test is None else splits.test


def picture(trained: Trained) -> Image.Image:
    """A row for each of some test images, a column for each of the method's pictures."""
    config, (_, shown) = trained.config, images_of(trained)
    chosen = shown.images[choose(shown, ROWS, SEED)]
    with reproducible(SEED, config.threads):
        plan = config.view_plan()
        views = make_views(chosen, plan, torch.Generator().manual_seed(SEED))
        drawn = drawn_by(trained.method, views, plan, torch.device("cpu"))
    return draw_columns(drawn)


def neighbours(trained: Trained) -> Image.Image:
    """A row for each of some test images, and a column for each of the training images nearest to it."""
    config, (bank, queries) = trained.config, images_of(trained)
    columns = {}
    with reproducible(SEED, config.threads):
        for name, encoder in (("trained", trained.encoder), ("untrained", trained.random_encoder())):
            features = [extract(encoder, part.images, size=config.image_size) for part in (bank, queries)]
            chosen, found = nearest(bank, features[0], queries, features[1], rows=ROWS, count=COUNT, seed=SEED)
            columns["image"] = queries.images[chosen]
            columns |= {f"{name} {i}": bank.images[column] for i, column in enumerate(found.T, start=1)}
    return draw_columns(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("--neighbours", action="store_true", help="draw nearest images, not the method's pictures")
    options = parser.parse_args()
    draw = neighbours if options.neighbours else picture
    draw(open_run(options.run)).save(options.out, quality=88, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
