from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import fastssl
from fastssl import models
from fastssl.data.images import Splits
from fastssl.data.plans import IMAGENET_MEAN
from fastssl.errors import UserError
from fastssl.train.config import RunConfig
from fastssl.train.export import export_encoder, write_features
from fastssl.train.folder import RunFolder
from fastssl.train.loop import pretrain
from fastssl.train.trained import open_run


def test_the_exported_encoder_is_the_trained_one(
    config: RunConfig, splits: Splits, folder: RunFolder, tmp_path: Path
) -> None:
    pretrain(replace(config, epochs=1), splits, folder)
    trained = open_run(folder.path)
    path = tmp_path / "encoder.safetensors"
    export_encoder(trained, path)
    with safe_open(path, "pt") as file:
        told = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    rebuilt = models.get(told["architecture"])(**json.loads(told["options"])).eval()
    rebuilt.load_state_dict(weights, strict=True)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(rebuilt(x), trained.encoder(x))
    assert not torch.equal(rebuilt(x), trained.random_encoder()(x))
    assert rebuilt(x).shape[1] == int(told["feature_dim"])
    assert (told["method"], told["image_size"], told["fastssl"]) == ("simclr", "16", fastssl.__version__)
    assert json.loads(told["mean"]) == list(IMAGENET_MEAN)


def test_npz_holds_features_names_and_labels(splits: Splits, tmp_path: Path) -> None:
    features = torch.rand(len(splits.train), 3)
    write_features(features, splits.train, tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as table:
        assert set(table) == {"features", "names", "labels", "classes"}
        assert np.array_equal(table["features"], features.numpy())
        assert tuple(table["names"]) == splits.train.names
        assert tuple(table["classes"][table["labels"]])[:2] == ("red", "blue")


def test_csv_gives_the_numbers_back_exactly(splits: Splits, unlabelled: Splits, tmp_path: Path) -> None:
    features = torch.rand(len(splits.train), 3)
    for images, columns in ((splits.train, ["name", "label"]), (unlabelled.train, ["name"])):
        write_features(features, images, tmp_path / "f.csv")
        with (tmp_path / "f.csv").open(newline="") as file:
            header, *rows = list(csv.reader(file))
        assert header == [*columns, "f0", "f1", "f2"]
        assert [row[0] for row in rows] == list(images.names)
        numbers = np.array([row[len(columns) :] for row in rows], dtype=np.float32)
        assert np.array_equal(numbers, features.numpy())


def test_without_labels_npz_has_none(unlabelled: Splits, tmp_path: Path) -> None:
    write_features(torch.rand(len(unlabelled.train), 3), unlabelled.train, tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as table:
        assert set(table) == {"features", "names"}


def test_another_ending_is_refused(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not end in \.npz or \.csv"):
        write_features(torch.rand(25, 3), splits.train, tmp_path / "f.txt")
    assert not list(tmp_path.iterdir())
