"""The cells of the table of scores: what is trained, with which settings, and what an ablation changes.

A cell is a method with its settings for minutes on two CPU cores, those of its file in `benchmarks/recipes/cifar10`.
Its name is the method's; an ablation's has a word behind it. Methods to which images of 32 pixels show too little have
a cell of larger ones too, from `benchmarks/recipes/imagenette`, with that word before its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastssl.models.depth import Tuned
from fastssl.train import config as configs
from fastssl.train.config import RunConfig

SUPERVISED = "supervised"
RECIPES = Path(__file__).parents[1] / "recipes"
"""Config files, a folder a data set and a file a method, of which the cells are made."""
CIFAR10, IMAGENETTE = "cifar10", "imagenette"
IMAGES = {CIFAR10: "CIFAR-10", IMAGENETTE: "Imagenette"}

# The classes are scored at the end, and as many threads are used wherever it is measured.
COMMON: dict[str, Any] = {"eval_every": 0, "threads": 2}
# AlexNet would cost half as much, but the nearest neighbours of its random features are right in 39 % of the cases, ten
# points more than a ResNet's: a good part of what a method teaches would not show.
# The convolutional cells are compiled: a step of SimCLR is a fifth shorter. What compiling takes is counted in the
# seconds of a row.
CONVNET: dict[str, Any] = {"encoder": "resnet18", "stem": "cifar", "width": 8, "compile": True}

LABELS = 0.1
"""Share of the labels that the cells of fine-tuning have."""


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        name: of the file of its results.
        method: what is trained; "supervised" is with labels.
        settings: of the run, as in a config file, beside those common to all.
        of: the cell that it is an ablation of.
        what: that ablation, in words.
        tuned: how much of the encoder is fine-tuned afterwards, for the table of that.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    of: str | None = None
    what: str = ""
    tuned: tuple[Tuned, ...] = ()

    def config(self, data: str, seed: int) -> RunConfig:
        """The run of one seed. That of a supervised cell tells encoder, seed and images alone."""
        values = {**COMMON, **self.settings, "data": data, "seed": seed}
        values["method"] = "simclr" if self.method == SUPERVISED else self.method
        return configs.from_dict(values)


@dataclass(frozen=True)
class Ablation:
    """What is changed of a method's cell."""

    word: str
    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)


def recipes(images: str) -> dict[str, dict[str, Any]]:
    """The settings of each method's cell, from its file."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((RECIPES / images).glob("*.yaml"))}


METHODS = {SUPERVISED: {**CONVNET, "image_size": 32}, **recipes(CIFAR10)}
LARGER = recipes(IMAGENETTE)

ABLATIONS: dict[str, tuple[Ablation, ...]] = {
    "rotation": (
        Ablation("small-crops", "crops of 5 to 30 % of an image", {"plan": {"crop_scale": [0.05, 0.3]}}),
        Ablation("no-flip", "views not flipped", {"plan": {"flip": 0.0}}),
    ),
    "relative_patch": (
        Ablation("no-gap", "no gap, no jitter", {"relative_patch": {"gap": 0.0, "jitter": 0.0}}),
        Ablation("colours", "colours kept", {"relative_patch": {"colors": "keep"}}),
    ),
    "jigsaw": (
        Ablation("paper-gap", "the paper's gap, 2 pixels of 16", {"jigsaw": {"gap": 11 / 75}}),
        Ablation("orders-10", "10 orders", {"jigsaw": {"permutations": 10}}),
    ),
    "inpainting": (
        Ablation("no-adversary", "no adversary, the squared error alone", {"inpainting": {"adversarial_weight": 0.0}}),
        Ablation("center", "always the same hole, in the center", {"inpainting": {"hole": "center"}}),
    ),
    "colorization": (Ablation("plain", "rare colours do not count more", {"colorization": {"rebalance": False}}),),
    "split_brain": (
        Ablation("regression", "squared errors in place of classes", {"split_brain": {"loss": "regression"}}),
    ),
    "mae": (
        Ablation("hidden-25", "25 % hidden", {"mae": {"mask_ratio": 0.25}}),
        Ablation("hidden-50", "50 % hidden", {"mae": {"mask_ratio": 0.5}}),
        Ablation("hidden-90", "90 % hidden", {"mae": {"mask_ratio": 0.9}}),
        Ablation("pixels", "pixels not normalised", {"mae": {"normalize_pixels": False}}),
    ),
    "cpc": (
        Ablation("colours", "patches keep their colours", {"cpc": {"color_jitter": 0.0, "grey": 0.0}}),
        Ablation("no-flip", "patches not mirrored", {"cpc": {"flip": 0.0}}),
        Ablation("apart", "no patches that share pixels", {"cpc": {"first_step": 2}}),
    ),
    "simclr": (
        Ablation("no-head", "no head", {"simclr": {"head_layers": 0}}),
        Ablation("no-colour", "colours left alone", {"plan": {"jitter": 0.0, "grayscale": 0.0}}),
    ),
}

TUNED: tuple[Tuned, ...] = (0, 0.5, 1, 2, "all")


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with ``changes``, group by group."""
    both = dict(settings)
    for name, value in changes.items():
        both[name] = merged(both.get(name, {}), value) if isinstance(value, Mapping) else value
    return both


def larger_cells() -> Iterator[Cell]:
    """Those of larger images."""
    for method, settings in LARGER.items():
        yield Cell(f"{IMAGENETTE}.{method}", method, settings)


def cells(*, ablations: bool) -> Iterator[Cell]:
    """Those of all methods on CIFAR-10, or their ablations."""
    for method, settings in METHODS.items():
        if not ablations:
            yield Cell(method, method, settings, tuned=TUNED if method == "mae" else ())
        for ablation in ABLATIONS.get(method, ()) if ablations else ():
            name = f"{method}.{ablation.word}"
            yield Cell(name, method, merged(settings, ablation.changes), of=method, what=ablation.what)
    if ablations:  # the same encoder by a contrast, to set MAE's probe and fine-tuning beside
        like_mae = {**METHODS["mae"], "method": "simclr", "epochs": 4}
        yield Cell("simclr.vit", "simclr", like_mae, of="simclr", what="the encoder of mae", tuned=TUNED)
