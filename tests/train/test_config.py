from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastssl import methods
from fastssl.data.plans import ViewPlan
from fastssl.errors import UserError
from fastssl.methods.simclr import SimCLRConfig
from fastssl.optim import OptimConfig
from fastssl.train import config as configs
from fastssl.train.config import RunConfig

CHANGED = RunConfig(
    data="photos",
    stem="cifar",
    epochs=7,
    views="simclr",
    plan={"blur": 0.25, "crop_scale": (0.2, 1.0), "rot90": (0, 2)},
    optim=OptimConfig(name="adamw", lr=3e-5),
    method_config=SimCLRConfig(temperature=0.2),
)


@pytest.mark.parametrize("config", [RunConfig(), CHANGED])
def test_yaml_gives_the_config_back(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    configs.save(config, path)
    assert configs.read(path) == config


def test_changes_to_the_plan_are_of_all_its_parts_or_of_one() -> None:
    text = {"views": "byol", "plan": {"flip": 0, "crop_scale": [0.5, 1], "grayscale": None, "second": {"blur": "1e-1"}}}
    config = configs.from_dict(text)
    assert config.plan == {"flip": 0.0, "crop_scale": (0.5, 1.0), "second": {"blur": 0.1}}
    assert [(part.flip, part.crop_scale, part.grayscale) for part in config.view_plan().parts] == [
        (0.0, (0.5, 1.0), 0.2),
        (0.0, (0.5, 1.0), 0.2),
    ]
    assert [part.blur for part in config.view_plan().parts] == [1.0, 0.1]
    assert configs.from_dict({"plan": None}) == RunConfig()


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
        (
            "views: eval",
            "the preset 'eval' makes 1 view of each image, the method 'simclr' takes 2: --views may be byol, ",
        ),
        ("patch_size: 4", "resnet18 has no patch_size, which was set to 4; its options are stem, width"),
        ("{encoder: vit_tiny, stem: cifar}", "vit_tiny has no stem"),
        ("{encoder: vit_tiny, pool: max}", "unknown pool 'max': choose one of: mean, token"),
        ("{encoder: vit_tiny, patch_size: 0}", "patch_size must be 1 or more; got 0"),
        ("optim: {beta2: 1}", "beta2 must lie in [0, 1); got 1.0"),
        ("stem: cifer", "unknown stem 'cifer': did you mean 'cifar'"),
        ("precision: float16", "unknown precision 'float16'"),
        ("engine: dalli", "unknown engine 'dalli': did you mean 'dali'"),
        ("engine: steam", "unknown engine 'steam': did you mean 'stream'"),
        ("optim: {lr: -1}", "lr must be"),
        ("plan: {blurr: 0.1}", "unknown setting 'plan.blurr': did you mean 'plan.blur'?"),
        ("plan: {local: {blur: 0.1}}", "unknown setting 'plan.local'"),
        ("plan: {std: [1, 1, 1]}", "plan.std cannot be set: the encoder is fed alike wherever it is used"),
        ("plan: {flip: 2}", "plan.flip must be a probability in [0, 1]; got 2.0"),
        ("plan: {flip: often}", "plan.flip must be of type float; got 'often'"),
        ("plan: {flip: .nan}", "plan.flip must be a probability in [0, 1]; got nan"),
        ("plan: {crop_scale: 0.5}", "plan.crop_scale must be a list of 2 numbers; got 0.5"),
        ("plan: {crop_scale: [0.5]}", "plan.crop_scale must be a list of 2 numbers; got [0.5]"),
        ("plan: {crop_scale: [0.5, big]}", "plan.crop_scale must be of type float; got 'big'"),
        ("plan: {rot90: 1}", "plan.rot90 must be a list of numbers; got 1"),
        ("plan: {rot90: [1.5]}", "plan.rot90 must be of type int; got 1.5"),
        ("plan: {interpolation: 5}", "plan.interpolation must be bilinear or bicubic; got 5"),
        ("views: dino", "cifar, drawings, moco_v2, simclr, or left out"),
        (
            "plan: {views: 3}",
            "the plan makes 3 views of each image, the method 'simclr' takes 2: leave the plan's views",
        ),
        (
            "{views: byol, plan: {second: {views: 2}}}",
            "the plan makes 3 views of each image, the method 'simclr' takes 2: leave the plan's views",
        ),
        (
            "{views: simclr, plan: {views: 1}}",
            "the plan makes 1 view of each image, the method 'simclr' takes 2: leave the plan's views",
        ),
        (
            "{views: eval, plan: {flip: 0.5}}",
            "the preset 'eval' makes 1 view of each image, the method 'simclr' takes 2: --views may be byol, ",
        ),
        (
            "{views: dino, plan: {local: {views: 1}}}",
            "the plan makes 3 views of each image, the method 'simclr' takes 2: --v",
        ),
        ("{method: mae, views: dino}", "'mae' takes 1: --views may be colorization, eval, jigsaw, mae, r"),
        (
            "{method: rotation, plan: {rot90: [0]}}",
            "turned by 0, 1, 2, 3 quarters, in this order; rot90 turns them by 0, 0, 0, 0",
        ),
        ("{method: rotation, plan: {r90: {rot90: [1, 2]}}}", "rot90 turns them by 0, 1 or 2, 2, 3"),
        ("{method: simclr, views: simclr, plan: {size: 0}}", "plan.size must be in [1, 32768]; got 0"),
        ("{views: byol, plan: {second: 2}}", "plan.second needs settings of the form name: value; got 2"),
        ("plan: 3", "plan needs settings of the form name: value; got 3"),
        ("optim: {name: sdg}", "did you mean 'sgd'"),
        ("method: 5", "unknown method '5'"),
        ("views: 5", "views must be of type str or null; got 5"),
        ("stem: 5", "unknown stem '5'"),
        ("epochs: [3]", "epochs must be of type int; got [3]"),
        ("compile: maybe", "compile must be of type bool; got 'maybe'"),
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


def test_a_preset_normalised_otherwise_than_the_method_needs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ViewPlan(size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    monkeypatch.setattr(methods.get("mae"), "view_plan", lambda size: plain)
    with pytest.raises(
        UserError, match=r"preset 'eval' normalised by ImageNet's .*; the method 'mae' takes them .*0, 1"
    ):
        configs.from_dict({"method": "mae", "views": "eval"})


def test_differences_leave_out_what_only_changes_where_it_runs() -> None:
    assert configs.differences(CHANGED, replace(CHANGED, device="cpu", threads=3, eval_every=1)) == []
    other = replace(CHANGED, epochs=8, method_config=SimCLRConfig(temperature=0.3))
    assert configs.differences(CHANGED, other) == ["epochs: 7 -> 8", "simclr.temperature: 0.2 -> 0.3"]


def test_differences_name_changes_to_the_plan() -> None:
    other = replace(CHANGED, plan={"blur": 0.5, "crop_scale": (0.2, 1.0), "flip": 0.0})
    assert configs.differences(CHANGED, other) == [
        "plan.blur: 0.25 -> 0.5",
        "plan.rot90: [0, 2] -> [0]",
        "plan.flip: 0.5 -> 0.0",
    ]


def test_differences_tell_what_the_preset_has_where_nothing_is_set() -> None:
    plain = RunConfig(method="byol")
    assert configs.differences(plain, replace(plain, plan={"first": {"blur": 0.0}})) == ["plan.first.blur: 1.0 -> 0.0"]
    assert configs.differences(plain, replace(plain, plan={"blur": 0.0})) == [
        "plan.blur: 1.0 (first), 0.1 (second) -> 0.0"
    ]
    assert configs.differences(plain, replace(plain, plan={"flip": 0.5, "second": {"blur": 0.1}})) == []
    other = replace(plain, views="moco_v2", plan={})
    assert configs.differences(replace(plain, plan={"second": {"blur": 0.3}}), other) == [
        "views: None -> moco_v2",
        "plan.second.blur: 0.3 -> None",
    ]


def test_command_names_what_differs_from_the_defaults() -> None:
    assert configs.command(RunConfig()) == "fastssl pretrain simclr"
    assert configs.command(RunConfig(data="my photos", epochs=7)) == (
        "fastssl pretrain simclr --data 'my photos' --epochs 7"
    )
    assert configs.command(RunConfig(plan={"blur": 0.0, "crop_scale": (0.2, 1.0)})) == (
        "fastssl pretrain simclr --plan.blur 0.0 --plan.crop_scale 0.2 1.0"
    )


def test_another_method_takes_its_own_defaults() -> None:
    assert configs.with_method(CHANGED, "simclr") is CHANGED
    assert configs.with_method(RunConfig(), "mae") == configs.recipe("mae")
    other = configs.with_method(RunConfig(data="photos", optim=OptimConfig(lr=0.3)), "mae")
    assert other == replace(configs.recipe("mae"), data="photos", optim=OptimConfig(lr=0.3))
    assert configs.with_method(replace(configs.recipe("mae"), epochs=3), "simclr") == RunConfig(epochs=3)


def test_a_methods_recipe_fills_what_is_missing() -> None:
    config = configs.from_dict({"method": "mae", "optim": {"lr": 2e-3}})
    assert config.encoder == "vit_micro"
    assert config.optim == OptimConfig("adamw", lr=2e-3, weight_decay=0.05, beta2=0.95)
    given = configs.from_dict({"method": "mae", "encoder": "vit_tiny", "patch_size": 8, "optim": {"name": "lars"}})
    assert (given.encoder, given.optim.name) == ("vit_tiny", "lars")
    assert configs.command(config) == "fastssl pretrain mae --optim.lr 0.002"
    assert configs.command(configs.recipe("mae")) == "fastssl pretrain mae"


def test_an_encoder_gets_its_options_and_the_size_of_the_images() -> None:
    set_and_own = {"stem": "imagenet", "width": 8, "max_stride": 32, "channels": 3}
    assert RunConfig(width=8).encoder_options() == set_and_own
    options = RunConfig(encoder="vit_micro", image_size=32, patch_size=4, pool="token").encoder_options()
    assert {**options, "image_size": 32, "patch_size": 4, "pool": "token", "width": 128} == options
