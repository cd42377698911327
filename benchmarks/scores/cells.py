"""The cells of the table of scores: what is trained, with which settings, and what an ablation changes.

A cell is a method with its settings for images of 32 pixels and minutes on two CPU cores. Its name is the method's; an
ablation's has a word behind it. Methods that are not there yet are left out until they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastssl import methods
from fastssl.models.depth import Tuned
from fastssl.train import config as configs
from fastssl.train.config import RunConfig

SUPERVISED = "supervised"
NO_IMAGES = {"video_colorization", "cpc_audio"}  # learn from videos and recordings, and have scripts of their own

# AlexNet would cost half as much, but the nearest neighbours of its random features are right in 39 % of the cases, ten
# points more than a ResNet's: a good part of what a method teaches would not show.
# Compiled, a step of SimCLR is a fifth shorter; what compiling takes is counted in the seconds of a row.
CONVNET: dict[str, Any] = {"encoder": "resnet18", "stem": "cifar", "width": 8, "compile": True}
VIT: dict[str, Any] = {"encoder": "vit_micro", "patch_size": 4, "width": 48, "depth": 4}
COMMON: dict[str, Any] = {"image_size": 32, "batch_size": 256, "eval_every": 0, "threads": 2}
SGD: dict[str, Any] = {"name": "sgd", "lr": 0.1, "warmup_epochs": 1}
ADAMW: dict[str, Any] = {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05, "beta2": 0.95, "warmup_epochs": 1}
BF16: dict[str, Any] = {"precision": "bfloat16"}
# Of 32 pixels tiles would have 7 to 9, which a ResNet leaves one position of.
TILES: dict[str, Any] = {"image_size": 48}
# With the paper's gap, of 2 of these pixels, 97 % of the puzzles are solved by edges that go on, after 7 epochs, and
# features are worse than untrained ones: 24 % by kNN, and 32 % like this after 4.
APART: dict[str, Any] = {"jigsaw": {"gap": 0.4}, "plan": {"crop_scale": [0.4, 1.0]}}
# Of 32 pixels patches of 16: smaller ones show little that can be recognised.
BIG_PATCHES: dict[str, Any] = {"grid": 3, "first_step": 1, "last_step": 2, "context_layers": 2}

TWO_VIEWS: dict[str, Any] = {**CONVNET, **BF16, "views": "cifar", "batch_size": 512, "epochs": 8}
# After 4 epochs kNN is right in 48 % of the cases, in 45 % with 0.5, which is the paper's for CIFAR-10.
SHARP: dict[str, Any] = {"temperature": 0.2}
FEW_CROPS: dict[str, Any] = {"plan": {"local": {"views": 4}}}

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


METHODS: dict[str, dict[str, Any]] = {
    SUPERVISED: {**CONVNET},
    "rotation": {**CONVNET, **BF16, "epochs": 4, "optim": SGD},
    "relative_patch": {**CONVNET, **BF16, **TILES, "epochs": 9, "optim": SGD},
    "jigsaw": {**CONVNET, **BF16, **TILES, **APART, "epochs": 12, "optim": SGD},
    "inpainting": {**CONVNET, **BF16, "epochs": 9},
    "colorization": {**CONVNET, **BF16, "epochs": 10, "optim": SGD},
    "split_brain": {**CONVNET, **BF16, "encoder": "resnet18_split", "width": 16, "epochs": 8, "optim": SGD},
    "mae": {**VIT, "epochs": 28, "optim": ADAMW},
    "cpc": {
        **CONVNET,
        **BF16,
        "batch_size": 128,
        "epochs": 10,
        "optim": {**ADAMW, "weight_decay": 0.01, "beta2": 0.999},
        "cpc": BIG_PATCHES,
    },
    "simclr": {**TWO_VIEWS, "epochs": 18, "optim": SGD, "simclr": SHARP},
    "moco": {
        **TWO_VIEWS,
        "epochs": 28,
        "optim": {**SGD, "lr": 0.06},
        "moco": {"queue": 4096, "temperature": 0.1, "momentum": {"start": 0.99}},
    },
    "moco_v3": {**TWO_VIEWS, "optim": {**SGD, "weight_decay": 1e-4}},
    "byol": {**TWO_VIEWS, "epochs": 20, "optim": {**SGD, "lr": 0.2}, "byol": {"momentum": {"start": 0.99}}},
    "simsiam": {**TWO_VIEWS, "optim": {**SGD, "lr": 0.06}},
    "barlow_twins": {**TWO_VIEWS, "optim": {**SGD, "lr": 0.05}},
    "vicreg": {**TWO_VIEWS, "optim": {**SGD, "lr": 0.05}},
    "swav": {**CONVNET, **BF16, **FEW_CROPS, "epochs": 5, "optim": SGD},
    "dino": {
        **CONVNET,
        **BF16,
        **FEW_CROPS,
        "epochs": 5,
        "optim": {**SGD, "lr": 0.06, "weight_decay": 1e-4, "final_weight_decay": None},
        "dino": {"prototypes": 2048, "momentum": {"start": 0.99}, "teacher_temp": {"epochs": 4}},
    },
    "ibot": {
        **VIT,
        **BF16,
        **FEW_CROPS,
        "epochs": 5,
        "optim": {"name": "adamw", "lr": 1e-3, "warmup_epochs": 1},
        "ibot": {"prototypes": 2048, "momentum": {"start": 0.99}, "teacher_temp": {"epochs": 4}},
    },
}

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
        Ablation("paper-gap", "the paper's gap, 2 pixels of 16", {"jigsaw": {}}),
        Ablation("orders-10", "10 orders", {"jigsaw": {**APART["jigsaw"], "permutations": 10}}),
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
        Ablation("colours", "patches keep their colours", {"cpc": {**BIG_PATCHES, "color_jitter": 0.0, "grey": 0.0}}),
        Ablation("no-flip", "patches not mirrored", {"cpc": {**BIG_PATCHES, "flip": 0.0}}),
        Ablation("apart", "no patches that share pixels", {"cpc": {**BIG_PATCHES, "first_step": 2}}),
    ),
    "simclr": (
        Ablation("no-head", "no head", {"simclr": {**SHARP, "head_layers": 0}}),
        Ablation("no-colour", "colours left alone", {"plan": {"jitter": 0.0, "grayscale": 0.0}}),
    ),
}

# The same encoder by a contrast, to set MAE's probe and fine-tuning beside.
SIMCLR_VIT = Cell("simclr.vit", "simclr", {**VIT, "epochs": 4, "optim": ADAMW}, of="simclr", what="the encoder of mae")
TUNED: tuple[Tuned, ...] = (0, 0.5, 1, 2, "all")


def cells(*, ablations: bool) -> Iterator[Cell]:
    """Those of all methods that there are, or their ablations."""
    there = {SUPERVISED, *methods.names()} - NO_IMAGES
    for method, settings in METHODS.items():
        if method not in there:
            continue
        if not ablations:
            yield Cell(method, method, settings, tuned=TUNED if method == "mae" else ())
        for ablation in ABLATIONS.get(method, ()) if ablations else ():
            name = f"{method}.{ablation.word}"
            yield Cell(name, method, {**settings, **ablation.changes}, of=method, what=ablation.what)
    if ablations:
        yield Cell(SIMCLR_VIT.name, "simclr", SIMCLR_VIT.settings, SIMCLR_VIT.of, SIMCLR_VIT.what, TUNED)
