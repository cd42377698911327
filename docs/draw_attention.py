"""Draws what attracts the attention of a rotation run's encoder, beside the same encoder trained with labels.

python docs/draw_attention.py runs/rotation-clipart docs/methods/rotation-attention.jpg

The labels are those of the images that the run was trained on; the supervised encoder has the run's start, and sees the
images as often as --epochs says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from fastssl.data import images, plans
from fastssl.data.images import Splits
from fastssl.data.views import make_views
from fastssl.eval import FinetuneConfig, finetune
from fastssl.models.attention import attention_maps, heat
from fastssl.report.grid import draw_columns
from fastssl.report.sample import choose
from fastssl.train.reproduce import reproducible
from fastssl.train.trained import Trained, open_run

ROWS, SEED = 6, 9


def supervised(trained: Trained, splits: Splits, epochs: int) -> nn.Module:
    """The run's encoder from its start, trained with labels."""
    assert splits.test is not None
    config = FinetuneConfig(epochs=epochs, batch_size=128)
    size = trained.config.image_size
    found = finetune(trained.random_encoder(), splits.train, splits.test, size=size, config=config)
    print(f"supervised: {found.accuracy:.1%} of the test images")
    return found.classifier.encoder


def attended(name: str, encoder: nn.Module, shown: Tensor) -> dict[str, Tensor]:
    """For each stage of ``encoder`` the pictures, uint8, of (N, 3, S, S) uint8 images."""
    (views,) = make_views(shown, plans.eval(shown.shape[-1]), torch.Generator())
    maps = attention_maps(encoder.eval(), views)
    drawn = [(heat(shown.float() / 255, attention) * 255).round().byte() for attention in maps]
    return {f"{name} {i}": batch for i, batch in enumerate(drawn, start=1)}


def picture(trained: Trained, epochs: int) -> Image.Image:
    config = trained.config
    splits = images.load(config.data, size=config.image_size, seed=config.seed)
    assert splits.test is not None
    shown = splits.test.images[choose(splits.test, ROWS, SEED)]
    with reproducible(config.seed, config.threads):
        labelled = supervised(trained, splits, epochs)
        columns = {
            "image": shown,
            **attended("rotation", trained.encoder, shown),
            **attended("labels", labelled, shown),
        }
    return draw_columns(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of rotation, on images with labels")
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("--epochs", type=int, default=20, help="of the supervised encoder")
    options = parser.parse_args()
    picture(open_run(options.run), options.epochs).save(options.out, quality=88, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
