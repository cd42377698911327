from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastssl import models
from fastssl.errors import UserError
from fastssl.methods.ibot import IBOT, IBOTConfig
from fastssl.schedule import Schedule


def softmax(row: Tensor, temp: float) -> Tensor:
    powers = (row / temp).exp()
    return powers / powers.sum()


def test_the_loss_is_that_of_class_tokens_and_of_each_hidden_patch(build, views_of):
    method = build("ibot", prototypes=5, patch_weight=0.7, teacher_temp=Schedule(0.1)).double()
    views = [view.double() for view in views_of(method)]
    torch.manual_seed(5)
    mask, _ = method._mask(torch.cat(views[:2]))
    torch.manual_seed(5)
    loss = method(views)
    encoder, head = method.teacher.module
    large = torch.cat(views[:2])
    seen, hidden = encoder.tokens(large), method.encoder.tokens(large, masked=(mask, method.mask_token))
    patches = []
    for n, place in mask.nonzero().tolist():
        p = softmax(head(seen[n, 1 + place]), 0.1)
        q = softmax(method.head(hidden[n, 1 + place]), 0.1)
        patches.append(-(p * q.log()).sum().item())
    small = method.encoder.tokens(torch.cat(views[2:]))[:, 0]
    student = method.head(torch.cat([hidden[:, 0], small])).unflatten(0, (10, -1))
    method.loss.center.zero_()
    crops = method.loss(student, head(seen[:, 0]).unflatten(0, (2, -1)), teacher_temp=0.1).item()
    assert loss.item() == pytest.approx(crops + 0.7 * sum(patches) / len(patches), rel=1e-6)


def test_hidden_patches_are_of_half_of_the_images_as_many_in_each(build):
    method = build("ibot")
    shares = set()
    for seed in range(20):
        torch.manual_seed(seed)
        mask, ids = method._mask(torch.zeros(12, 3, 16, 16))
        counts = mask.sum(1).unflatten(0, (2, 6))
        assert not counts[:, 3:].any()
        assert len(set(counts[:, :3].flatten().tolist())) == 1
        where = mask.unflatten(0, (2, 6))[:, :3].flatten(0, 1)
        assert torch.equal(where.gather(1, ids), torch.ones_like(ids, dtype=torch.bool))
        assert ids.shape[1] == counts[0, 0]
        shares.add(int(counts[0, 0]))
    assert min(shares) >= 1  # from 10 to 50 per cent of 16
    assert max(shares) <= 8
    assert len(shares) > 3


def test_the_student_does_not_see_what_is_hidden(build, views_of):
    method = build("ibot")
    large = torch.cat(views_of(method)[:2])
    torch.manual_seed(1)
    mask, _ = method._mask(large)
    pixels = mask.view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = torch.where(pixels, torch.randn_like(large), large)
    before, after = (method.encoder.tokens(x, masked=(mask, method.mask_token)) for x in (large, changed))
    torch.testing.assert_close(before, after)
    assert not torch.allclose(method.encoder.tokens(large), method.encoder.tokens(changed))


def test_the_mask_token_is_trained_and_the_teacher_has_none(build, views_of):
    method = build("ibot")
    method(views_of(method)).backward()
    assert method.mask_token.grad.any()
    assert not [key for key in method.teacher.state_dict() if "mask_token" in key]


@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_small_crops(count, build, views_of):
    method = build("ibot")
    assert math.isfinite(method(views_of(method)[:count]).item())


def test_refuses_an_encoder_without_patches():
    with pytest.raises(UserError, match=r"iBOT hides patches, which a ResNet does not have: give it a vit_\*"):
        IBOT(models.get("resnet18")(width=4), IBOTConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0.9}, r"mask_ratio of iBOT and its mask_spread must stay within \(0, 1\); got 1.1"),
        ({"mask_spread": -0.1}, "mask_spread of iBOT must be 0 or more; got -0.1"),
        ({"masked_share": 1.5}, "masked_share of iBOT must be from 0 to 1; got 1.5"),
        ({"patch_weight": math.nan}, "patch_weight of iBOT must be 0 or more; got nan"),
        ({"prototypes": 0}, "prototypes of DINO must be 1 or more"),
    ],
)
def test_refuses_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        IBOTConfig(**settings)
