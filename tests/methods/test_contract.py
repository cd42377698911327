"""What every method promises, whichever it is: a new module in ``fastssl.methods`` is tested here."""

from __future__ import annotations

import copy
import math
import re
import signal
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from docstring_parser import parse
from safetensors.torch import load_file

from fastssl import methods, models
from fastssl.data.plans import ViewPlan
from fastssl.losses import DINOLoss, MoCoLoss
from fastssl.methods import Method
from fastssl.train import config as configs
from fastssl.train import log
from fastssl.train.compiled import Compiled
from fastssl.train.export import export_encoder
from fastssl.train.folder import RunFolder
from fastssl.train.health import CollapseWatch
from fastssl.train.loop import build_method, pretrain
from fastssl.train.trained import open_run

STEPS = 30

pytestmark = pytest.mark.parametrize("name", methods.names())


def test_the_module_says_where_it_comes_from(name):
    assert "arXiv:" in (methods.get(name).__doc__ or "")


def test_config_is_a_frozen_dataclass_of_documented_defaults(name):
    config = methods.get(name).Config
    assert is_dataclass(config)
    assert config.__dataclass_params__.frozen
    config()  # every field has a default
    described = {param.arg_name for param in parse(config.__doc__).params if param.description}
    assert described == {field.name for field in fields(config)}


@pytest.mark.parametrize("size", [16, 224])
def test_view_plan(name, size):
    method = methods.get(name)
    if method.modality == "audio":  # of waveforms no views are made
        assert method.view_plan.__func__ is Method.view_plan.__func__
        return
    plan = method.view_plan(size)
    assert isinstance(plan, ViewPlan)
    assert plan.size == size


def test_training_reaches_every_parameter(name, build, views_of):
    method = build(name)
    method.before_step(9, total=10, per_epoch=1)  # what begins frozen is not any more
    loss = method(views_of(method))
    assert loss.shape == ()
    assert math.isfinite(loss.item())
    loss.backward()
    without = [key for key, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)
    assert any(p.requires_grad for p in method.encoder.parameters())


def test_signs_of_a_collapse_are_of_features_that_the_step_computed(name, build, views_of):
    method = build(name)
    watch, before = CollapseWatch(method), set(vars(method.encoder))
    with watch.forward(0):
        method(views_of(method)).backward()
    signs = watch.signs()
    assert 0 < signs["feature_std"] < 1
    assert signs["feature_rank"] >= 1
    assert set(vars(method.encoder)) == before
    assert watch.signs() == {}


def test_a_few_steps_lower_the_loss(name, build, views_of):
    method = build(name)
    views = views_of(method)
    for part in method.modules():
        if isinstance(part, MoCoLoss | DINOLoss):
            part.eval()  # a queue or a center that moved would make it another loss
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    losses = []
    for step in range(STEPS):
        method.before_step(step, total=STEPS, per_epoch=2)
        optimizer.zero_grad()
        torch.manual_seed(0)  # the batch is one only if what a method draws of it is
        loss = method(views)
        loss.backward()
        optimizer.step()
        method.after_step((step + 1) / STEPS)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_compiled_step_is_the_plain_one(name, build, views_of, monkeypatch):
    def traced(function, **settings):  # as for a program, of which the steps are then taken one by one
        return compile_(function, backend="eager", fullgraph=settings["fullgraph"], dynamic=settings["dynamic"])

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    method = build(name)
    views = views_of(method)
    state = copy.deepcopy(method.state_dict())
    losses, gradients = [], []
    for computing in (nullcontext, Compiled(method).step):
        method.load_state_dict(state)
        method.zero_grad()
        torch.manual_seed(0)
        with computing():
            loss = method(views)
            loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in method.parameters() if p.grad is not None])
    assert losses[0] == losses[1]
    assert all(map(torch.equal, *gradients))
    assert method.state_dict().keys() == state.keys()


def test_schedules_are_values_of_their_steps(name, build):
    method = build(name)
    assert method.now == {key: schedule.start for key, schedule in method.schedules.items()}
    method.before_step(5, total=10, per_epoch=5)
    assert method.now == {key: schedule.at(5, total=10, per_epoch=5) for key, schedule in method.schedules.items()}
    assert not {"loss", "lr", "weight_decay", "step", "epoch"} & method.now.keys()


def test_state_dict_holds_the_whole_state(name, build, views_of):
    method, other = build(name, seed=0), build(name, seed=1)
    views = views_of(method)
    method(views)
    other.load_state_dict(copy.deepcopy(method.state_dict()), strict=True)
    for mode in (True, False):
        torch.manual_seed(0)
        expected = method.train(mode)(views)
        torch.manual_seed(0)
        assert torch.equal(other.train(mode)(views), expected)


def test_metrics_are_named_numbers(name, build, views_of):
    method = build(name)
    views = views_of(method)
    logged = []
    for _ in range(2):
        loss = method(views).item()
        logged.append(method.metrics(loss, len(views[0])))
    assert all(isinstance(key, str) and math.isfinite(value) for key, value in logged[0].items())
    assert not {"loss", "lr", "step", "epoch"} & logged[0].keys()
    assert logged[0].keys() == logged[1].keys()  # the columns of a table


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_run_resumes_to_the_same_bits(name, precision, tmp_path, data_of):
    # 160 pixels: on 1 x 1 maps oneDNN's bfloat16 gradient of a strided convolution reads memory that it never wrote
    data = data_of(name, 9, 160)
    small = {"method": name, "image_size": 160, "width": 8, "epochs": 2, "batch_size": 4, "threads": 1}
    few = configs.from_dict({**small, "precision": precision})
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    expected = pretrain(few, data, whole)

    def stop_at_3(progress):
        if progress.row.step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 4"):
        pretrain(few, data, stopped, watch=stop_at_3)
    resumed = pretrain(few, data, stopped, resume=True)
    assert resumed.model.keys() == expected.model.keys()
    assert all(
        torch.equal(value, expected.model[key]) if isinstance(value, torch.Tensor) else value == expected.model[key]
        for key, value in resumed.model.items()
    )
    losses = [[(row.loss, dict(row.extra)) for row in log.read(folder.metrics)] for folder in (whole, stopped)]
    assert losses[0] == losses[1]
    assert build_method(few).now.keys() <= losses[0][0][1].keys()
    exported(stopped, tmp_path / "encoder.safetensors")


def exported(folder, path):
    """Writes the encoder and loads it as a user would."""
    trained = open_run(folder.path)
    export_encoder(trained, path)
    encoder = models.get(trained.config.encoder)(**trained.config.encoder_options())
    encoder.load_state_dict(load_file(path), strict=True)
    assert all(torch.equal(value, trained.method.kept.state_dict()[key]) for key, value in encoder.state_dict().items())
    for tunable in (trained.encoder, trained.random_encoder()):  # whatever the method froze
        assert [p.requires_grad for p in tunable.parameters()] == [p.requires_grad for p in encoder.parameters()]


def test_pictures_are_images_like_the_views(name, build, views_of):
    method = build(name).eval()
    views = views_of(method)
    for caption, pictures in method.pictures(views).items():
        assert caption
        assert pictures.shape[:2] == (len(views[0]), 3)
        assert pictures.dtype == torch.float32
        assert bool(pictures.isfinite().all())


def test_wrong_input_is_refused_by_a_sentence(name, build, views_of):
    method = build(name)
    views = views_of(method)
    too_many = [] if method.multi_crop else [[*views, views[0]]]
    for wrong in ([view.byte() for view in views], [view[0] for view in views], [], *too_many):
        with pytest.raises((TypeError, ValueError), match=rf"^{type(method).__name__}: (views must be|takes) .*; got "):
            method(wrong)


def test_is_a_method_with_its_encoder(name, build):
    method = build(name)
    assert isinstance(method, Method)
    inputs = torch.zeros(2, 2560) if method.modality == "audio" else torch.zeros(2, 3, 16, 16)
    assert method.encoder(inputs).shape == (2, method.encoder.feature_dim)
    assert method.config == method.Config()
    assert method.kept.state_dict().keys() == method.encoder.state_dict().keys()


def test_the_readme_leads_to_its_page(name):
    root = Path(__file__).parent.parent.parent
    page = re.search(rf"\[`{name}`\]\((docs/methods/\w+\.md)\)", (root / "README.md").read_text(encoding="utf-8"))
    assert page is not None
    assert f"fastssl pretrain {name} " in (root / page[1]).read_text(encoding="utf-8")
