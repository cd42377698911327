"""EMA: what follows what, in which precision, and what is saved."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fastssl.momentum import EMA, cosine


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def moved(model: nn.Module, seed: int = 1) -> nn.Module:
    """Another point of training of the same network."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        other(torch.randn(8, 4, generator=generator, dtype=torch.float32).to(next(other.parameters()).dtype))
    return other


def test_parameters_and_buffers_follow() -> None:
    start = network()
    average, after = EMA(start, 0.75), moved(start)
    average.update(after)
    for got, before, now in zip(average.module.parameters(), start.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(got, 0.75 * before + 0.25 * now)
        assert not got.requires_grad
    torch.testing.assert_close(
        average.module[1].running_mean, 0.75 * start[1].running_mean + 0.25 * after[1].running_mean
    )
    assert average.module[1].num_batches_tracked == after[1].num_batches_tracked == 1


def test_the_network_that_was_copied_is_left_alone() -> None:
    start = network()
    before = copy.deepcopy(start.state_dict())
    EMA(start, 0.5).update(moved(start))
    assert all(torch.equal(x, before[name]) for name, x in start.state_dict().items())
    assert all(parameter.requires_grad for parameter in start.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_move_by_a_shadow_in_float32(dtype: torch.dtype) -> None:
    start = nn.Linear(3, 3).to(dtype)
    average, after = EMA(start, 0.999), copy.deepcopy(start)
    with torch.no_grad():
        after.weight.add_(1)
    for _ in range(1000):
        average.update(after)
    want = start.weight.float() + (1 - 0.999**1000) * (after.weight.float() - start.weight.float())
    torch.testing.assert_close(average.module.weight, want.to(dtype))
    assert average.module.weight.dtype == dtype
    assert {name: x.dtype for name, x in average.shadows.items()} == {"weight": torch.float32, "bias": torch.float32}


def test_a_schedule_is_asked_with_the_updates_made_and_survives_a_checkpoint() -> None:
    start = network()
    average = EMA(start, cosine(0.9, 1.0, 10))
    asked = []
    for seed in range(4):
        asked.append(average.current_momentum())
        average.update(moved(start, seed))
    assert asked[0] == pytest.approx(0.9)
    assert asked == sorted(asked)
    again = EMA(network(), cosine(0.9, 1.0, 10))
    again.load_state_dict(average.state_dict())
    assert again.updates == 4
    assert again.current_momentum() == average.current_momentum()
    for got, want in zip(again.module.state_dict().values(), average.module.state_dict().values(), strict=True):
        assert torch.equal(got, want)


def test_an_update_may_be_told_its_momentum() -> None:
    start = network()
    average, after = EMA(start, 0.75), moved(start)
    average.update(after, momentum=0.25)
    torch.testing.assert_close(average.module[0].weight, 0.25 * start[0].weight + 0.75 * after[0].weight)
    with pytest.raises(ValueError, match="momentum"):
        average.update(after, momentum=1.5)


def test_cosine_begins_and_ends_where_it_is_told() -> None:
    schedule = cosine(0.996, 1.0, 100)
    assert (schedule(0), schedule(50), schedule(100), schedule(500)) == pytest.approx((0.996, 0.998, 1.0, 1.0))


def halves() -> tuple[nn.Module, nn.Module]:
    start = nn.Linear(2, 2, bias=False).bfloat16()
    after = copy.deepcopy(start)
    with torch.no_grad():
        start.weight.fill_(1)
        after.weight.fill_(2)
    return start, after


def test_weights_that_were_loaded_into_the_copy_are_what_moves() -> None:
    start, after = halves()
    average = EMA(start, 0.9)
    average.update(after)
    average.module.load_state_dict({"weight": torch.full((2, 2), 100.0)})
    average.update(after)
    assert average.module.weight.float().sub(90.2).abs().max() < 0.5


def test_shadows_survive_a_checkpoint_and_casts() -> None:
    start, after = halves()
    average, again = EMA(start, 0.999), EMA(start, 0.999)
    average.update(after)
    again.load_state_dict(average.state_dict())
    assert torch.equal(again.shadows["weight"], average.shadows["weight"])
    assert average.module.weight.eq(1).all()  # in bfloat16 the weight has not moved
    for _ in range(4):
        average.update(after)
        again.update(after)
    exact = again.shadows["weight"]
    average.to(torch.bfloat16)
    assert torch.equal(average.shadows["weight"], exact)
    average.half()
    assert average.module.weight.dtype == torch.float16
    assert torch.equal(average.shadows["weight"], exact)
    average.float()
    assert torch.equal(average.module.weight, exact)
    assert len(average.shadows) == 0
    average.bfloat16()
    assert torch.equal(average.shadows["weight"], exact)
    average.update(after)
    again.update(after)
    assert torch.equal(average.shadows["weight"], again.shadows["weight"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_shadows_are_copied_with_the_average(copied) -> None:
    start, after = halves()
    average = EMA(start, 0.999)
    average.update(after)
    again = copied(average)
    for each in (average, again):
        each.update(after)
    assert torch.equal(again.shadows["weight"], average.shadows["weight"])
    torch.testing.assert_close(again.shadows["weight"], torch.full((2, 2), 2 - 0.999**2), rtol=1e-6, atol=0)


def test_a_checkpoint_of_any_precision_loads_into_any() -> None:
    start, after = halves()
    tied = nn.ModuleDict({"a": start, "b": start, "c": nn.Linear(2, 2)})  # one weight twice, and others in float32
    average = EMA(nn.ModuleDict({"average": tied}), 0.999)
    with torch.no_grad():
        moved_on = copy.deepcopy(tied)
        moved_on["a"].weight.copy_(after.weight)
    average.update(moved_on)
    saved = average.state_dict()
    assert set(saved) == {"_extra_state", *(f"module.average.{name}" for name in tied.state_dict())}
    exact = torch.full((2, 2), 1.001)
    for name in "ab":
        torch.testing.assert_close(saved[f"module.average.{name}.weight"], exact, rtol=1e-7, atol=0)
    single, half = (EMA(copy.deepcopy(average.module).to(dtype), 0.999) for dtype in (torch.float32, torch.float16))
    for each in (single, half):
        each.load_state_dict(saved)
    torch.testing.assert_close(single.module["average"]["a"].weight, exact, rtol=1e-7, atol=0)
    torch.testing.assert_close(half.shadows["average.a.weight"], exact, rtol=1e-7, atol=0)
    assert torch.equal(half.module["average"]["a"].weight, exact.half())
    again = EMA(nn.ModuleDict({"average": tied}), 0.999)
    for each in (single, half):
        again.load_state_dict(each.state_dict())
        torch.testing.assert_close(again.shadows["average.a.weight"], exact, rtol=1e-7, atol=0)
    again.load_state_dict({key: x.bfloat16() if "weight" in key else x for key, x in saved.items()})
    assert again.shadows["average.a.weight"].eq(1).all()


def test_a_checkpoint_within_a_larger_module_and_one_that_does_not_fit() -> None:
    start, after = halves()
    whole = nn.ModuleDict({"teacher": EMA(start, 0.999)})
    whole["teacher"].update(after)
    again = nn.ModuleDict({"teacher": EMA(start, 0.999)})
    again.load_state_dict(whole.state_dict())
    shadow = whole["teacher"].shadows["weight"]
    assert torch.equal(again["teacher"].shadows["weight"], shadow)
    with pytest.raises(RuntimeError, match="size mismatch"):
        again["teacher"].load_state_dict({"module.weight": torch.zeros(3, 3)}, strict=False)
    again["teacher"].load_state_dict({}, strict=False)
    assert torch.equal(again["teacher"].shadows["weight"], shadow)


def test_what_was_loaded_into_the_copy_is_what_is_saved() -> None:
    average = EMA(halves()[0], 0.9)
    average.module.load_state_dict({"weight": torch.full((2, 2), 100.0)})
    assert average.state_dict()["module.weight"].eq(100).all()


def test_a_network_without_memory_is_filled_by_a_checkpoint() -> None:
    start, _ = halves()
    with torch.device("meta"):
        average = EMA(nn.Linear(2, 2, bias=False, dtype=torch.bfloat16), 0.9)
    average.to_empty(device="cpu").load_state_dict(EMA(start, 0.9).state_dict())
    average.update(start)
    assert torch.equal(average.module.weight, start.weight)


class WithBuffers(nn.Module):
    """One weight, and the buffers given."""

    def __init__(self, **buffers: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_buffers_are_averaged(dtype: torch.dtype) -> None:
    numbers = torch.randn(3, 2, dtype=dtype)
    start, after = WithBuffers(x=numbers, y=numbers.conj()), WithBuffers(x=2j * numbers, y=(1 + 1j) * numbers)
    average = EMA(start, 0.75)
    average.update(after)
    torch.testing.assert_close(average.module.x, (0.75 + 0.5j) * numbers)
    torch.testing.assert_close(average.module.y, 0.75 * numbers.conj() + 0.25 * (1 + 1j) * numbers)
    assert average.module.x.dtype == dtype
    again = EMA(start, 0.75)
    again.load_state_dict(average.state_dict())
    assert torch.equal(again.module.x, average.module.x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64], ids=str)
def test_expanded_buffers_are_averaged(dtype: torch.dtype) -> None:
    start, after = (WithBuffers(x=torch.full((1, 3), value).to(dtype).expand(4, 3)) for value in (1.0, 3.0))
    average = EMA(start, 0.5)
    average.update(after)
    torch.testing.assert_close(average.module.x, torch.full((4, 3), 3.0 if dtype == torch.int64 else 2.0).to(dtype))
    assert start.x.eq(1).all()


def test_a_network_with_weight_normalisation_is_copied() -> None:
    head = nn.utils.weight_norm(nn.Linear(3, 2))
    head(torch.ones(1, 3))
    average = EMA(head, 0.5)
    average.update(head)
    torch.testing.assert_close(average(torch.ones(1, 3)), head(torch.ones(1, 3)))


def test_tied_weights_are_updated_once() -> None:
    start = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    start["b"].weight = start["a"].weight
    average, after = EMA(start, 0.5), copy.deepcopy(start)
    with torch.no_grad():
        after["a"].weight.add_(2)
    average.update(after)
    torch.testing.assert_close(average.module["b"].weight, start["a"].weight + 1)


def test_is_called_as_the_network_is() -> None:
    start = network().eval()
    x = torch.randn(5, 4)
    assert torch.equal(EMA(start, 0.5)(x), start(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMA(network(), 1.5), r"EMA: momentum must be a number in \[0, 1\]; got 1.5"),
        (
            lambda: EMA(network(), 0.5).update(nn.Linear(4, 6)),
            r"are not those .*; got nothing where the copy has 1\.weight",
        ),
        (
            lambda: EMA(nn.Linear(4, 6), 0.5).update(nn.Linear(4, 5)),
            r"got weight \(5, 4\) where the copy has .* \(6, 4\)$",
        ),
        (lambda: cosine(0.9, 1.1, 10), r"cosine: end must be a number in \[0, 1\]; got 1.1"),
        (lambda: cosine(0.9, 1.0, 0), "cosine: steps must be at least 1; got 0"),
    ],
)
def test_what_means_nothing_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("call", [lambda x: EMA(x, 0.5), lambda x: EMA(network(), 0.5).update(x)])
def test_parameters_alone_are_refused(call) -> None:
    with pytest.raises(TypeError, match=r"EMA: model must be a torch\.nn\.Module; got generator"):
        call(network().parameters())
