"""Draws which images a finished run's encoder takes for alike: a picture for its method's page in docs/methods.

python docs/draw_neighbours.py runs/simclr docs/methods/simclr.jpg

A row for each of some test images, and beside it the training images whose features are nearest, nearest first: those
of the trained encoder, then those of the same encoder at its random start.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from fastssl.data import images
from fastssl.eval.features import extract
from fastssl.report.grid import draw_columns
from fastssl.report.pictures import nearest
from fastssl.train.reproduce import reproducible
from fastssl.train.trained import Trained, open_run

ROWS, COUNT, SEED = 6, 5, 9


def picture(trained: Trained) -> Image.Image:
    config = trained.config
    splits = images.load(config.data, size=config.image_size, seed=config.seed)
    bank, queries = splits.train, splits.train if splits.test is None else splits.test
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
    options = parser.parse_args()
    picture(open_run(options.run)).save(options.out, quality=88, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
