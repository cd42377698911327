"""What every loss does with half precision, with two dtypes or devices at once, and under autocast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import formulas
import pytest
import torch
from contrastive_helpers import assert_as_good_as_plain_torch
from torch import Tensor
from torch.nn.functional import normalize

from fastssl import losses

N, D = 12, 6


def numbers(seed: int, *shape: int) -> Tensor:
    """float64, of a value that bfloat16 and float16 hold too."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().double()


ROWS = numbers(0, N, D), numbers(1, N, D)
QUEUE = normalize(numbers(2, 16, D), dim=1).bfloat16().double()
CENTER = numbers(3, D) / 8
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 2, 0, 1, 4, 4])
MASK = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 1, 0, 1, 0, 0]])


def with_queue(loss: losses.MoCoLoss) -> losses.MoCoLoss:
    loss.queue.copy_(QUEUE)
    return loss.eval()


def with_center() -> losses.DINOLoss:
    loss = losses.DINOLoss(D, teacher_temp=0.1)
    loss.center.copy_(CENTER)
    return loss.eval()


@dataclass(frozen=True)
class Case:
    """A loss and its formula, of the same inputs; those of ``learnt`` get gradients."""

    make: Callable[[], Callable[..., Tensor]]
    formula: Callable[..., Tensor]
    inputs: tuple[Tensor, ...] = ROWS
    learnt: tuple[int, ...] = (0, 1)
    scale: float = 1.0  # the largest logit, about
    mixes: bool = False  # takes two dtypes

    def called(self, loss: Callable[..., Tensor], *learnt: Tensor) -> Tensor:
        """With the other inputs in the dtype of the learnt ones."""
        given = dict(zip(self.learnt, learnt, strict=True))
        return loss(*(given.get(i, cast(x, learnt[0].dtype)) for i, x in enumerate(self.inputs)))


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


CASES = {
    "InfoNCE": Case(lambda: losses.InfoNCE(0.2), lambda q, k: formulas.info_nce(q, k, 0.2), scale=5),
    "InfoNCE, symmetric with negatives": Case(
        lambda: losses.InfoNCE(0.2, symmetric=True),
        lambda q, k, n: (formulas.info_nce(q, k, 0.2, n) + formulas.info_nce(k, q, 0.2, n)) / 2,
        (*ROWS, numbers(4, 5, D)),
        scale=5,
    ),
    "NTXent": Case(lambda: losses.NTXent(0.2), lambda z0, z1: formulas.nt_xent(z0, z1, 0.2), scale=5),
    "ClipLoss": Case(losses.ClipLoss, formulas.clip, (*ROWS, torch.tensor(7.0).double()), learnt=(0, 1, 2), scale=7),
    "SigLipLoss": Case(
        losses.SigLipLoss,
        formulas.siglip,
        (*ROWS, torch.tensor(7.0).double(), torch.tensor(-3.0).double()),
        learnt=(0, 1, 2, 3),
        scale=10,
    ),
    "MoCoLoss": Case(
        lambda: with_queue(losses.MoCoLoss(0.2, dim=D, length=16)),
        lambda q, k: formulas.moco(q, k, QUEUE, 0.2),
        learnt=(0,),
        scale=5,
    ),
    "CPCLoss": Case(
        lambda: losses.CPCLoss(1.0, normalized=True), formulas.cpc, (numbers(5, 3, N, D), numbers(6, 3, N, D)), scale=9
    ),
    "DINOLoss": Case(
        with_center,
        lambda s, t: formulas.dino(s, formulas.centered(t, CENTER, 0.1), 0.1),
        (numbers(7, 4, N, D), numbers(8, 2, N, D)),
        learnt=(0,),
        scale=30,
        mixes=True,
    ),
    "DINOLoss, sinkhorn": Case(
        lambda: losses.DINOLoss(D, teacher_temp=0.5, centering="sinkhorn"),
        lambda s, t: formulas.dino(s, formulas.sinkhorn(t, 0.5), 0.1),
        (numbers(7, 4, N, D), numbers(8, 2, N, D)),
        learnt=(0,),
        scale=30,
        mixes=True,
    ),
    "MAELoss": Case(
        lambda: losses.MAELoss(2),
        lambda images, prediction, mask: formulas.mae(images, prediction, mask, 2),
        (numbers(9, 2, 3, 4, 6), numbers(10, 2, 6, 12), MASK),
        learnt=(1,),
        mixes=True,
    ),
    "NegativeCosineSimilarity": Case(losses.NegativeCosineSimilarity, formulas.negative_cosine),
    "BarlowTwins": Case(lambda: losses.BarlowTwins(0.01), lambda z0, z1: formulas.barlow_twins(z0, z1, 0.01)),
    "VICReg": Case(losses.VICReg, lambda z0, z1: formulas.vicreg(z0, z1, 25.0, 25.0, 1.0), scale=25),
    "SupCon": Case(
        lambda: losses.SupCon(0.2),
        lambda z, labels: formulas.sup_con(z, labels, 0.2),
        (ROWS[0], LABELS),
        learnt=(0,),
        scale=5,
    ),
    "KoLeo": Case(losses.KoLeo, formulas.koleo, ROWS[:1], learnt=(0,)),
    "DenseContrastive": Case(
        lambda: with_queue(losses.DenseContrastive(0.2, dim=D, length=16)),
        lambda q, k, f, g: formulas.dense(q, k, QUEUE, 0.2, (f, g)),
        (numbers(11, 2, D, 3, 2), numbers(12, 2, D, 3, 2), numbers(13, 2, 5, 3, 2), numbers(14, 2, 5, 3, 2)),
        learnt=(0,),
        scale=5,
    ),
}
every_loss = pytest.mark.parametrize("name", CASES)


def test_no_loss_is_forgotten() -> None:
    modules = {name for name in losses.__all__ if isinstance(getattr(losses, name), type)}
    assert {name.partition(",")[0] for name in CASES} == modules


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_at_most_twice_the_error_of_plain_torch(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    inputs = [case.inputs[i].to(dtype) for i in case.learnt]
    assert_as_good_as_plain_torch(
        lambda *x: case.called(case.make(), *x),
        lambda *x: case.called(case.formula, *x),
        *inputs,
        scale=case.scale,
        narrow=True,
    )
    loss = case.called(case.make(), *inputs)
    assert loss.dtype == torch.float32


@every_loss
def test_equals_the_formula_in_float64(name: str) -> None:
    case = CASES[name]
    torch.testing.assert_close(case.make()(*case.inputs), case.formula(*case.inputs), rtol=1e-6, atol=1e-6)


@every_loss
def test_under_autocast_it_is_in_float32(name: str) -> None:
    case = CASES[name]
    inputs = [cast(x, torch.float32) for x in case.inputs]
    want = case.make()(*inputs)
    for given in (inputs, [cast(x, torch.bfloat16) for x in inputs], [cast(inputs[0], torch.bfloat16), *inputs[1:]]):
        leaves = [x.clone().requires_grad_() if i in case.learnt else x for i, x in enumerate(given)]
        with torch.autocast("cpu", torch.bfloat16):
            got = case.make()(*leaves)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want)
        got.backward()
        assert all(leaves[i].grad.dtype == leaves[i].dtype for i in case.learnt)


@every_loss
def test_compiles_to_one_graph(name: str) -> None:
    case = CASES[name]
    torch._dynamo.reset()
    got = torch.compile(case.make(), fullgraph=True, backend="eager")(*case.inputs)
    torch.testing.assert_close(got, case.make()(*case.inputs))


@every_loss
def test_shapes_are_found_without_memory(name: str) -> None:
    case = CASES[name]
    loss = case.make()
    loss = loss.to("meta") if isinstance(loss, torch.nn.Module) else loss
    assert loss(*(x.to("meta") for x in case.inputs)).shape == ()


@every_loss
def test_two_dtypes_are_right_or_refused(name: str) -> None:
    case = CASES[name]
    inputs = [cast(x, torch.float32) for x in case.inputs]
    inputs[0] = inputs[0].bfloat16()
    if sum(x.dim() > 1 and x.is_floating_point() for x in inputs) == 1 or case.mixes:
        torch.testing.assert_close(case.make()(*inputs), case.make()(inputs[0].float(), *inputs[1:]))
        return
    with pytest.raises(TypeError, match=rf"^{name.partition(',')[0]}: \w+ and \w+ must have one dtype; got"):
        case.make()(*inputs)


@every_loss
def test_two_devices_are_refused(name: str) -> None:
    case = CASES[name]
    for i in range(len(case.inputs)):
        inputs = [x.to("meta") if i == j else x for j, x in enumerate(case.inputs)]
        if len(inputs) == 1:
            continue
        with pytest.raises(ValueError, match=rf"^{name.partition(',')[0]}: .* must be on .*meta"):
            case.make()(*inputs)


@pytest.mark.parametrize("name", ["MoCoLoss", "DenseContrastive", "DINOLoss"])
def test_a_module_on_another_device_is_refused(name: str) -> None:
    case = CASES[name]
    with pytest.raises(ValueError, match=rf"^{name}: .* and the \w+ must be on one device; got .*meta"):
        case.make()(*(x.to("meta") for x in case.inputs))


@pytest.mark.parametrize("name", [name for name in CASES if name != "MAELoss"])
def test_an_empty_batch_is_refused(name: str) -> None:
    case = CASES[name]
    samples = 1 if case.inputs[0].dim() == 3 else 0
    inputs = [x.narrow(samples, 0, 0) if x.dim() > samples else x for x in case.inputs]
    with pytest.raises(ValueError, match=rf"^{name.partition(',')[0]}: .*at least"):
        case.make()(*inputs)
