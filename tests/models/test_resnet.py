"""ResNets against torchvision's: names, shapes, initialisation and outputs.

``torchvision_resnets.json`` was written by running this file where torchvision is installed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastssl import models
from fastssl.models import resnet

FIXTURE = Path(__file__).with_name("torchvision_resnets.json")
NAMES = ["resnet18", "resnet34", "resnet50"]


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers in [-1, 1) that are the same under every version of torch (a multiplicative hash of the position)."""
    position = torch.arange(math.prod(shape)) + (seed + 1) * 1_000_003
    return ((position * 2_654_435_761 % 2**32).double() / 2**31 - 1).view(shape)


@torch.no_grad()
def probe(encoder: nn.Module) -> list[float]:
    """A few features of fixed images under fixed weights, in float64."""
    for i, value in enumerate(v for v in encoder.state_dict().values() if v.is_floating_point()):
        gain = math.sqrt(3 / value[0].numel()) if value.ndim > 1 else 0.2
        value.copy_(gain * noise(tuple(value.shape), i))
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.add_(1)
            assert module.running_var is not None
            module.running_var.add_(1)
    features = encoder.double().eval()(noise((2, 3, 64, 64), 10_000))
    return [float(f"{value:.9g}") for value in features[:, :: features.shape[1] // 8].flatten()]


@pytest.fixture(scope="module")
def torchvision() -> dict[str, dict[str, list[float]]]:
    return json.loads(FIXTURE.read_text())


def test_names():
    assert set(NAMES) <= set(models.names())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_is_torchvisions(name, torchvision):
    with torch.device("meta"):
        ours = models.get(name)().state_dict()
    assert {k: list(v.shape) for k, v in ours.items()} == torchvision[name]["shapes"]
    assert list(ours) == list(torchvision[name]["shapes"])


@pytest.mark.parametrize("name", NAMES)
def test_features_are_torchvisions(name, torchvision):
    ours = torch.tensor(probe(models.get(name)()), dtype=torch.float64)
    torch.testing.assert_close(
        ours, torch.tensor(torchvision[name]["probe"], dtype=torch.float64), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_initialisation_is_torchvisions(name):
    torch.manual_seed(0)
    encoder = models.get(name)()
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            count = module.weight.numel()
            # Six standard errors of the standard deviation of so many normal numbers.
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=6 / math.sqrt(2 * count))
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))


@pytest.mark.parametrize(("name", "expansion"), [("resnet18", 1), ("resnet34", 1), ("resnet50", 4)])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_feature_dim_is_what_comes_out(name, expansion, stem):
    encoder = models.get(name)(stem=stem, width=4).eval()
    assert encoder.feature_dim == models.feature_dim(encoder) == 8 * 4 * expansion
    assert encoder(torch.randn(3, 3, 32, 32)).shape == (3, encoder.feature_dim)


@pytest.mark.parametrize(("stem", "size", "side"), [("imagenet", 64, 2), ("imagenet", 70, 3), ("cifar", 60, 8)])
def test_features_are_the_mean_of_the_last_map(stem, size, side):
    encoder, x = resnet.resnet18(stem=stem, width=4).eval(), torch.randn(2, 3, size, size)
    assert encoder.maps(x).shape == (2, 32, side, side)
    assert torch.equal(encoder(x), encoder.maps(x).mean((2, 3)))


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 16), ("cifar", 64)])
def test_stem_keeps_the_resolution_it_says(stem, side):
    encoder = resnet.resnet18(stem=stem, width=4)
    sides = []
    encoder.layer1.register_forward_hook(lambda _module, inputs, _output: sides.append(inputs[0].shape[-1]))
    encoder(torch.randn(2, 3, 64, 64))
    assert sides == [side]


@pytest.mark.parametrize(
    ("stem", "max_stride", "side"),
    [
        *(("imagenet", stride, side) for stride, side in ((32, 3), (16, 6), (8, 12), (15, 12), (4, 24))),
        *(("cifar", stride, side) for stride, side in ((32, 12), (4, 24), (1, 96))),
    ],
)
def test_a_map_is_as_fine_as_asked_for_with_the_same_weights(stem, max_stride, side):
    encoder = resnet.resnet18(stem=stem, width=4, max_stride=max_stride).eval()
    assert encoder.maps(torch.randn(1, 3, 96, 96)).shape == (1, 32, side, side)
    encoder.load_state_dict(resnet.resnet18(stem=stem, width=4).state_dict(), strict=True)


def test_every_parameter_gets_a_gradient():
    encoder = resnet.resnet50(stem="cifar", width=2)
    encoder(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(3, 32, 32), ValueError, r"\(3, 32, 32\)"),
        (torch.zeros(2, 1, 32, 32), ValueError, r"\(2, 1, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, "uint8"),
    ],
)
def test_refuses_what_is_not_images(images, error, message):
    with pytest.raises(error, match=message):
        resnet.resnet18(width=4)(images)


def test_refuses_unknown_stem_and_no_width():
    with pytest.raises(ValueError, match="got 'cifer'"):
        resnet.resnet18(stem="cifer")
    with pytest.raises(ValueError, match="got 0"):
        resnet.resnet18(width=0)
    with pytest.raises(ValueError, match="max_stride must be at least 4 with the stem 'imagenet'; got 2"):
        resnet.resnet18(max_stride=2)


if __name__ == "__main__":
    import torchvision.models as reference

    table = {}
    for resnet_name in NAMES:
        network = getattr(reference, resnet_name)(weights=None)
        network.fc = nn.Identity()
        shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
        table[resnet_name] = {"shapes": shapes, "probe": probe(network)}
    FIXTURE.write_text(json.dumps(table, separators=(",", ":")) + "\n")
