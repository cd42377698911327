"""Other libraries to measure against: where they are loaded, and which are installed.

    python -m benchmarks.rivals             what is installed
    python -m benchmarks.rivals --install   puts all into this Python's environment and leaves its torch alone

A benchmark's provider calls ``load("lightly.loss")`` where it makes its work, without asking first: where the library
is missing, the provider's row says so, and so does the results' `run`.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch

REQUIREMENTS = Path(__file__).parent / "rivals.txt"
# the package that each module comes from
PACKAGES = {
    "cut_cross_entropy": "cut-cross-entropy",
    "faiss": "faiss-cpu",
    "inf_cl": "inf-cl",
    "info_nce": "info-nce-pytorch",
    "kornia": "kornia",
    "lightly": "lightly",
    "open_clip": "open_clip_torch",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "solo": "solo-learn",
    "timm": "timm",
    "torchvision": "torchvision",
}

# What extras of fastssl bring, and rivals use too.
READERS = ("nvidia-dali-cuda130", "webdataset", "av", "soundfile", "pillow")


class NotInstalledError(ImportError):
    """A rival is not here; its text says how to get it."""


def load(module: str) -> Any:
    """The module of a rival, for example ``load("lightly.loss").NTXentLoss``.

    Raises:
        NotInstalledError: naming the package, where it or something it imports is missing.
    """
    package = PACKAGES[module.split(".")[0]]
    try:
        _let_torchvision_load()
        return import_module(module)
    except ModuleNotFoundError as error:
        why = "" if error.name == module.split(".")[0] else f": {error}"
        raise NotInstalledError(f"{package} is not installed{why} (python -m benchmarks.rivals --install)") from error


@functools.cache
def _let_torchvision_load() -> None:
    """Declares the two operators that torchvision looks for: its own library of them needs the torch of a GPU."""
    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)  # an operator goes with the library that declared it


_kept: list[Any] = []


def versions() -> dict[str, str]:
    """The version of each rival and of each library that it or we read data with, or "not installed"."""
    found = {}
    for package in (*PACKAGES.values(), *READERS):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def install() -> None:
    """The versions of rivals.txt, without their dependencies: what they import of them is in that list."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(REQUIREMENTS)]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__.partition("\n")[0])
    parser.add_argument("--install", action="store_true", help="install them all beside the torch that is here")
    if parser.parse_args().install:
        install()
    for package, version in versions().items():
        print(f"{package:24} {version}")


if __name__ == "__main__":
    main()
