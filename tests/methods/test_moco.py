from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastssl.errors import UserError
from fastssl.methods.moco import MoCo, MoCoConfig
from fastssl.schedule import Schedule


class Flat(nn.Module):
    """An encoder that returns its pixels: (N, 3, 2, 2) to (N, 12)."""

    feature_dim = 12

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Normed(Flat):
    """The same, normalised over what of the batch it sees; keeps what that was."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.norm(x.flatten(1))


def views(batch: int = 3) -> list[Tensor]:
    return [torch.randn(batch, 3, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def tiny(encoder: nn.Module | None = None, **settings) -> MoCo:
    torch.manual_seed(0)
    small = {"queue": 8, "out_dim": 5, "hidden_dim": 7}
    return MoCo(Flat() if encoder is None else encoder, MoCoConfig(**small | settings))


def unit(row: list[float]) -> list[float]:
    length = math.hypot(*row)
    return [x / length for x in row]


def test_the_loss_is_equation_1():
    method, (query_view, key_view) = tiny(temperature=0.3), views()
    method.double()
    negatives = method.loss.queue.tolist()
    queries = method.head(query_view.double().flatten(1)).tolist()
    keys = method.keys(key_view.double()).tolist()
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        query = unit(query)
        scores = [sum(a * b for a, b in zip(query, k, strict=True)) / 0.3 for k in [unit(key), *negatives]]
        total += math.log(sum(map(math.exp, scores))) - scores[0]
    loss = method([query_view.double(), key_view.double()])
    assert loss.item() == pytest.approx(total / 3, rel=1e-9)


def test_keys_enter_the_queue_in_training_alone():
    method, both = tiny(), views()
    before, keys = method.loss.queue.clone(), method.keys(both[1])
    method.eval()(both)
    assert torch.equal(method.loss.queue, before)
    method.train()(both)
    torch.testing.assert_close(method.loss.queue[:3], nn.functional.normalize(keys, dim=1))
    assert torch.equal(method.loss.queue[3:], before[3:])


def test_the_key_encoder_gets_no_gradient_and_follows():
    method = tiny(momentum=Schedule(0.9))
    before = [p.clone() for p in method.keys.parameters()]
    method(views()).backward()
    assert all(p.grad is None and not p.requires_grad for p in method.keys.parameters())
    with torch.no_grad():
        for p in method.head.parameters():
            p.add_(1.0)
    method.after_step(0.5)
    for was, now in zip(before, method.keys.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * (was + 1))


def test_momentum_follows_its_schedule():
    method = tiny(momentum=Schedule(0.5, 1.0))
    method.before_step(10, total=10, per_epoch=1)
    before = [p.clone() for p in method.keys.parameters()]
    with torch.no_grad():
        method.head.layers[0].weight.add_(1.0)
    method.after_step(0.5)
    assert all(torch.equal(was, now) for was, now in zip(before, method.keys.parameters(), strict=True))


@pytest.mark.parametrize(("head_layers", "kinds"), [(1, [nn.Linear]), (2, [nn.Linear, nn.ReLU, nn.Linear])])
def test_the_head_of_either_version(head_layers, kinds):
    assert [type(step) for step in tiny(head_layers=head_layers).head.layers] == kinds


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"batch_norm": "split", "part": 2}, [2, 2, 2]),
        ({"batch_norm": "split", "part": 4}, [6]),
        ({"batch_norm": "whole", "part": 2}, [6]),
    ],
)
def test_what_batch_norm_sees(settings, parts):
    encoder = Normed()
    method = tiny(encoder, **settings)
    method(views(6))
    assert [len(x) for x in encoder.seen] == parts
    assert [len(x) for x in method.keys.module[0].seen] == parts


def test_a_batch_that_does_not_divide_has_fewer_parts():
    encoder = Normed()
    tiny(encoder, part=2)(views(8))
    tiny(encoder, part=3)(views(8))
    tiny(encoder, part=2)(views(7))
    assert [len(x) for x in encoder.seen] == [2, 2, 2, 2, 4, 4, 7]


def test_keys_are_normalised_among_other_images_than_their_queries_and_put_back():
    encoder = Normed()
    method = tiny(encoder, part=2)
    both = views(8)
    keys = {"seen": None}
    method.loss.register_forward_pre_hook(lambda _module, inputs: keys.update(seen=inputs[1]))
    torch.manual_seed(3)
    method(both)
    order = [both[1].flatten(1).eq(x).all(1).nonzero().item() for x in torch.cat(method.keys.module[0].seen).flatten(1)]
    assert order != list(range(8))
    assert sorted(order) == list(range(8))
    by_hand = torch.cat([method.head(encoder.norm(both[1][order[i : i + 2]].flatten(1))) for i in range(0, 8, 2)])
    torch.testing.assert_close(keys["seen"][order], by_hand)


def test_when_evaluated_nothing_is_split():
    encoder = Normed()
    tiny(encoder, part=2).eval()(views(6))
    assert [len(x) for x in encoder.seen] == [6]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature of MoCo must be a finite number above 0; got 0.0"),
        ({"queue": 0}, "queue of MoCo must be 1 or more; got 0"),
        ({"head_layers": 0}, "head_layers of MoCo must be 1 or more; got 0"),
        ({"part": 1}, "part of MoCo must be 2 or more; got 1"),
        ({"momentum": Schedule(1.5)}, r"momentum of MoCo must be from 0 to 1; got 1\.5"),
        ({"batch_norm": "shuffle"}, "unknown batch_norm of MoCo 'shuffle'"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        MoCoConfig(**settings)


def test_refuses_a_batch_larger_than_the_queue():
    with pytest.raises(ValueError, match="queue has 2 keys"):
        tiny(queue=2)(views())
