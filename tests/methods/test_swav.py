from __future__ import annotations

import copy
import math
import signal

import pytest
import torch

from fastssl.errors import UserError
from fastssl.methods.swav import SwAVConfig
from fastssl.ops import sinkhorn_knopp
from fastssl.train import config as configs
from fastssl.train import log
from fastssl.train.folder import RunFolder
from fastssl.train.loop import pretrain


def test_the_loss_is_equation_1_of_all_pairs_of_a_code_and_another_crop(build, views_of):
    method = build("swav", prototypes=5, temperature=0.2, epsilon=0.1).double()
    views = [view.double() for view in views_of(method)]
    large, small = method.encoder(torch.cat(views[:2])), method.encoder(torch.cat(views[2:]))
    z = method.head(torch.cat([large, small]))
    weight = method.prototypes.weight
    scores = (z / z.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T
    scores = scores.unflatten(0, (8, 6))
    codes = [sinkhorn_knopp(x, temp=0.1, iterations=3).tolist() for x in scores[:2]]
    pairs = []
    for i, code in enumerate(codes):
        for j, crop in enumerate(scores.tolist()):
            if i != j:
                for q, row in zip(code, crop, strict=True):
                    total = math.log(sum(math.exp(x / 0.2) for x in row))
                    pairs.append(-sum(a * (x / 0.2 - total) for a, x in zip(q, row, strict=True)))
    assert len(pairs) == 2 * 7 * 6
    assert method(views).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)


def test_codes_give_no_gradient_and_prototypes_are_frozen_at_first(build, views_of):
    method = build("swav")
    views = views_of(method)
    method(views).backward()
    assert method.prototypes.weight.grad is None
    method.before_step(2, total=4, per_epoch=2)
    method(views).backward()
    assert method.prototypes.weight.grad.any()


def cosines(z, weight):
    return (z / z.norm(dim=-1, keepdim=True)) @ (weight / weight.norm(dim=-1, keepdim=True)).T


def assigned(scores, epsilon):
    """Equation 3 as it stands: columns and rows of the exponentials in turn, three times; every sum is of floats."""
    q = [[math.exp(x / epsilon) for x in row] for row in scores.tolist()]
    for _ in range(3):
        q = [[x / total for x, total in zip(row, map(sum, zip(*q, strict=True)), strict=True)] for row in q]
        q = [[x / sum(row) for x in row] for row in q]
    return torch.tensor(q, dtype=scores.dtype)


def queued(build, **settings):
    """With 12 rows a crop, two batches, from the second epoch of two steps on."""
    return build("swav", prototypes=5, epsilon=0.2, out_dim=8, queue=12, queue_epochs=1, **settings).double()


def test_a_full_queue_fills_the_prototypes_with_the_batch(build, views_of, monkeypatch):
    method = queued(build)
    views = [view.double() for view in views_of(method)]
    told, earlier = [], [[], []]
    monkeypatch.setattr(
        "fastssl.methods.swav.distillation_loss",
        lambda scores, codes, **temps: told.append(codes) or scores.sum(),
    )
    for step in range(7):
        method.before_step(step, total=8, per_epoch=2)
        batch, same = [view + 0.1 * step for view in views], copy.deepcopy(method)
        with torch.no_grad():
            z = same.head(same.features(batch)).unflatten(0, (len(views), -1))[:2]
            method(batch)
        weight = method.prototypes.weight.detach()
        for crop in range(2):
            full = len(earlier[crop]) == 2
            rows = torch.cat([*earlier[crop], z[crop]]) if full else z[crop]
            expected = assigned(cosines(rows, weight), 0.2)[-6:]
            torch.testing.assert_close(told[-1][crop], expected, rtol=1e-6, atol=1e-9)
            if step >= 2:  # the second epoch
                earlier[crop] = [*earlier[crop], z[crop]][-2:]
        assert full == (step >= 4)


def test_without_a_queue_nothing_is_kept(build):
    assert not {"queue", "cursors"} & build("swav").state_dict().keys()
    assert {"queue", "cursors"} <= queued(build).state_dict().keys()


def test_evaluation_leaves_the_queue(build, views_of):
    method = queued(build).eval()
    method.before_step(2, total=4, per_epoch=2)
    method([view.double() for view in views_of(method)])
    assert not method.queue.any()


def test_a_run_with_a_queue_resumes_to_the_same_bits(tmp_path, data_of):
    small = {"image_size": 32, "width": 8, "epochs": 4, "batch_size": 4, "threads": 1}
    settings = {"prototypes": 16, "queue": 8, "queue_epochs": 1}
    config = configs.from_dict({"method": "swav", **small, "swav": settings})
    data, whole, stopped = data_of("swav", 9, 32), RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    expected = pretrain(config, data, whole)

    def stop_at_5(progress):  # of 8; the queue is full, and used
        if progress.row.step == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pretrain(config, data, stopped, watch=stop_at_5)
    resumed = pretrain(config, data, stopped, resume=True)
    assert all(torch.equal(value, expected.model[name]) for name, value in resumed.model.items())
    assert [row.loss for row in log.read(stopped.metrics)] == [row.loss for row in log.read(whole.metrics)]
    without = pretrain(
        configs.from_dict({"method": "swav", **small, "swav": {"prototypes": 16}}), data, stopped, overwrite=True
    )
    assert not torch.equal(without.model["head.layers.0.weight"], expected.model["head.layers.0.weight"])


def test_its_crops(build):
    plan = build("swav").view_plan(224)
    assert plan.sizes == [224, 224, *[96] * 6]
    assert [part.crop_scale for part in plan.parts] == [(0.14, 1.0), (0.05, 0.14)]
    assert {(part.blur, part.brightness) for part in plan.parts} == {(0.5, 0.8)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prototypes": 0}, "prototypes of SwAV must be 1 or more; got 0"),
        ({"queue": -1}, "queue of SwAV must be 0 or more; got -1"),
        ({"epsilon": 0.0}, "epsilon of SwAV must be a finite number above 0; got 0.0"),
        ({"temperature": math.inf}, "temperature of SwAV must be a finite number above 0; got inf"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        SwAVConfig(**settings)
