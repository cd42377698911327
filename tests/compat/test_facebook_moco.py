"""Facebook's MoCo, all three versions, against the formulas in float64, step after step."""

from __future__ import annotations

import copy

import pytest
import torch
from facebook_helpers import Encoder, followed, gradients, rows, saved, transformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from fastssl.compat.facebook import moco, moco_v3

# ---- MoCo ----


def moco_step(model: moco.MoCo, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
    """The original's step in plain torch: logits and loss; gradients and buffers are left in the model."""
    followed(model.encoder_k, model.encoder_q, model.m)
    q, k = normalize(model.encoder_q(im_q)), normalize(model.encoder_k(im_k)).detach()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ model.queue], 1) / model.T
    loss = cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))
    loss.backward()
    model.queue = model.queue.clone()
    model.queue[:, (model.queue_ptr + torch.arange(len(q))) % model.K] = k.T
    model.queue_ptr = (model.queue_ptr + len(q)) % model.K
    return logits, loss


@pytest.mark.parametrize("fused", [False, True], ids=["logits", "loss"])
@pytest.mark.parametrize(
    ("n", "dim", "length", "m", "t", "mlp"),
    [(4, 5, 16, 0.999, 0.07, False), (6, 3, 12, 0.9, 0.2, True), (3, 8, 7, 0.5, 1.0, True)],
)
def test_moco_takes_the_originals_steps(
    n: int, dim: int, length: int, m: float, t: float, mlp: bool, fused: bool
) -> None:
    ours = moco.MoCo(Encoder, dim, length, m, t, mlp).double()
    plain = copy.deepcopy(ours)
    for step in range(length // n + 2):
        views = rows(2 * step, n, 6), rows(2 * step + 1, n, 6)
        want_logits, want_loss = moco_step(plain, *views)
        if fused:
            loss = ours.loss(*views)
        else:
            logits, targets = ours(*views)
            torch.testing.assert_close(logits, want_logits)
            assert torch.equal(targets, torch.zeros(n, dtype=torch.int64))
            loss = cross_entropy(logits, targets)
        torch.testing.assert_close(loss, want_loss)
        loss.backward()
        torch.testing.assert_close(gradients(ours.encoder_q), gradients(plain.encoder_q))
        assert all(parameter.grad is None for parameter in ours.encoder_k.parameters())
        torch.testing.assert_close(ours.state_dict(), plain.state_dict())
        for network in (ours.encoder_q, plain.encoder_q):  # as an optimizer would
            network.body[0].weight.data.mul_(0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mocos_logits_are_in_float32(dtype: torch.dtype) -> None:
    model = moco.MoCo(Encoder, 5, 16, T=0.2, mlp=True).to(dtype)
    plain = copy.deepcopy(model).double()
    views = rows(0, 4, 6, dtype=dtype), rows(1, 4, 6, dtype=dtype)
    logits, targets = model(*views)
    want, _ = moco_step(plain, *(x.double() for x in views))
    assert logits.dtype == torch.float32
    exact = dtype == torch.float32
    torch.testing.assert_close(logits.double(), want, rtol=1e-4 if exact else 0.1, atol=1e-5 if exact else 0.1)
    cross_entropy(logits, targets).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.encoder_q.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert moco.MoCo(Encoder, 5, 16)(*(x.float() for x in views))[0].dtype == torch.float32


def test_mocos_checkpoints_load_and_survive_to_the_bit() -> None:
    model = moco.MoCo(Encoder, 5, 16, mlp=True)
    model(rows(0, 4, 6, dtype=torch.float32), rows(1, 4, 6, dtype=torch.float32))
    ends = ("body.0.weight", "body.0.bias", "fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias")
    names = {f"encoder_{which}.{end}" for which in "qk" for end in ends}
    assert model.state_dict().keys() == {"queue", "queue_ptr", *names}
    assert (model.queue.shape, model.queue_ptr.shape) == ((5, 16), (1,))
    theirs = {name: x.clone(memory_format=torch.contiguous_format) for name, x in saved(model).items()}
    views = rows(2, 4, 6, dtype=torch.float32), rows(3, 4, 6, dtype=torch.float32)
    results = []
    for state, assign in ((saved(model), False), (theirs, False), (theirs, True)):
        again = moco.MoCo(Encoder, 5, 16, mlp=True)
        again.load_state_dict(state, assign=assign)
        for name, x in again.state_dict().items():
            assert torch.equal(x, model.state_dict()[name]), name
        results.append((again(*views)[0], again.queue.clone(), again.queue_ptr.clone()))
    for logits, queue, pointer in results[1:]:
        torch.testing.assert_close(logits, results[0][0])
        assert torch.equal(queue, results[0][1])
        assert torch.equal(pointer, results[0][2])


def test_moco_refuses_what_it_cannot_use() -> None:
    x = rows(0, 4, 6, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"MoCo: the queue has 3 keys, and the batch \(of all processes\) 4"):
        moco.MoCo(Encoder, 5, 3)(x, x)
    with pytest.raises(
        TypeError, match=r"MoCo: base_encoder must make an encoder .*; got a Linear that is made already"
    ):
        moco.MoCo(torch.nn.Linear(6, 5), 5, 3)
    with pytest.raises(
        ValueError, match=r"MoCo: im_q and im_k must be views of the same images; got \(4, 6\) and \(3, 6\)"
    ):
        moco.MoCo(Encoder, 5, 8)(x, x[:3])
    with pytest.raises(ValueError, match=r"MoCo: the encoder must give features \(N, 5\); got \(4, 6\)"):
        moco.MoCo(lambda num_classes: nn.Identity(), 5, 8)(x, x)
    with pytest.raises(ValueError, match="whose last layer, fc, is linear; got Identity with no fc"):
        moco.MoCo(lambda num_classes: nn.Identity(), mlp=True)
    for settings, told in ((dict(m=1.5), "momentum"), (dict(T=0.0), "T must be finite"), (dict(K=0), "K must be at")):
        with pytest.raises(ValueError, match=f"MoCo: {told}.* got "):
            moco.MoCo(Encoder, 5, **(dict(K=8) | settings))
    with pytest.raises(RuntimeError, match="size mismatch for queue"):
        moco.MoCo(Encoder, 5, 8).load_state_dict(moco.MoCo(Encoder, 5, 16).state_dict())


# ---- MoCo v3 ----


@pytest.mark.parametrize(
    ("kind", "base", "dim", "width", "t"),
    [
        (moco_v3.MoCo_ResNet, Encoder, 5, 7, 1.0),
        (moco_v3.MoCo_ViT, transformer, 4, 8, 0.2),
        (moco_v3.MoCo, Encoder, 3, 4, 0.07),
        (moco_v3.MoCo, transformer, 6, 5, 0.5),
    ],
)
def test_moco_v3_takes_the_originals_steps(kind, base, dim: int, width: int, t: float) -> None:
    ours = kind(base, dim, width, t).double()
    plain = copy.deepcopy(ours)
    for step, m in enumerate((0.99, 0.5, 1.0)):
        x1, x2 = rows(2 * step, 6, 6), rows(2 * step + 1, 6, 6)
        loss = ours(x1, x2, m)
        q1, q2 = (plain.predictor(plain.base_encoder(x)) for x in (x1, x2))
        followed(plain.momentum_encoder, plain.base_encoder, m)
        k1, k2 = (plain.momentum_encoder(x).detach() for x in (x1, x2))
        want = sum(
            2 * t * cross_entropy(normalize(q) @ normalize(k).T / t, torch.arange(6)) for q, k in ((q1, k2), (q2, k1))
        )
        torch.testing.assert_close(loss, want)
        loss.backward()
        want.backward()
        for part in ("base_encoder", "predictor"):
            torch.testing.assert_close(gradients(getattr(ours, part)), gradients(getattr(plain, part)))
        torch.testing.assert_close(ours.state_dict(), plain.state_dict())
        for network in (ours, plain):
            network.base_encoder.body[0].weight.data.mul_(0.9)


def test_moco_v3_has_the_originals_layers() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    projector = {"0.weight", *(f"1.{name}" for name in norm), "3.weight"}
    of_resnet = moco_v3.MoCo_ResNet(Encoder, 5, 7).state_dict()
    of_transformer = moco_v3.MoCo_ViT(transformer, 5, 7).state_dict()

    def within(state: dict[str, Tensor], prefix: str) -> set[str]:
        return {name.removeprefix(prefix) for name in state if name.startswith(prefix)}

    last = {f"4.{name}" for name in norm[2:]}
    for encoder in ("base_encoder", "momentum_encoder"):
        assert within(of_resnet, f"{encoder}.fc.") == projector | last
        assert within(of_transformer, f"{encoder}.head.") == projector | {
            *(f"4.{name}" for name in norm),
            "6.weight",
            *(f"7.{name}" for name in norm[2:]),
        }
    assert within(of_resnet, "predictor.") == projector
    assert within(of_transformer, "predictor.") == projector | last
    assert of_resnet["base_encoder.fc.0.weight"].shape == (7, 9)
    assert of_resnet["predictor.3.weight"].shape == (5, 7)


def test_moco_v3_refuses_an_encoder_without_its_last_layer() -> None:
    with pytest.raises(ValueError, match="MoCo_ViT: the encoder's last layer must be linear and called head; got Enco"):
        moco_v3.MoCo_ViT(Encoder)
    with pytest.raises(ValueError, match="MoCo: the encoder's last layer must be linear and called fc or head; got Id"):
        moco_v3.MoCo(lambda num_classes: nn.Identity())
    model = moco_v3.MoCo(Encoder, 5, 7)
    x = rows(0, 4, 6, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"same shape \(N, D\); got \(4, 5\) and \(3, 5\)"):
        model(x, x[:3], 0.99)
    with pytest.raises(ValueError, match=r"momentum must be a number in \[0, 1\]; got 2.0"):
        model(x, x, 2.0)


def test_a_batch_that_does_not_divide_the_queue_goes_on_at_its_beginning() -> None:
    model = moco.MoCo(lambda num_classes: nn.Identity(), 6, 10).double()
    for step in range(3):
        model(rows(0, 4, 6), rows(step, 4, 6))
    last = normalize(rows(2, 4, 6))
    torch.testing.assert_close(model.queue[:, 8:], last[:2].T)
    torch.testing.assert_close(model.queue[:, :2], last[2:].T)
    assert model.queue_ptr == 2
