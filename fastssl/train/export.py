"""Taking an encoder out of a run: weights as safetensors, features as tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save as to_safetensors
from torch import Tensor

import fastssl
from fastssl.data.images import ImageSet
from fastssl.errors import UserError
from fastssl.files import atomic_write
from fastssl.models import feature_dim
from fastssl.train.trained import Trained


def export_encoder(trained: Trained, path: Path) -> None:
    """Writes the encoder's state dict as safetensors, a ResNet's under torchvision's names, a ViT's under timm's.

    The file's metadata (strings) say how to build the network and how to feed it: ``architecture`` and ``options``
    (JSON; ``fastssl.models.get(architecture)(**options)``), ``feature_dim``, ``image_size`` (pixels), ``mean`` and
    ``std`` (JSON, for channels in [0, 1]), ``method``, ``fastssl`` (the version), and ``input``: "rgb", or "grey" for
    one that was only shown images without colours, in three equal channels. Of an encoder of recordings ``input`` is
    "waveform", and in place of size, mean and std stands ``samples``, of the windows that it was trained on.

    Raises:
        UserError: for another ending than ``.safetensors``, by which programs know how to read it, or if the file
            system refuses.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path} does not end in .safetensors: give --out {path.with_suffix('.safetensors')}")
    config = trained.config
    metadata = {
        "format": "pt",
        "fastssl": fastssl.__version__,
        "method": config.method,
        "architecture": config.encoder,
        "options": json.dumps(config.encoder_options()),
        "feature_dim": str(feature_dim(trained.encoder)),
        **_fed(trained),
    }
    tensors = {name: value.contiguous() for name, value in trained.encoder.state_dict().items()}
    with atomic_write(path) as partial:
        partial.write_bytes(to_safetensors(tensors, metadata))


def _fed(trained: Trained) -> dict[str, str]:
    """What the encoder takes, for the metadata."""
    config = trained.config
    if config.modality == "audio":
        return {"samples": str(config.media.samples), "input": "waveform"}
    plan = config.view_plan()
    return {
        "image_size": str(config.image_size),
        "mean": json.dumps(plan.mean),
        "std": json.dumps(plan.std),
        "input": trained.method.sees,
    }


def check_table(path: Path) -> None:
    """Refuses a file name that `write_features` does not know, before the features are computed."""
    if path.suffix not in (".npz", ".csv"):
        raise UserError(f"{path} does not end in .npz or .csv: the ending chooses the format")


def write_features(features: Tensor, images: ImageSet, path: Path) -> None:
    """Writes (N, F) features of ``images``.

    ``.npz``: arrays ``features`` (N, F) float32, ``names`` (N,), and where there are labels ``labels`` (N,) int64 and
    ``classes``. ``.csv``: a row for each image: ``name``, ``label`` (the class name, if there is one), ``f0`` ...

    Raises:
        UserError: for another ending, or if the file system refuses.
    """
    check_table(path)
    with atomic_write(path) as partial:
        if path.suffix == ".npz":
            _write_npz(features, images, partial)
        else:
            _write_csv(features, images, partial)


def _write_npz(features: Tensor, images: ImageSet, path: Path) -> None:
    arrays: dict[str, Any] = {"features": features.numpy(), "names": np.array(images.names)}
    if images.labels is not None:
        arrays |= {"labels": images.labels.numpy(), "classes": np.array(images.classes)}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _write_csv(features: Tensor, images: ImageSet, path: Path) -> None:
    labels = None if images.labels is None else [images.classes[i] for i in images.labels.tolist()]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = [f"f{i}" for i in range(features.shape[1])]
        writer.writerow(["name", *(["label"] if labels else []), *columns])
        for i, (name, row) in enumerate(zip(images.names, features.numpy(), strict=True)):
            writer.writerow([name, *([labels[i]] if labels else []), *row])
