"""Encoders that torch.compile makes programs of, for as long as a step takes; here of a network of one block."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

from fastssl import models
from fastssl.data import plans
from fastssl.data.images import Splits
from fastssl.errors import UserError
from fastssl.methods import Method
from fastssl.train import checkpoint as checkpoints
from fastssl.train import config as configs
from fastssl.train import log
from fastssl.train.compiled import Compiled
from fastssl.train.config import RunConfig
from fastssl.train.export import export_encoder
from fastssl.train.folder import RunFolder
from fastssl.train.loop import Progress, pretrain
from fastssl.train.trained import open_run


def stop_at_4(progress: Progress) -> None:
    if progress.row.step == 4:
        signal.raise_signal(signal.SIGINT)


def losses(folder: RunFolder) -> list[float]:
    return [row.loss for row in log.read(folder.metrics)]


def test_a_compiled_run_is_the_plain_one_resumes_to_the_same_bits_and_keeps_its_names(
    config: RunConfig, splits: Splits, tmp_path: Path
) -> None:
    plain = replace(config, encoder="vit_micro", patch_size=8, width=32, depth=1)
    compiled = replace(plain, compile=True)
    folders = {name: RunFolder(tmp_path / name) for name in ("plain", "whole", "stopped")}
    expected = pretrain(plain, splits, folders["plain"])
    before = counters["stats"]["unique_graphs"]
    whole = pretrain(compiled, splits, folders["whole"])
    assert counters["stats"]["unique_graphs"] > before
    with pytest.raises(KeyboardInterrupt):
        pretrain(compiled, splits, folders["stopped"], watch=stop_at_4)
    torch.compiler.reset()  # type: ignore[no-untyped-call]  # another process has compiled nothing yet
    resumed = pretrain(compiled, splits, folders["stopped"], resume=True)

    assert whole.model.keys() == expected.model.keys()
    assert losses(folders["whole"]) == pytest.approx(losses(folders["plain"]), rel=1e-3)
    assert all(torch.equal(value, whole.model[name]) for name, value in resumed.model.items())
    assert [row.extra for row in log.read(folders["stopped"].metrics)] == [
        row.extra for row in log.read(folders["whole"].metrics)
    ]
    assert "feature_std" in log.read(folders["whole"].metrics)[0].extra  # what watches the encoder's output saw it

    export_encoder(open_run(folders["whole"].path), tmp_path / "encoder.safetensors")
    encoder = models.get("vit_micro")(**compiled.encoder_options())
    encoder.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)


def test_to_compile_or_not_changes_a_run(config: RunConfig) -> None:
    assert configs.differences(config, replace(config, compile=True)) == ["compile: False -> True"]


def test_a_run_of_before_there_was_the_setting_is_not_compiled(
    config: RunConfig, splits: Splits, folder: RunFolder
) -> None:
    state = pretrain(replace(config, epochs=1), splits, folder)
    del state.config["compile"]
    checkpoints.save(state, folder.checkpoint)
    assert open_run(folder.path).config.compile is False


class Apart(Method):
    """Calls its encoder by a name of its own."""

    def __init__(self, encoder: nn.Module) -> None:
        nn.Module.__init__(self)
        self.encoder = encoder

    @classmethod
    def view_plan(cls, size: int) -> plans.ViewPlan:
        return plans.simclr(size)

    def forward(self, views: list[Tensor]) -> Tensor:
        loss: Tensor = self.encoder[0](views[0]).sum()  # type: ignore[index]
        return loss


def test_a_method_of_which_nothing_would_be_compiled_is_refused() -> None:
    method = Apart(nn.Sequential(nn.Linear(4, 4)))
    message = r"Apart calls its encoder by none of forward, maps, .*: leave --compile out"
    with pytest.raises(UserError, match=message), Compiled(method).step():
        method.forward([torch.zeros(2, 4)])


class Talking(nn.Module):
    """Cannot be one program: it prints, and looks at numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


def test_an_encoder_that_cannot_be_compiled_is_refused_and_stays_as_it_was() -> None:
    method = Apart(Talking())
    message = r"the encoder cannot be compiled here .*: leave --compile out"
    with pytest.raises(UserError, match=message), Compiled(method).step():
        method.encoder(torch.ones(2, 4))
    assert "forward" not in vars(method.encoder)
    assert torch.equal(method.encoder(torch.ones(2, 4)), torch.ones(2, 4))
