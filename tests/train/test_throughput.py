"""What is made of the numbers; the command's tests measure them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fastssl.errors import UserError
from fastssl.train import throughput
from fastssl.train.throughput import BenchConfig, EngineSpeed, Rate, Throughput

CONFIG = BenchConfig("clipart", image_size=8, batch_size=2, width=4, plan={"blur": 0, "crop_scale": [0.5, 1]})


def result(step: float, *engines: EngineSpeed) -> Throughput:
    return Throughput(CONFIG, 10, {"device": "x86_64 CPU"}, engines, Rate(step, step, step))


def test_the_fastest_engine_is_told_by_its_median_and_compared_with_the_step() -> None:
    native, dali = (
        EngineSpeed("native", Rate(50.0, 10.0, 90.0)),
        EngineSpeed("dali", Rate(60.0, 59.0, 61.0), decoding=0.5),
    )
    assert result(70, native, dali).fastest is result(70, dali, native).fastest is dali
    assert [result(step, native, dali).bottleneck for step in (59, 60, 61)] == ["compute", "compute", "data"]
    gone = replace(dali, images=None, cannot="not here")
    assert result(70, gone, native).fastest is native
    told = json.loads(json.dumps(result(70, native, gone).to_dict()))
    assert (told["fastest"], told["bottleneck"], told["engines"][1]["cannot"]) == ("native", "data", "not here")
    assert told["config"]["plan"] == {"blur": 0.0, "crop_scale": [0.5, 1.0]}


def test_a_turn_is_whole_batches_after_one_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 4.0, 6.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    work = iter(range(100))
    assert throughput._timed(work, 8, 5.0, torch.device("cpu")) == 3 * 8 / 6.0
    assert next(work) == 4


def test_a_step_trains_the_encoder_on_every_view(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    class Encoder(torch.nn.Module):
        def __init__(self, *, width: int = 64) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, views: torch.Tensor) -> torch.Tensor:
            assert self.weight.grad is None
            if self.training:  # and not only tried
                seen.append(tuple(views.shape))
            return self.weight * views.mean((2, 3))

    monkeypatch.setattr(throughput.models, "get", lambda _: Encoder)
    config = replace(CONFIG, preset="dino", image_size=56, batch_size=100, max_images=100, plan={"local": {"views": 3}})
    assert throughput._step(config, torch.device("cpu"))(0.0) > 0
    assert seen[:3] == [(32, 3, 56, 56), (32, 3, 56, 56), (96, 3, 24, 24)]
    assert len(seen) == 6


def test_an_engine_whose_process_ends_says_so() -> None:
    process = throughput._Process("native", CONFIG, ())
    process.kill()
    with pytest.raises(UserError, match=r"ended unexpectedly.*\(native\)"):
        process.wait_until_ready()
    process.kill()


def test_an_engines_process_keeps_freed_memory_as_the_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(throughput, "keep_freed_memory", lambda: kept.append(True))

    class Link:
        def send(self, answer: object) -> None:
            assert kept

        def recv(self) -> None:
            raise UserError("that is all")

    throughput._serve(Link(), "native", CONFIG, (), 1)
    assert kept == [True]
