from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastssl.errors import UserError
from fastssl.methods.simclr import SimCLRConfig
from fastssl.train import config as configs
from fastssl.train.config import RunConfig
from fastssl.train.optim import OptimConfig

CHANGED = RunConfig(
    data="photos",
    stem="cifar",
    epochs=7,
    views="simclr",
    optim=OptimConfig(name="adamw", lr=3e-5),
    method_config=SimCLRConfig(temperature=0.2),
)


@pytest.mark.parametrize("config", [RunConfig(), CHANGED])
def test_yaml_gives_the_config_back(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    configs.save(config, path)
    assert configs.read(path) == config


def test_missing_settings_take_their_defaults() -> None:
    assert configs.from_dict({"epochs": 7}) == RunConfig(epochs=7)


def test_exponents_that_yaml_reads_as_words_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("optim: {lr: 1e-3}\nsimclr: {temperature: 1}\n")
    config = configs.read(path)
    assert config.optim.lr == 1e-3
    assert config.method_config == SimCLRConfig(temperature=1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown setting 'epoch': did you mean 'epochs'"),
        ("optim: {learning: 3}", "unknown setting 'optim.learning'"),
        ("method_config: {temperature: 3}", "unknown setting 'method_config': did you mean"),
        ("optim: 3", "config.yaml: optim needs settings of the form name: value; got 3"),
        ("epochs: many", "epochs must be of type int; got 'many'"),
        ("epochs: 0", "epochs must be 1 or more; got 0"),
        ("batch_size: 1", "batch_size must be 2 or more; got 1"),
        ("method: simclt", "unknown method 'simclt': did you mean 'simclr'"),
        ("encoder: resnet19", "unknown encoder 'resnet19': did you mean 'resnet18'"),
        ("views: simcl", "unknown view plan 'simcl': did you mean 'simclr'"),
        ("views: evaluation", "makes 1 view"),
        ("stem: cifer", "unknown stem 'cifer': did you mean 'cifar'"),
        ("precision: float16", "unknown precision 'float16'"),
        ("engine: dalli", "unknown engine 'dalli': did you mean 'dali'"),
        ("engine: steam", "unknown engine 'steam': did you mean 'stream'"),
        ("optim: {lr: -1}", "lr must be"),
        ("optim: {name: sdg}", "did you mean 'sgd'"),
        ("method: 5", "unknown method '5'"),
        ("views: 5", "views must be of type str or null; got 5"),
        ("stem: 5", "unknown stem '5'"),
        ("epochs: [3]", "epochs must be of type int; got [3]"),
        ("optim: {name: {sgd: 1}}", "unknown optimiser"),
        ("simclr: {hidden_dim: wide}", "hidden_dim must be of type int or null; got 'wide'"),
        ("1: 3", "unknown setting '1'"),
        ("- a list", "holds no settings"),
        ("a: [", "it is not YAML"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        configs.read(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_differences_leave_out_what_only_changes_where_it_runs() -> None:
    assert configs.differences(CHANGED, replace(CHANGED, device="cpu", threads=3, eval_every=1)) == []
    other = replace(CHANGED, epochs=8, method_config=SimCLRConfig(temperature=0.3))
    assert configs.differences(CHANGED, other) == ["epochs: 7 -> 8", "simclr.temperature: 0.2 -> 0.3"]


def test_command_names_what_differs_from_the_defaults() -> None:
    assert configs.command(RunConfig()) == "fastssl pretrain simclr"
    assert configs.command(RunConfig(data="my photos", epochs=7)) == (
        "fastssl pretrain simclr --data 'my photos' --epochs 7"
    )


def test_another_method_takes_its_own_defaults() -> None:
    assert configs.with_method(CHANGED, "simclr") is CHANGED
