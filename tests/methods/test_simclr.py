from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastssl import models
from fastssl.errors import UserError
from fastssl.methods.simclr import SimCLR, SimCLRConfig
from fastssl.optim import OptimConfig, build_optimizer
from fastssl.train import config as configs
from fastssl.train import log
from fastssl.train.folder import RunFolder
from fastssl.train.loop import pretrain


class Flat(nn.Module):
    """An encoder that returns its pixels: (N, 3, 2, 2) to (N, 12)."""

    feature_dim = 12

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def nt_xent_by_hand(z: list[list[float]], temperature: float) -> float:
    """Equation 1 and the mean of algorithm 1, one pair after the other. Rows n and n + N are the views of one image."""
    half = len(z) // 2

    def similarity(i: int, j: int) -> float:
        product = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return product / (math.hypot(*z[i]) * math.hypot(*z[j])) / temperature

    total = 0.0
    for i in range(len(z)):
        others = sum(math.exp(similarity(i, k)) for k in range(len(z)) if k != i)
        total -= math.log(math.exp(similarity(i, (i + half) % len(z))) / others)
    return total / len(z)


def test_loss_without_a_head_is_equation_1_of_the_features():
    views = [torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    method = SimCLR(Flat(), SimCLRConfig(temperature=0.2, head_layers=0))
    expected = nt_xent_by_hand(torch.cat(views).flatten(1).tolist(), 0.2)
    assert method(views).item() == pytest.approx(expected, rel=1e-5)


def test_the_order_of_the_views_does_not_matter(build, views_of):
    method = build("simclr")
    views = views_of(method)
    assert method(views).item() == pytest.approx(method(views[::-1]).item(), rel=1e-5)


def test_batch_norm_sees_both_views_at_once():
    method = SimCLR(Flat(), SimCLRConfig(hidden_dim=5, out_dim=4))
    views = [torch.randn(3, 3, 2, 2), torch.randn(3, 3, 2, 2) + 5]
    seen: list[int] = []
    method.head.layers[1].register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    method(views)
    assert seen == [6]


@pytest.mark.parametrize(("hidden_dim", "width"), [(None, 12), (5, 5)])
def test_hidden_width(hidden_dim, width):
    head = SimCLR(Flat(), SimCLRConfig(hidden_dim=hidden_dim, out_dim=4)).head
    assert head.layers[0].weight.shape == (width, 12)
    assert head.layers[3].weight.shape == (4, width)


def test_mutual_information_bound():
    method = SimCLR(Flat(), SimCLRConfig())
    # All 2N - 1 candidates of a row alike: loss log(2N - 1), nothing known of the other view.
    z = torch.ones(8, 3, 2, 2)
    loss = SimCLR(Flat(), SimCLRConfig(head_layers=0))([z, z]).item()
    assert method.metrics(loss, 8)["mutual_information_bound"] == pytest.approx(0.0, abs=1e-5)
    assert method.metrics(0.0, 8) == {"mutual_information_bound": pytest.approx(math.log(15))}


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_temperature_out_of_bounds(temperature):
    with pytest.raises(UserError, match="temperature of SimCLR"):
        SimCLRConfig(temperature=temperature)


def test_refuses_an_encoder_of_unknown_width():
    with pytest.raises(TypeError, match="Linear has None"):
        SimCLR(nn.Linear(2, 2), SimCLRConfig())


@pytest.mark.parametrize(("name", "value"), [("hidden_dim", 0), ("out_dim", 0), ("head_layers", -1), ("chunk", 1)])
def test_a_head_that_cannot_be_is_refused_before_anything_is_built(name: str, value: int):
    with pytest.raises(UserError, match=f"the {name} of SimCLR must be .* or more; got {value}"):
        SimCLRConfig(**{name: value})


def with_gradients(method: SimCLR, views: list[Tensor]) -> list[Tensor]:
    """The loss, and its gradient by every parameter."""
    method.zero_grad()
    loss = method(views)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in method.parameters() if p.grad is not None)]


@pytest.mark.parametrize("head_layers", [0, 1, 2, 3])
def test_chunks_give_the_whole_batchs_gradient(head_layers: int):
    encoder = models.get("vit_micro")(patch_size=4, width=16, depth=2, image_size=8)
    whole = SimCLR(encoder, SimCLRConfig(head_layers=head_layers)).double()
    views = [torch.randn(5, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    wanted = with_gradients(whole, views)
    whole.config = SimCLRConfig(head_layers=head_layers, chunk=3)
    torch.testing.assert_close(with_gradients(whole, views), wanted, rtol=1e-9, atol=1e-12)


def test_the_heads_batch_norm_sees_all_chunks_at_once():
    method = SimCLR(Flat(), SimCLRConfig(chunk=2))
    seen: list[int] = []
    method.head.layers[1].register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    method([torch.randn(3, 3, 2, 2) for _ in range(2)])
    assert seen == [6]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_residual_network_learns_in_chunks_by_lars(build, views_of, precision):
    method = build("simclr", chunk=4)
    views = views_of(method)
    optimizer = build_optimizer(method, OptimConfig("lars", lr=1.0))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = method(views)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_features_are_read_before_the_head(build):
    method = build("simclr")
    assert method.kept is method.encoder
    assert method.encoder.feature_dim == method.head.layers[0].in_features


def test_a_run_in_chunks_logs_what_a_run_of_whole_batches_does(tmp_path, data_of):
    vit = {"encoder": "vit_micro", "patch_size": 4, "width": 16, "depth": 2}
    small = {**vit, "image_size": 16, "epochs": 2, "batch_size": 6, "threads": 1, "optim": {"warmup_epochs": 0}}
    logged = []
    for chunk in (None, 5):
        folder = RunFolder(tmp_path / str(chunk))
        pretrain(configs.from_dict({**small, "simclr": {"chunk": chunk}}), data_of("simclr", 12, 16), folder)
        logged.append([[row.loss, row.extra.get("output_rank", 0.0)] for row in log.read(folder.metrics)])
    assert [loss for loss, _ in logged[0]] != [logged[0][0][0]] * 4
    assert logged[1] == [pytest.approx(row, rel=1e-3) for row in logged[0]]
