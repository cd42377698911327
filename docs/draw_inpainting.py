"""Draws what two runs of inpainting paint into the same holes of test images, without and with a discriminator.

python docs/draw_inpainting.py runs/holes-l2 runs/holes docs/methods/inpainting.jpg

Prints, for each run, the mean error and sharpness over all test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from fastssl.data import images, plans
from fastssl.data.images import ImageSet
from fastssl.data.views import make_views
from fastssl.methods.inpainting import Inpainting
from fastssl.report.grid import draw_columns
from fastssl.report.pictures import drawn_by
from fastssl.report.sample import choose
from fastssl.train.reproduce import reproducible
from fastssl.train.trained import Trained, open_run

ROWS, SEED, BATCH = 6, 9, 256


def test_images(trained: Trained) -> ImageSet:
    """The run's test images, or those it was trained on, if there are no others."""
    config = trained.config
    splits = images.load(config.data, size=config.image_size, seed=config.seed)
    return splits.train if splits.test is None else splits.test


def drawn(trained: Trained, shown: Tensor) -> dict[str, Tensor]:
    """The run's pictures of whole images, its holes drawn by ``SEED``."""
    plan = plans.eval(trained.config.image_size)
    with reproducible(SEED, trained.config.threads):
        views = make_views(shown, plan, torch.Generator().manual_seed(SEED))
        return drawn_by(trained.method, views, plan, torch.device("cpu"))


@torch.no_grad()
def figures(trained: Trained, shown: ImageSet) -> dict[str, float]:
    """Means of what the method notes over batches of whole images; the last, smaller one is left out."""
    method, plan = trained.method.eval(), plans.eval(trained.config.image_size)
    batch = min(BATCH, len(shown))
    noted: list[dict[str, float]] = []
    with reproducible(SEED, trained.config.threads):
        for start in range(0, len(shown) - batch + 1, batch):
            views = make_views(shown.images[start : start + batch], plan, torch.Generator())
            noted.append(method.metrics(float(method(views)), batch))
    return {name: sum(row[name] for row in noted) / len(noted) for name in noted[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plain", type=Path, help="folder of a run with --inpainting.adversarial_weight 0")
    parser.add_argument("adversarial", type=Path, help="folder of a run with a discriminator, else alike")
    parser.add_argument("out", type=Path, help="picture to write")
    options = parser.parse_args()
    columns: dict[str, Tensor] = {}
    for heading, path in (("squared error", options.plain), ("and adversarial", options.adversarial)):
        trained = open_run(path)
        if not isinstance(trained.method, Inpainting):
            parser.error(f"{path} is no run of inpainting")
        shown = test_images(trained)
        pictures = drawn(trained, shown.images[choose(shown, ROWS, SEED)])
        columns |= {"original": pictures["original"], "masked": pictures["masked"], heading: pictures["filled"]}
        print(f"{path}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures(trained, shown).items()))
    draw_columns(columns).save(options.out, quality=88, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
