"""The adversary: its optimizer is torch's Adam, its state survives, and it leaves alone whom it judges."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.models.adversary import Adversary
from fastssl.models.decoders import Discriminator

LR = 2e-3


def adversary(seed: int = 0) -> Adversary:
    torch.manual_seed(seed)
    return Adversary(Discriminator(8, width=4), LR)


def images(seed: int) -> tuple[Tensor, Tensor]:
    pair = torch.randn(2, 6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return pair[0] + 0.5, pair[1] - 0.5


def test_steps_are_adams_on_the_cross_entropy() -> None:
    ours, plain = adversary(), adversary().judge.requires_grad_(True)
    optimizer = torch.optim.Adam(plain.parameters(), lr=LR, betas=(0.5, 0.999))
    for i in range(4):
        real, fake = images(i)
        loss = F.softplus(-plain(real)).mean() + F.softplus(plain(fake)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(ours.step(real, fake), loss.detach())
    for a, b in zip(ours.judge.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_a_fake_costs_is_that_it_is_not_taken_for_real() -> None:
    judge, (_, fake) = adversary().eval(), images(0)
    loss, fooled = judge(fake)
    logits = judge.judge(fake).double()
    torch.testing.assert_close(loss.double(), -torch.sigmoid(logits).log().mean())
    assert fooled.item() == pytest.approx((logits > 0).double().mean().item())


def test_gradients_flow_to_the_fakes_and_to_no_weight() -> None:
    judge, (real, fake) = adversary(), images(0)
    fake.requires_grad_()
    judge(fake)[0].backward()
    assert fake.grad is not None
    assert fake.grad.any()
    fake.grad = None
    judge.step(real, fake)
    assert fake.grad is None
    assert all(p.grad is None and not p.requires_grad for p in judge.parameters())


def test_a_state_dict_goes_on_to_the_same_bits() -> None:
    first, second = adversary(0), adversary(1)
    for i in range(3):
        first.step(*images(i))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    copied = copy.deepcopy(first)
    for other in (first, second, copied):
        other.step(*images(3))
    assert first.steps == second.steps == copied.steps == 4
    for name, value in first.state_dict().items():
        for other in (second, copied):
            assert name == "_extra_state" or torch.equal(value, other.state_dict()[name]), name


def test_it_steps_where_no_gradient_is_kept_and_keeps_its_weights_when_it_fails() -> None:
    judge, (real, fake) = adversary(), images(0)
    before = copy.deepcopy(judge.judge.state_dict())
    with torch.no_grad():
        judge.step(real, fake)
    assert not torch.equal(judge.judge.state_dict()["layers.0.weight"], before["layers.0.weight"])
    with pytest.raises(ValueError, match="images must have 8 x 8 pixels"):
        judge.step(real, torch.zeros(6, 3, 9, 9))
    assert not any(p.requires_grad for p in judge.parameters())


def test_refuses_a_rate_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="learning rate of an adversary must be above 0; got 0"):
        Adversary(Discriminator(8, width=4), 0)
