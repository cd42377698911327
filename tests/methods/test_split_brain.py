"""Split-brain: both losses written out, who learns from whom, and pictures in both directions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import models
from fastssl.data.images import ImageSet, Splits
from fastssl.data.lab import from_rgb, grey, to_lab
from fastssl.errors import UserError
from fastssl.losses import soft_cross_entropy
from fastssl.methods.split_brain import SplitBrain, SplitBrainConfig
from fastssl.ops import encode_ab, gamut_bins
from fastssl.train import config as configs
from fastssl.train.folder import RunFolder
from fastssl.train.loop import pretrain


def colours(batch: int = 4, size: int = 16, seed: int = 0) -> Tensor:
    """Views with an even colour in each quarter."""
    rgb = torch.rand(batch, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return from_rgb(F.interpolate(rgb, size=(size, size), mode="nearest"))


def answers(method: SplitBrain, images: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """What the halves say of colour and lightness, the truth of the same places, and the loss."""
    said: list[Tensor] = []
    for head in (method.to_color, method.to_lightness):
        head.register_forward_hook(lambda _module, _inputs, output: said.append(output.detach().double()))
    loss = method([images]).item()
    return said[0], said[1], F.adaptive_avg_pool2d(to_lab(images), said[0].shape[2:]).double(), loss


def test_classification_is_two_cross_entropies(build) -> None:
    method, images = build("split_brain"), colours(2)
    color, lightness, truth, loss = answers(method, images)
    assert color.shape[1] == 313
    assert lightness.shape[1] == 100
    bins, total, places = gamut_bins().double(), 0.0, truth[:, 0].numel()
    right = [0, 0]
    for n, y, x in torch.cartesian_prod(torch.arange(2), *(torch.arange(s) for s in truth.shape[2:])).tolist():
        far = (bins - truth[n, 1:, y, x]).norm(dim=1)
        near = far.argsort(stable=True)[:5]
        total -= float(((-far[near].square() / 50).softmax(0) * color[n, :, y, x].log_softmax(0)[near]).sum())
        shade = min(99, int(truth[n, 0, y, x]))
        total -= float(lightness[n, :, y, x].log_softmax(0)[shade])
        right[0] += int(color[n, :, y, x].argmax()) == int(near[0])
        right[1] += int(lightness[n, :, y, x].argmax()) == shade
    assert loss == pytest.approx(total / places, rel=1e-4)
    noted = method.metrics(loss, 2)
    assert noted["color_accuracy"] == pytest.approx(right[0] / places)
    assert noted["lightness_accuracy"] == pytest.approx(right[1] / places)
    assert noted["pretext_accuracy"] == pytest.approx(sum(right) / places / 2)
    assert 0 < noted["chance"] < 1


def test_the_constant_loss_is_the_least_of_one_answer_for_all(build) -> None:
    """Of logits that are the same everywhere: those that the loss itself teaches come to it, from above."""
    method, images = build("split_brain"), colours(4)
    _, _, truth, loss = answers(method, images)
    constant = method.metrics(loss, 4)["constant_loss"]
    ids, shares = encode_ab(truth[:, 1:], gamut_bins())
    shade = truth[:, 0].long().clamp(0, 99)
    logits = [torch.zeros(1, 313, 1, 1, requires_grad=True), torch.zeros(1, 100, 1, 1, requires_grad=True)]
    optimizer = torch.optim.LBFGS(logits, max_iter=200, line_search_fn="strong_wolfe")

    def of_one_answer() -> torch.Tensor:
        optimizer.zero_grad()
        ab, light = (x.expand(*x.shape[:2], *shade.shape[1:]).expand(len(shade), -1, -1, -1) for x in logits)
        total = soft_cross_entropy(ab, ids, shares).mean() + F.cross_entropy(light, shade)
        total.backward()
        return total

    optimizer.step(of_one_answer)
    assert constant == pytest.approx(of_one_answer().item(), abs=1e-3)
    assert constant < of_one_answer().item() + 1e-5


def test_regression_is_two_squared_errors(build) -> None:
    method, images = build("split_brain", loss="regression"), colours(3)
    color, lightness, truth, loss = answers(method, images)
    of_color = (color - truth[:, 1:] / 50).square().mean()
    of_lightness = (lightness - truth[:, :1] / 50).square().mean()
    assert loss == pytest.approx(float(of_color + of_lightness), rel=1e-4)
    noted = method.metrics(loss, 3)
    everything = torch.cat([lightness, color], 1) * 50 - truth
    assert noted["pretext_error"] == pytest.approx(float(everything.square().mean().sqrt()), rel=1e-4)
    best = truth - truth.mean((0, 2, 3), keepdim=True)
    assert noted["constant_error"] == pytest.approx(float(best.square().mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize("loss", ["classification", "regression"])
def test_each_half_learns_from_its_own_answer_alone(build, loss: str) -> None:
    method, lab = build("split_brain", loss=loss), to_lab(colours())
    for answer, own, other in zip((0, 1), ("lightness", "color"), ("color", "lightness"), strict=True):
        method.zero_grad()
        method._answers(lab)[answer].square().sum().backward()
        halves = method.encoder
        assert all(p.grad is not None for p in getattr(halves, own).parameters())
        assert all(p.grad is None for p in getattr(halves, other).parameters())
        method.zero_grad(set_to_none=True)


def test_answers_are_as_coarse_as_the_papers() -> None:
    method = SplitBrain(models.get("alexnet_split")(width=8), SplitBrainConfig())
    assert method._answers(to_lab(colours(2, 180)))[0].shape == (2, 313, 10, 10)  # 12 with the paper's padding
    resnet = SplitBrain(models.get("resnet18_split")(width=8), SplitBrainConfig())
    assert resnet._answers(to_lab(colours(2, 128)))[1].shape == (2, 100, 8, 8)


@pytest.mark.parametrize("loss", ["classification", "regression"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_loss_falls_on_one_batch(build, descend, loss: str, precision: torch.dtype) -> None:
    losses = descend(build("split_brain", loss=loss), [colours(8)], precision=precision)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("loss", ["classification", "regression"])
def test_pictures_keep_what_was_given(build, loss: str) -> None:
    method, images = build("split_brain", loss=loss).eval(), colours(3)
    shown = method.pictures([images])
    assert list(shown) == [
        "lightness",
        "with guessed colours",
        "colours",
        "with guessed lightness",
        "both guesses",
        "original",
    ]
    assert torch.equal(shown["original"], images)
    lab, guessed = to_lab(images), method.predict(to_lab(images))
    assert guessed.shape == lab.shape
    torch.testing.assert_close(to_lab(shown["lightness"])[:, :1], lab[:, :1], atol=1e-2, rtol=0)
    blind = torch.cat([lab[:, :1], torch.zeros_like(lab[:, 1:])], 1)
    torch.testing.assert_close(method.predict(blind)[:, 1:], guessed[:, 1:])  # colours are of lightness alone
    dark = torch.cat([torch.zeros_like(lab[:, :1]), lab[:, 1:]], 1)
    torch.testing.assert_close(method.predict(dark)[:, :1], guessed[:, :1])


def test_lightness_of_a_sure_answer_is_the_middle_of_its_bin(build) -> None:
    method, lab = build("split_brain").eval(), to_lab(colours())
    with torch.no_grad():
        for head, chosen in ((method.to_lightness, 70), (method.to_color, 200)):
            head.layers[-1].weight.zero_()
            head.layers[-1].bias.copy_(50 * F.one_hot(torch.tensor(chosen), head.layers[-1].out_channels))
    guessed = method.predict(lab)
    torch.testing.assert_close(guessed[:, 0], torch.full_like(guessed[:, 0], 70.5))
    assert guessed[0, 1:, 3, 3].tolist() == pytest.approx(gamut_bins()[200].tolist())


def test_refuses_what_cannot_be(tmp_path) -> None:
    with pytest.raises(UserError, match="unknown loss of split_brain 'regresion': did you mean 'regression'"):
        SplitBrainConfig(loss="regresion")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="which a ResNet does not have: give it alexnet_split or resnet18_split"):
        SplitBrain(models.get("resnet18")(width=4), SplitBrainConfig())
    images = torch.randint(256, (8, 1, 32, 32), dtype=torch.uint8).expand(8, 3, 32, 32).contiguous()
    splits = Splits(ImageSet(images, None, (), tuple("abcdefgh"), "shades"), None)
    small = {"method": "split_brain", "image_size": 32, "stem": "cifar", "width": 8, "threads": 1}
    config = configs.from_dict({**small, "epochs": 1, "batch_size": 4})
    with pytest.raises(UserError, match="split_brain learns from colours, and the images to train on are all grey"):
        pretrain(config, splits, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_grey_tensors_are_named(build) -> None:
    with pytest.raises(ValueError, match=r"views must be \(N, 3, H, W\), in colour; got \(2, 1, 16, 16\)"):
        build("split_brain")([torch.zeros(2, 1, 16, 16)])
    shown = grey(to_lab(colours())[:, :1])
    assert math.isfinite(build("split_brain")([shown]).item())
