"""The exponential moving average against float64, on every engine."""

from __future__ import annotations

import functools
import importlib
import math

import pytest
import torch
from contrastive_helpers import assert_same_bits_with_any_number_of_threads, extra_megabytes, linux_only
from emulated import cuda_on_cpu
from streams import noted_streams
from torch import Tensor

from fastssl.ops import ema_update_

BACKENDS = ("reference", "cpu", "cuda")
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIZES = [0, 1, 7, 64, 123, 252, 507, 1023, 1025, 70_001]


def tensors(dtype: torch.dtype, device: torch.device, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(device, dtype) for size in SIZES]


def exact(targets: list[Tensor], sources: list[Tensor], momentum: float) -> list[Tensor]:
    return [momentum * t.double() + (1 - momentum) * s.double() for t, s in zip(targets, sources, strict=True)]


@pytest.mark.parametrize("source_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("target_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999, 1.0])
def test_equals_the_formula(engine, target_dtype: torch.dtype, source_dtype: torch.dtype, momentum: float) -> None:
    targets, sources = tensors(target_dtype, engine.device, 0), tensors(source_dtype, engine.device, 1)
    want = exact(targets, sources, momentum)
    ema_update_(targets, sources, momentum)
    computed_in = torch.float64 if target_dtype == torch.float64 else torch.float32
    for got, expected in zip(targets, want, strict=True):
        # two roundings of the type computed in, and half a unit of the one stored
        bound = 8 * torch.finfo(computed_in).eps + 0.51 * torch.finfo(target_dtype).eps
        assert torch.all((got.double() - expected).abs() <= bound * expected.abs().clamp(min=1))


@pytest.mark.parametrize("copy_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("target_dtype", FLOATS, ids=str)
def test_copy_is_the_target_rounded(engine, target_dtype: torch.dtype, copy_dtype: torch.dtype) -> None:
    targets, sources = tensors(target_dtype, engine.device, 0), tensors(torch.bfloat16, engine.device, 1)
    copies = [torch.empty_like(target, dtype=copy_dtype) for target in targets]
    ema_update_(targets, sources, 0.9, copies=copies)
    for target, copy in zip(targets, copies, strict=True):
        assert torch.equal(copy, target.to(copy_dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_is_read_and_rounded_as_torch_does(engine, dtype: torch.dtype) -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16).to(engine.device)
    source = bits.view(dtype)
    target = torch.zeros(2**16, device=engine.device)
    ema_update_([target], [source], 0.0)
    assert target[source.isnan()].isnan().all()
    finite = source.isfinite()
    assert torch.equal(target[finite], source.float()[finite])
    # and back, from values around every rounding boundary
    wide = (target[finite][:, None] * torch.tensor([0.9998, 1.0, 1.0002], device=engine.device)).flatten()
    copy = torch.empty_like(wide, dtype=dtype)
    ema_update_([wide], [wide.clone()], 1.0, copies=[copy])
    assert torch.equal(copy, wide.to(dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_momentum_0_copies_and_1_keeps_exactly(engine, dtype: torch.dtype) -> None:
    """Also where the difference of the two rounds to one of them."""
    large, small = (
        torch.tensor([1e4, -3e4, 7.0], device=engine.device),
        torch.tensor([1.0, 0.1, -5e-5], device=engine.device),
    )
    for start, fresh in ((large, small), (small, large)):
        target, source = start.to(dtype), fresh.to(dtype)
        ema_update_([target], [source], 1.0)
        assert torch.equal(target, start.to(dtype))
        ema_update_([target], [source], 0.0)
        assert torch.equal(target, source)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_momentum_0_and_1_take_nothing_of_the_other(engine, value: float) -> None:
    whole, broken = torch.arange(21.0, device=engine.device), torch.full((21,), value, device=engine.device)
    target, copy = broken.clone(), broken.clone()
    ema_update_([target], [whole], 0.0, copies=[copy])
    assert torch.equal(target, whole)
    ema_update_([target], [broken], 1.0, copies=[copy])
    assert torch.equal(target, whole)
    assert torch.equal(copy, whole)


def test_integers_and_bools_are_copied(engine) -> None:
    targets = [torch.tensor([5]), torch.tensor([True, False, True]), torch.zeros((), dtype=torch.int64), torch.ones(4)]
    sources = [torch.tensor([2**40]), torch.tensor([False, True, True]), torch.tensor(7), torch.zeros(4)]
    targets, sources = ([t.to(engine.device) for t in ts] for ts in (targets, sources))
    copies = [torch.empty_like(t) for t in targets]
    ema_update_(targets, sources, 0.5, copies=copies)
    for target, copy, source in zip(targets[:3], copies[:3], sources[:3], strict=True):
        assert torch.equal(target, source)
        assert torch.equal(copy, source)
    assert torch.equal(targets[3], torch.full((4,), 0.5, device=engine.device))


def test_any_layout(engine) -> None:
    def pair(x: Tensor) -> Tensor:
        return x.to(engine.device)

    base = torch.randn(4, 6, 5, 3)
    cases = [
        (pair(base).to(memory_format=torch.channels_last), pair(base * 2).to(memory_format=torch.channels_last)),
        (pair(base).to(memory_format=torch.channels_last), pair(base * 2)),
        (pair(base)[:, ::2], pair(base * 2)[:, ::2]),
        (pair(base).transpose(0, 3), pair(base * 2).transpose(0, 3)),
        (pair(base), pair(base[:1] * 2).expand(4, -1, -1, -1)),
    ]
    for target, source in cases:
        (want,) = exact([target], [source], 0.75)
        neighbours = target._base.clone() if target._base is not None else None
        copy = torch.empty(target.shape, dtype=torch.bfloat16, device=engine.device)
        ema_update_([target], [source], 0.75, copies=[copy])
        torch.testing.assert_close(target.double(), want, rtol=1e-6, atol=1e-6)
        assert torch.equal(copy, target.bfloat16())
        if neighbours is not None and target.numel() < neighbours.numel():
            assert torch.equal(target._base[:, 1::2], neighbours[:, 1::2])


def test_nothing_beyond_the_ends_is_written(engine) -> None:
    for offset in (0, 1, 3):
        memory = torch.full((1200,), -7.0, device=engine.device)
        target = memory[16 + offset : 16 + offset + 1101]
        target.zero_()
        ema_update_([target], [torch.ones_like(target)], 0.5)
        assert torch.equal(target, torch.full_like(target, 0.5))
        assert memory[: 16 + offset].eq(-7).all()
        assert memory[16 + offset + 1101 :].eq(-7).all()


def test_a_slow_average_moves_in_float32_and_not_in_bfloat16(engine) -> None:
    """Why targets are kept in float32."""
    source = [torch.full((8,), 1.0, dtype=torch.bfloat16, device=engine.device)]
    wide, narrow = [torch.zeros(8, device=engine.device)], [torch.full((8,), 0.5, device=engine.device).bfloat16()]
    for _ in range(100):
        ema_update_(wide, source, 0.999)
        ema_update_(narrow, source, 0.999)
    torch.testing.assert_close(wide[0], torch.full_like(wide[0], 1 - 0.999**100), rtol=1e-4, atol=0)
    assert narrow[0].eq(0.5).all()


def test_parameters_of_a_model(engine) -> None:
    student = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(engine.device)
    teacher = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(engine.device)
    want = exact(list(teacher.parameters()), list(student.parameters()), 0.9)
    ema_update_(list(teacher.parameters()), list(student.parameters()), 0.9)
    for got, expected in zip(teacher.parameters(), want, strict=True):
        torch.testing.assert_close(got.detach().double(), expected.detach(), rtol=1e-6, atol=1e-7)
        assert got.requires_grad
        assert got.grad_fn is None


def test_a_backward_that_saved_a_changed_target_refuses(engine) -> None:
    weight = torch.ones(3, device=engine.device, requires_grad=True)
    loss = (weight**2).sum()
    ema_update_([weight], [torch.zeros(3, device=engine.device)], 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_empty_lists_and_inference_mode(engine) -> None:
    ema_update_([], [], 0.5)
    with torch.inference_mode():
        target = torch.zeros(3, device=engine.device)
        ema_update_([target], [torch.ones(3, device=engine.device)], 0.5)
        assert target.eq(0.5).all()


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def step(target: Tensor, source: Tensor) -> Tensor:
        ema_update_([target], [source * 2], 0.5)
        return target + 1

    target = torch.zeros(5, device=engine.device)
    got = torch.compile(step, fullgraph=True)(target, torch.ones(5, device=engine.device))
    assert target.eq(1.0).all()
    assert got.eq(2.0).all()


def test_tensors_that_change_between_steps(engine) -> None:
    """What is kept from one step to the next may not hold for tensors that moved, or changed where they lie."""
    target, source = torch.zeros(4, 6, device=engine.device), torch.ones(4, 6, device=engine.device)

    def step() -> None:
        (want,) = exact([target], [source], 0.5)
        ema_update_([target], [source], 0.5)
        torch.testing.assert_close(target.double(), want, rtol=1e-6, atol=1e-6)

    step()
    step()
    target.data = target.clone()  # elsewhere
    step()
    memory = torch.arange(48.0, device=engine.device)
    target.data = memory[:24].view(4, 6)
    step()
    target.data, source.data = memory[:24].view(4, 6).T, source.T.contiguous()  # there, in another order
    step()
    target.data, source.data = memory[:12].view(3, 4), source.flatten()[:12].view(3, 4)  # a part of it
    before = memory[12:].clone()
    step()
    assert torch.equal(memory[12:], before)
    target.data, source.data = target.data.view(torch.int32), source.data.view(torch.int32)
    ema_update_([target], [source], 0.5)
    assert torch.equal(target, source)


def test_a_step_like_the_last_makes_no_new_plan(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine.backend == "reference":
        pytest.skip("it has no plan")
    targets, sources = tensors(torch.float32, engine.device, 0), tensors(torch.bfloat16, engine.device, 1)
    ema_update_(targets, sources, 0.5)

    def refuse(*_: object) -> None:
        raise AssertionError("a new plan")

    monkeypatch.setattr(importlib.import_module("fastssl.ops.ema_update"), "_made", refuse)
    ema_update_(targets, sources, 0.9)


def test_the_table_is_copied_once_from_pinned_memory_and_streams_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, sources = [torch.zeros(70_001)], [torch.ones(70_001)]
    pinned, copied, to = [], [], Tensor.to
    monkeypatch.setattr(importlib.import_module("fastssl.ops.ema_update"), "_plans", {})
    noted = lambda x, *to_what, **how: (copied.append((x, how)), to(x, *to_what, **how))[1]  # noqa: E731
    with cuda_on_cpu(), noted_streams() as streams, monkeypatch.context() as patch:
        patch.setattr(Tensor, "pin_memory", lambda x: (pinned.append(x), x)[1])
        patch.setattr(Tensor, "to", noted)
        ema_update_(targets, sources, 0.5, backend="cuda")
        streams.current = "second"
        ema_update_(targets, sources, 0.5, backend="cuda")
    (table,) = pinned
    assert [(x is table, how) for x, how in copied] == [(True, {"non_blocking": True})]
    assert streams.said == ["recorded in first", "first waits", "second waits"]
    assert targets[0].eq(0.75).all()


def test_a_graph_captures_any_call_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, sources = [torch.zeros(5)], [torch.ones(5)]
    monkeypatch.setattr(importlib.import_module("fastssl.ops.ema_update"), "_plans", {})
    with cuda_on_cpu(), noted_streams() as streams:
        streams.capturing = True
        with pytest.raises(RuntimeError, match="call it once on these tensors before capturing a CUDA graph of it"):
            ema_update_(targets, sources, 0.5, backend="cuda")
        streams.capturing = False
        ema_update_(targets, sources, 0.5, backend="cuda")
        streams.capturing = True
        streams.said.clear()
        ema_update_(targets, sources, 0.5, backend="cuda")
    assert streams.said == []  # CUDA refuses a wait for what lies outside of the capture
    assert targets[0].eq(0.75).all()


@pytest.mark.gpu
def test_the_first_call_waits_for_nothing_and_other_streams_find_its_table(gpu: torch.device) -> None:
    """On a busy stream it has only asked for the copy; both calls write the same numbers."""
    targets, sources = tensors(torch.float32, gpu, 0), tensors(torch.float32, gpu, 1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(20_000_000)
            ema_update_(targets, sources, 0.0, backend="cuda")
        ema_update_(targets, sources, 0.0, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().synchronize()
    assert all(map(torch.equal, targets, sources))


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    def work() -> list[Tensor]:
        """Three steps from the same state, with a tensor that the reference updates among the others."""
        targets, sources = tensors(torch.float32, engine.device, 0), tensors(torch.bfloat16, engine.device, 1)
        targets.append(targets[-1][1:].view(2, -1).T)
        sources.append(sources[-1][1:].view(-1, 2))
        targets[-2] = targets[-2].clone()
        copies = [torch.empty_like(target, dtype=torch.float16) for target in targets]
        for _ in range(3):
            ema_update_(targets, sources, 0.99, copies=copies)
        return [*targets, *copies]

    assert_same_bits_with_any_number_of_threads(work, engine)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_stay_where_they_are(engine, value: float) -> None:
    targets, sources = tensors(torch.float32, engine.device, 0), tensors(torch.bfloat16, engine.device, 1)
    sources[-3][1000], targets[-2][7] = value, value
    ema_update_(targets, sources, 0.5)
    # as of torch.lerp, NaN may stand where the formula has infinity
    assert not targets[-3][1000].isfinite()
    assert not targets[-2][7].isfinite()
    assert sum(int((~target.isfinite()).sum()) for target in targets) == 2


@linux_only
def test_nothing_of_the_tensors_size_is_made() -> None:
    """Four targets of 32 MB each, sources and copies of half that."""
    measure = functools.partial(
        extra_megabytes,
        """
lists = [[torch.ones(2**23, dtype=dtype) for _ in range(4)] for dtype in (torch.float32, torch.bfloat16, torch.float16)]
def run(n):
    targets, sources, copies = ([x[:n] for x in tensors] for tensors in lists)
    ops.ema_update_(targets, sources, 0.9, copies=copies, backend=backend)
""",
        "run(64)",
        "run(2**23)",
    )
    assert measure("cpu") < 4
    assert measure("reference") > 60  # the measurement does see a source made wider, and an average before it is stored


T = torch.zeros
BAD = [
    (([T(2)], [T(2), T(2)], 0.5), ValueError, "must be as many; got 1 and 2"),
    (([T(2), T(3)], [T(2), T(4)], 0.5), ValueError, r"target 1 is \(3\) and source 1 is \(4\)"),
    (([T(2)], [T(2)], 1.5), ValueError, r"momentum must be a number in \[0, 1\]; got 1.5"),
    (([T(2)], [T(2)], float("nan")), ValueError, "got nan"),
    (([T(2)], [T(2).long()], 0.5), TypeError, "target 0 is torch.float32 and source 0 is torch.int64"),
    (([T(2).int()], [T(2).long()], 0.5), TypeError, "target 0 is torch.int32 and source 0 is torch.int64"),
    (([T(2)], [T(2, device="meta")], 0.5), ValueError, "target 0 is on cpu and source 0 on meta"),
    (([T(2)], [3.0], 0.5), TypeError, "source 0 must be a tensor; got float"),
    (([T(2).cfloat()], [T(2).cfloat()], 0.5), TypeError, "target 0 must be real; got torch.complex64"),
    (([T(1).expand(4)], [T(4)], 0.5), ValueError, "target 0 is an expanded tensor"),
    ((T(2), [T(2)], 0.5), TypeError, "targets must be a list of tensors; got Tensor"),
    (([T(2)], 3.0, 0.5), TypeError, "sources must be a list of tensors; got float"),
    (([T(2)], [T(2)], "0.5"), ValueError, "got str"),
    (([T(2)], [T(2).to_sparse()], 0.5), TypeError, "source 0 must be dense; got torch.sparse_coo"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ema_update_(*arguments)  # type: ignore[arg-type]


def test_a_backend_that_cannot_serve_says_so() -> None:
    with pytest.raises(RuntimeError, match="no such backend, only cuda, cpu, reference"):
        ema_update_([T(2)], [T(2)], 0.5, backend="triton")


def test_shared_memory_is_refused_and_nothing_is_changed(engine) -> None:
    """Threads and blocks would race on it; tied weights in a state dict are the usual case."""
    memory = torch.zeros(100, device=engine.device)
    one = torch.ones(50, device=engine.device)
    for targets, sources, copies, message in (
        ([memory[:50], memory[:50]], [one, one], None, "target 0 and target 1 share memory: give each tensor once"),
        ([memory[10:60], memory[:50]], [one, one], None, "target 1 and target 0 share memory"),
        ([memory[:50]], [one], [memory[49:99]], "target 0 and copy 0 share memory"),
        ([memory[1:51]], [memory[:50]], None, "source 0 and target 0 share memory: clone the source first"),
        ([memory[:50], memory[50:]], [memory[50:], one], None, "source 0 and target 1 share memory"),
    ):
        with pytest.raises(ValueError, match=message):
            ema_update_(targets, sources, 0.5, copies=copies)
    assert memory.eq(0).all()


def test_memory_that_is_only_read_or_lies_side_by_side_may_be_shared(engine) -> None:
    memory, one = torch.zeros(4, 6, device=engine.device), torch.ones(12, device=engine.device)
    flat = memory.view(24)
    ema_update_([flat[:12], flat[12:]], [one, one], 0.5)
    ema_update_([flat[:12]], [flat[:12]], 0.5)
    left, right = memory[:, ::2], memory[:, 1::2]
    ema_update_([left, right, flat[:0]], [one.view(4, 3), one.view(4, 3), flat[:0]], 0.5)
    assert memory.eq(0.75).all()


def test_bad_copies_are_named_and_nothing_is_changed() -> None:
    target = T(2)
    with pytest.raises(ValueError, match="copies must be as many as targets, or None; got 2 and 1"):
        ema_update_([target], [T(2) + 1], 0.5, copies=[T(2), T(2)])
    with pytest.raises(ValueError, match=r"target 0 is \(2\) and copy 0 is \(3\)"):
        ema_update_([target], [T(2) + 1], 0.5, copies=[T(3)])
    with pytest.raises(TypeError, match=r"target 0 is torch.float32 and copy 0 is torch.int64"):
        ema_update_([target], [T(2) + 1], 0.5, copies=[T(2).long()])
    assert target.eq(0).all()
