"""Writes docs/published-settings.md: what papers and their authors' code train with, beside the defaults here.

python docs/published_settings.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastssl.train import config as configs
from fastssl.train.config import RunConfig

PAGE = Path(__file__).with_name("published-settings.md")

HEAD = """\
# Published settings, and the defaults here

The defaults of `fastssl` are for what most people begin with: some thousand small images, one device, minutes or hours.
Papers train a ResNet-50 or a Vision Transformer on ImageNet, for days, on many devices. This page says what they
published, where it stands, what differs here, and which command sets it. `imagenet` and `cifar10` stand for your
folders of images.

Where "here" is empty nothing is set, and method or encoder choose by their own size. What is in no row, and no note, is
a default here that the source does not name. The page is made by `python docs/published_settings.py` from the settings
as they are.

Three things hold for all of them. Weights of one dimension never decay here; in the code of MoCo, SimSiam and SwAV they
do. The learning rate falls along half a cosine; where it falls in steps in the source, a note says so. And the batch is
that of one device, on which batch normalisation sees all of it, as synchronised batch normalisation does on several.

## At a glance

Published / here. The learning rate is for each 256 images of the batch, as most papers scale it.

| run | encoder | optimizer | learning rate | batch | epochs | weight decay |
|---|---|---|---|---|---|---|
"""

TAIL = """\
## Not on this page

The training settings of [split_brain](methods/split_brain.md) and [video_colorization](methods/video_colorization.md),
of which we found no training code of the authors'. What the papers tell of the methods themselves (bins, halves,
clusters, reference frames) is what is done here.
"""


@dataclass(frozen=True)
class Published:
    """Settings of one published run.

    Attributes:
        title: the method's name here, and what tells this run from others of it.
        source: where the numbers stand, in Markdown.
        settings: as in a config file; those that the source names.
        notes: what of the source no setting expresses.
    """

    title: str
    source: str
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> RunConfig:
        return configs.from_dict({"data": "imagenet", **self.settings})


def link(repository: str, path: str) -> str:
    return f"[{repository}: {path}](https://github.com/{repository}/blob/HEAD/{path})"


def paper(number: str, where: str = "") -> str:
    return f"[arXiv:{number}](https://arxiv.org/abs/{number})" + (where and f", {where}")


def sgd(lr: float, weight_decay: float, warmup: int = 0) -> dict[str, Any]:
    return {"name": "sgd", "lr": lr, "momentum": 0.9, "weight_decay": weight_decay, "warmup_epochs": warmup}


def lars(lr: float, weight_decay: float, final_lr: float = 0.0, warmup: int = 10) -> dict[str, Any]:
    return {**sgd(lr, weight_decay, warmup), "name": "lars", "final_lr": final_lr}


def adamw(lr: float, weight_decay: float, warmup: int, **further: float) -> dict[str, Any]:
    return {"name": "adamw", "lr": lr, "weight_decay": weight_decay, "warmup_epochs": warmup, **further}


RESNET50 = {"encoder": "resnet50", "image_size": 224}
DINO_OPTIM = adamw(2e-3, 0.04, 10, final_weight_decay=0.4, final_lr=1e-6)
DINO_HEAD = {
    "hidden_dim": 2048,
    "bottleneck_dim": 256,
    "momentum": {"start": 0.996, "end": 1.0},
    "student_temp": 0.1,
    "teacher_temp": {"start": 0.04, "end": 0.07, "epochs": 30},
    "center_momentum": 0.9,
}
DINO_NOTES = (
    "Stochastic depth of 0.1 in the student, and clipping of gradients at a norm of 3, are not here.",
    "Of a ViT-S the authors leave the last layer unnormalised (`--norm_last_layer false`); here it is normalised, as "
    "they have it for a ViT-B.",
)

RUNS = (
    Published(
        "simclr",
        f"{link('google-research/simclr', 'README.md')} (ImageNet); {paper('2002.05709', 'section 2.2')}",
        {
            "method": "simclr",
            **RESNET50,
            "batch_size": 4096,
            "epochs": 100,
            "optim": lars(4.8, 1e-6),
            "simclr": {"temperature": 0.1, "hidden_dim": 2048, "out_dim": 128, "head_layers": 2},
        },
        ("`--simclr.chunk 512` lets the batch fit on one device; batch normalisation then sees a chunk.",),
    ),
    Published(
        "simclr, CIFAR-10",
        link("google-research/simclr", "README.md"),
        {
            "data": "cifar10",
            "method": "simclr",
            "encoder": "resnet18",
            "stem": "cifar",
            "image_size": 32,
            "views": "cifar",
            "batch_size": 512,
            "epochs": 1000,
            "optim": lars(1.0, 1e-6),
            "simclr": {"temperature": 0.5},
        },
    ),
    Published(
        "moco, version 1",
        f"{link('facebookresearch/moco', 'main_moco.py')}; {paper('1911.05722', 'section 3.3')}",
        {
            "method": "moco",
            **RESNET50,
            "plan": {"blur": 0.0, "jitter": 1.0, "hue": 0.4},
            "batch_size": 256,
            "epochs": 200,
            "optim": sgd(0.03, 1e-4),
            "moco": {
                "temperature": 0.07,
                "queue": 65536,
                "momentum": {"start": 0.999},
                "out_dim": 128,
                "head_layers": 1,
                "batch_norm": "split",
                "part": 32,
            },
        },
        ("The learning rate falls to a tenth after 120 and 160 epochs.",),
    ),
    Published(
        "moco, version 2",
        f"{link('facebookresearch/moco', 'README.md')}; {paper('2003.04297', 'section 3')}",
        {
            "method": "moco",
            **RESNET50,
            "batch_size": 256,
            "epochs": 200,
            "optim": sgd(0.03, 1e-4),
            "moco": {
                "temperature": 0.2,
                "queue": 65536,
                "momentum": {"start": 0.999},
                "hidden_dim": 2048,
                "out_dim": 128,
                "head_layers": 2,
                "batch_norm": "split",
                "part": 32,
            },
        },
    ),
    Published(
        "moco_v3, ViT-S",
        f"{link('facebookresearch/moco-v3', 'CONFIG.md')}; {paper('2104.02057', 'section 4')}",
        {
            "method": "moco_v3",
            "encoder": "vit_small",
            "image_size": 224,
            "batch_size": 4096,
            "epochs": 300,
            "optim": adamw(2.4e-3, 0.1, 40),
            "moco_v3": {
                "temperature": 0.2,
                "momentum": {"start": 0.99, "end": 1.0},
                "hidden_dim": 4096,
                "out_dim": 256,
                "projector_layers": 3,
                "train_patches": False,
            },
        },
        ("The authors' ViT-S has 12 attention heads, ours 6, as timm's.",),
    ),
    Published(
        "moco_v3, ResNet-50",
        f"{link('facebookresearch/moco-v3', 'CONFIG.md')}",
        {
            "method": "moco_v3",
            **RESNET50,
            "plan": {"crop_scale": [0.2, 1.0]},
            "batch_size": 4096,
            "epochs": 300,
            "optim": lars(4.8, 1e-6),
            "moco_v3": {
                "temperature": 1.0,
                "momentum": {"start": 0.99, "end": 1.0},
                "hidden_dim": 4096,
                "out_dim": 256,
                "projector_layers": 2,
            },
        },
    ),
    Published(
        "byol",
        f"{paper('2006.07733', 'section 3.3')}; {link('google-deepmind/deepmind-research', 'byol/configs/byol.py')}",
        {
            "method": "byol",
            **RESNET50,
            "batch_size": 4096,
            "epochs": 1000,
            "optim": lars(3.2, 1.5e-6),
            "byol": {"momentum": {"start": 0.996, "end": 1.0}, "hidden_dim": 4096, "out_dim": 256},
        },
        ("For 300 epochs: `--optim.lr 4.8 --optim.weight_decay 1e-6 --byol.momentum.start 0.99`.",),
    ),
    Published(
        "simsiam",
        f"{link('facebookresearch/simsiam', 'main_simsiam.py')}; {paper('2011.10566', 'section 3')}",
        {
            "method": "simsiam",
            **RESNET50,
            "batch_size": 512,
            "epochs": 100,
            "optim": sgd(0.1, 1e-4),
            "simsiam": {"out_dim": 2048, "projector_layers": 3, "predictor_dim": 512},
        },
        ("The predictor's learning rate does not fall (`--fix-pred-lr`).",),
    ),
    Published(
        "barlow_twins",
        f"{link('facebookresearch/barlowtwins', 'main.py')}; {paper('2103.03230', 'section 2.2')}",
        {
            "method": "barlow_twins",
            **RESNET50,
            "plan": {"interpolation": "bicubic"},
            "batch_size": 2048,
            "epochs": 1000,
            "optim": lars(1.6, 1.5e-6, final_lr=0.0016),
            "barlow_twins": {"redundancy_weight": 0.005, "scale": 1.0, "out_dim": 8192},
        },
        (
            "Biases and normalisation have a learning rate of their own, 0.0048 for each 256 images; here they have "
            "that of the weights.",
            "The code has a weight decay of 1e-6 and a lambda of 0.0051 by default; the paper's are above.",
        ),
    ),
    Published(
        "vicreg",
        f"{link('facebookresearch/vicreg', 'main_vicreg.py')}; {paper('2105.04906', 'section 4.2')}",
        {
            "method": "vicreg",
            **RESNET50,
            "batch_size": 2048,
            "epochs": 1000,
            "optim": lars(1.6, 1e-6, final_lr=0.0016),
            "vicreg": {"invariance": 25.0, "variance": 25.0, "covariance": 1.0, "out_dim": 8192},
        },
    ),
    Published(
        "swav, batches of 4096",
        link("facebookresearch/swav", "scripts/swav_400ep_pretrain.sh"),
        {
            "method": "swav",
            **RESNET50,
            "batch_size": 4096,
            "epochs": 400,
            "optim": lars(4.8, 1e-6, final_lr=0.0048),
            "swav": {
                "prototypes": 3000,
                "temperature": 0.1,
                "epsilon": 0.05,
                "hidden_dim": 2048,
                "out_dim": 128,
                "train_prototypes": {"start": 0.0, "end": 1.0, "epochs": 1},
                "queue": 0,
            },
        },
    ),
    Published(
        "swav, batches of 256, with the queue",
        link("facebookresearch/swav", "scripts/swav_400ep_bs256_pretrain.sh"),
        {
            "method": "swav",
            **RESNET50,
            "batch_size": 256,
            "epochs": 400,
            "optim": lars(0.6, 1e-6, final_lr=0.0006, warmup=0),
            "swav": {
                "prototypes": 3000,
                "temperature": 0.1,
                "epsilon": 0.05,
                "hidden_dim": 2048,
                "out_dim": 128,
                "train_prototypes": {"start": 0.0, "end": 1.0, "epochs": 1},
                "queue": 3840,
                "queue_epochs": 15,
            },
        },
    ),
    Published(
        "dino, ViT-S/16",
        f'{link("facebookresearch/dino", "README.md")} ("boosting"), {link("facebookresearch/dino", "main_dino.py")}; '
        f"{paper('2104.14294', 'section 3.2')}",
        {
            "method": "dino",
            "encoder": "vit_small",
            "pool": "token",
            "image_size": 224,
            "plan": {"local": {"views": 8}},
            "batch_size": 1024,
            "epochs": 300,
            "optim": DINO_OPTIM,
            "dino": {"prototypes": 65536, **DINO_HEAD, "train_prototypes": {"start": 0.0, "end": 1.0, "epochs": 1}},
        },
        DINO_NOTES,
    ),
    Published(
        "ibot, ViT-S/16",
        f"{link('bytedance/ibot', 'README.md')}; {paper('2111.07832', 'section 4')}",
        {
            "method": "ibot",
            "encoder": "vit_small",
            "image_size": 224,
            "plan": {
                "first": {"crop_scale": [0.25, 1.0]},
                "second": {"crop_scale": [0.25, 1.0]},
                "local": {"views": 10, "crop_scale": [0.05, 0.25]},
            },
            "batch_size": 1024,
            "epochs": 800,
            "optim": DINO_OPTIM,
            "ibot": {
                "prototypes": 8192,
                **DINO_HEAD,
                "mask_ratio": 0.3,
                "mask_spread": 0.2,
                "masked_share": 0.5,
                "patch_weight": 1.0,
            },
        },
        (
            *DINO_NOTES,
            "The authors draw the number of hidden patches for each image, here it is that of the step: "
            "[why](methods/ibot.md#what-is-done-and-why).",
        ),
    ),
    Published(
        "mae, ViT-B/16",
        f"{link('facebookresearch/mae', 'PRETRAIN.md')}; {paper('2111.06377', 'appendix A.1')}",
        {
            "method": "mae",
            "encoder": "vit_base",
            "image_size": 224,
            "batch_size": 4096,
            "epochs": 800,
            "optim": adamw(2.4e-3, 0.05, 40, momentum=0.9, beta2=0.95),
            "mae": {"mask_ratio": 0.75, "decoder_width": 512, "decoder_depth": 8, "normalize_pixels": True},
        },
    ),
    Published(
        "rotation, AlexNet",
        link("gidariss/FeatureLearningRotNet", "config/ImageNet_RotNet_AlexNet.py"),
        {
            "method": "rotation",
            "encoder": "alexnet",
            "image_size": 224,
            "batch_size": 192,
            "epochs": 50,
            "optim": sgd(0.01, 5e-4),
        },
        ("Nesterov's momentum; the learning rate falls to a tenth after 15, 30 and 45 epochs.",),
    ),
    Published(
        "relative_patch, AlexNet",
        link("cdoersch/deepcontext", "train.py"),
        {
            "method": "relative_patch",
            "encoder": "alexnet",
            "optim": {"name": "sgd", "weight_decay": 0.0},
            "relative_patch": {
                "gap": 48 / 144,
                "jitter": 7 / 144,
                "colors": "drop",
                "pixelate": 1 / 3,
                "hidden_dim": 4096,
            },
        },
        ("The authors' learning rate, 1e-5, is of a loss summed over the pairs of up to 512 patches of 96 pixels.",),
    ),
    Published(
        "jigsaw, AlexNet",
        f"{link('MehdiNoroozi/JigsawPuzzleSolver', 'solver_cfn_jps.prototxt')}; {paper('1603.09246')}",
        {
            "method": "jigsaw",
            "encoder": "alexnet",
            "optim": sgd(0.01, 5e-4),
            "jigsaw": {"permutations": 1000, "gap": 11 / 75, "channel_shift": 2 / 64},
        },
        ("350,000 steps; the learning rate falls to a tenth every 100,000.",),
    ),
    Published(
        "inpainting",
        f"{link('pathak22/context-encoder', 'train_random.lua')}; {paper('1604.07379', 'section 3.2')}",
        {
            "method": "inpainting",
            "image_size": 128,
            "batch_size": 64,
            "optim": {"name": "adamw", "lr": 2e-3, "momentum": 0.5, "weight_decay": 0.0},
            "inpainting": {"hole": "region", "adversarial_weight": 0.001, "discriminator_lr": 2e-4},
        },
        ("The learning rate stays as it is.",),
    ),
    Published(
        "colorization",
        f"{link('richzhang/colorization', 'train/solver.prototxt')}; {paper('1603.08511', 'section 2')}",
        {
            "method": "colorization",
            "image_size": 176,
            "optim": {
                "name": "adamw",
                "lr": 3e-5,
                "momentum": 0.9,
                "beta2": 0.99,
                "weight_decay": 1e-3,
                "warmup_epochs": 0,
            },
            "colorization": {"rebalance": True, "temperature": 0.38},
        },
        (
            "500,000 steps; the learning rate falls to a tenth every 225,000.",
            "Caffe's Adam adds the decay to the gradient, AdamW to the weight, where as small a number does less.",
        ),
    ),
    Published(
        "cpc",
        paper("1807.03748", "section 3.2"),
        {
            "method": "cpc",
            "image_size": 256,
            "batch_size": 512,
            "optim": {"name": "adamw", "lr": 2e-4},
            "cpc": {
                "grid": 7,
                "overlap": 0.5,
                "jitter": 4 / 64,
                "flip": 0.0,
                "color_jitter": 0.0,
                "grey": 1.0,
                "last_step": 5,
            },
        },
        ("The encoder is a ResNet-101 without batch normalisation, up to its third stage.",),
    ),
    Published(
        "cpc_audio",
        paper("1807.03748", "section 3.1"),
        {
            "method": "cpc_audio",
            "width": 512,
            "batch_size": 64,
            "media": {"samples": 20480},
            "optim": {"name": "adamw", "lr": 2e-4},
            "cpc_audio": {"last_step": 12},
        },
        ("300,000 steps; Adam, without decay as far as the paper tells.",),
    ),
)


def told(value: Any) -> str:
    """A setting's value, as the tables have it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(told, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def here(run: Published, name: str) -> Any:
    """The default of a setting; of the views' the method's own plan."""
    if not name.startswith("plan."):
        return configs.flat(configs.recipe(run.config.method)).get(name)
    *part, field = name.split(".")[1:]
    parts = replace(run.config, plan={}).view_plan().parts
    return getattr(next(own for own in parts if not part or own.name == part[0]), field)


def named(run: Published) -> dict[str, Any]:
    """The settings that the source names, by their names on the command line."""
    return configs.flattened({name: value for name, value in run.settings.items() if name not in ("method", "data")})


def glance(run: Published) -> str:
    """The run's row of the first table."""
    given, default = named(run), configs.flat(configs.recipe(run.config.method))
    rates = [
        told(256 * values["optim.lr"] / values["batch_size"]) if {"optim.lr", "batch_size"} <= values.keys() else "-"
        for values in (given, default)
    ]
    shown = ("encoder", "optim.name", "optim.lr", "batch_size", "epochs", "optim.weight_decay")
    cells = [
        " / ".join(rates if name == "optim.lr" else (told(given.get(name, "-")), told(default[name]))) for name in shown
    ]
    anchor = re.sub(r"[^\w\- ]", "", run.title.lower()).replace(" ", "-")
    return f"| [{run.title}](#{anchor}) | {' | '.join(cells)} |"


def section(run: Published) -> str:
    """The part of a run."""
    pairs = {name: (told(value), told(here(run, name))) for name, value in named(run).items()}
    rows = [f"| `{name}` | {published} | {own} |" for name, (published, own) in pairs.items() if published != own]
    same = [f"`{name}` {published}" for name, (published, own) in pairs.items() if published == own]
    method = run.config.method
    parts = [
        f"## {run.title}",
        f"[{method}](methods/{method}.md), by {run.source}.",
        f"```\n{configs.command(run.config)}\n```",
        "\n".join(["| setting | published | here |", "|---|---|---|", *rows]),
    ]
    if same:
        parts.append(f"As published: {', '.join(same)}.")
    if run.notes:
        parts.append("\n".join(f"- {note}" for note in run.notes))
    return "\n\n".join(parts) + "\n"


def page() -> str:
    """The text of docs/published-settings.md."""
    table = "".join(f"{glance(run)}\n" for run in RUNS)
    return "\n".join([HEAD + table, *map(section, RUNS), TAIL])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
