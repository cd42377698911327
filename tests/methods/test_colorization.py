"""Colorization: the paper's loss, its prior of the user's own images, what the encoder sees, and pictures."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl import models
from fastssl.data.images import ImageSet, Splits
from fastssl.data.lab import from_rgb, grey, to_lab, to_rgb
from fastssl.errors import UserError
from fastssl.losses import rebalancing_weights
from fastssl.methods.colorization import Colorization, ColorizationConfig
from fastssl.ops import gamut_bins, rgb_to_lab
from fastssl.train import config as configs
from fastssl.train.folder import RunFolder
from fastssl.train.loop import pretrain
from fastssl.train.trained import open_run


class Cells(nn.Module):
    """An encoder whose map is the mean of each 8 x 8 pixels: (N, 3, H, W) to (N, 3)."""

    feature_dim = 3

    def maps(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean((2, 3))


def colours(batch: int = 4, size: int = 16, seed: int = 0) -> Tensor:
    """Views with an even colour in each quarter."""
    rgb = torch.rand(batch, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return from_rgb(F.interpolate(rgb, size=(size, size), mode="nearest"))


def shades(batch: int = 2, size: int = 16) -> Tensor:
    return grey(to_lab(colours(batch, size))[:, :1])


def method_of(**settings: object) -> Colorization:
    torch.manual_seed(0)
    return Colorization(Cells(), ColorizationConfig(**settings))  # type: ignore[arg-type]


def test_loss_is_equations_2_to_4_written_out() -> None:
    method, images = method_of(), torch.cat([colours(3), shades(1)])
    method.prepare([[colours(8, seed=1)]])
    logits: list[Tensor] = []
    method.head.register_forward_hook(lambda _module, _inputs, output: logits.append(output.double()))
    loss = method([images])
    z, bins = logits[0], gamut_bins().double()
    assert z.shape == (4, 313, 4, 4)  # a quarter of the image
    weights = rebalancing_weights(method.prior, gamut_bins())
    total = torch.zeros(())
    ab = F.avg_pool2d(to_lab(images)[:, 1:], 4).double()
    for n in range(3):  # the fourth is grey, and does not count
        for y in range(4):
            for x in range(4):
                far = (bins - ab[n, :, y, x]).norm(dim=1)
                near = far.argsort(stable=True)[:5]
                share = (-far[near].square() / 50).softmax(0)
                total -= weights[near[0]] * (share * z[n, :, y, x].log_softmax(0)[near]).sum()
    assert loss.item() == pytest.approx(total.item() / 48, rel=1e-4)


def test_the_prior_is_what_one_pass_over_the_images_counts() -> None:
    method, first, second = method_of(), colours(4), colours(6, seed=1)
    method.prepare([[first], [torch.cat([second, shades(3)])]])
    ab = F.avg_pool2d(to_lab(torch.cat([first, second]))[:, 1:], 4).movedim(1, -1).reshape(-1, 2)
    nearest = torch.cdist(ab, gamut_bins()).argmin(1)
    torch.testing.assert_close(method.prior, nearest.bincount(minlength=313) / 160.0)
    torch.testing.assert_close(method.weights, rebalancing_weights(method.prior, method.bins))
    assert {"prior", "weights"} <= method.state_dict().keys()


def test_without_rebalancing_all_colours_count_alike() -> None:
    method = method_of(rebalance=False)
    method.prepare([[colours(8)]])
    assert torch.equal(method.weights, torch.ones(313))
    assert method.prior.max() > 1 / 313


def test_accuracy_counts_as_the_loss_does_and_chance_is_the_best_constant() -> None:
    method, images = method_of(), colours(8)
    method.prepare([[images]])
    with torch.no_grad():
        last = method.head.layers[-1]
        last.weight.zero_()
        best = int((method.prior * method.weights).argmax())
        last.bias.copy_(10 * F.one_hot(torch.tensor(best), 313))
    method([images])
    noted = method.metrics(0.0, 8)
    assert noted["pretext_accuracy"] == pytest.approx(noted["chance"], rel=1e-4)
    assert 0 < noted["chance"] < 1


def test_a_batch_of_grey_images_teaches_nothing_and_harms_nothing(build) -> None:
    method = build("colorization")
    loss = method([shades()])
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad is not None and bool(p.grad.any()) for p in method.parameters())


def test_the_encoder_never_sees_colour(build) -> None:
    method = build("colorization").eval()
    images = colours()
    features = method.encoder(grey(to_lab(images)[:, :1]))
    torch.testing.assert_close(method.encoder(images), features, atol=1e-4, rtol=1e-4)
    seen: list[Tensor] = []
    method.encoder.conv1.register_forward_hook(lambda _module, inputs, _output: seen.append(*inputs))
    method([images])
    method.embed(to_rgb(images))  # of tracking, past the encoder's last layer
    assert len(seen) == 2
    assert all(to_lab(shown)[:, 1:].abs().max() < 0.05 for shown in seen)


@pytest.mark.parametrize(
    ("encoder", "options", "doublings"),
    [
        ("resnet18", {"stem": "imagenet"}, 3),
        ("resnet18", {"stem": "cifar"}, 1),
        ("alexnet", {"stem": "imagenet"}, 2),
        ("alexnet", {"stem": "cifar"}, 0),
    ],
)
def test_colours_are_predicted_for_each_four_pixels(encoder: str, options: dict, doublings: int) -> None:
    method = Colorization(models.get(encoder)(width=4, **options), ColorizationConfig())
    ups = [step for step in method.head.layers if isinstance(step, nn.ConvTranspose2d)]
    assert len(ups) == doublings
    side = method._logits(torch.zeros(2, 1, 64, 64)).shape[2]
    assert abs(side - 16) <= 4  # AlexNet's pools leave a little less


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_loss_falls_on_one_batch(build, descend, precision: torch.dtype) -> None:
    method = build("colorization")
    method.prepare([[colours(8)]])
    losses = descend(method, [colours(8)], precision=precision)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.7 * losses[0]  # soft labels have an entropy of their own


def test_pictures_have_the_lightness_that_was_shown(build) -> None:
    method = build("colorization").eval()
    images = colours(3)
    shown = method.pictures([images])
    assert list(shown) == ["grey", "colorized", "original"]
    assert torch.equal(shown["original"], images)
    with torch.no_grad():  # a network that says grey
        last = method.head.layers[-1]
        last.weight.zero_()
        last.bias.copy_(20 * F.one_hot(gamut_bins().square().sum(1).argmin(), 313))
    torch.testing.assert_close(method.pictures([images])["colorized"], shown["grey"], atol=1e-3, rtol=0)


def test_a_photo_is_colored_in_its_own_size(build) -> None:
    method = build("colorization").eval()
    lightness = rgb_to_lab(torch.rand(1, 3, 40, 55))[:, :1]
    assert method.colorize(lightness, (16, 24)).shape == (1, 3, 40, 55)
    assert torch.equal(method.colorize(lightness[..., :16, :24]), method.colorize(lightness[..., :16, :24], (16, 24)))


def run_on(images: Tensor, folder: RunFolder, **settings: object) -> None:
    names = tuple(map(str, range(len(images))))
    splits = Splits(ImageSet(images, None, (), names, "photos"), None)
    small = {"method": "colorization", "image_size": 32, "stem": "cifar", "width": 8, "threads": 1, **settings}
    pretrain(configs.from_dict({**small, "epochs": 1, "batch_size": 4}), splits, folder)


def test_a_run_keeps_the_prior_of_its_images(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    run_on(images, RunFolder(tmp_path / "run"))
    method = open_run(tmp_path / "run").method
    assert isinstance(method, Colorization)
    assert method.prior.sum().item() == pytest.approx(1)
    assert method.prior.max() > 0.02


def test_grey_images_are_refused_before_anything_is_written(tmp_path) -> None:
    images = torch.randint(256, (8, 1, 32, 32), dtype=torch.uint8).expand(8, 3, 32, 32).contiguous()
    with pytest.raises(UserError, match="colorization learns from colours, and the 8 images to train on are all grey"):
        run_on(images, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_refuses_what_cannot_be() -> None:
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="temperature of colorization must be a finite number above 0; got"):
            ColorizationConfig(temperature=value)
    with pytest.raises(UserError, match="a SplitEncoder has none: take a resnet"):
        Colorization(models.get("alexnet_split")(width=4), ColorizationConfig())
    with pytest.raises(ValueError, match=r"views must be \(N, 3, H, W\), in colour; got \(2, 1, 16, 16\)"):
        method_of()([torch.zeros(2, 1, 16, 16)])
