"""take_patches against a gather by expanded indices, on every engine."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from beyond_32_bits import zeros
from patches_helpers import DTYPES, SHAPES, assert_as_good_as_plain_torch, normal, permutations, repeating, results
from torch import Tensor

from fastssl.ops import take_patches
from fastssl.ops.take_patches import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "cuda")
pytestmark = pytest.mark.usefixtures("made_on_the_engine")


def ours(ids: Tensor):
    return lambda x, pos=None: take_patches(x, ids, pos_embed=pos)


def plain(ids: Tensor):
    return lambda x, pos=None: reference(x, ids, pos)


@pytest.mark.parametrize("with_pos", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "length", "kept", "width"), SHAPES)
def test_equals_a_gather(
    engine, batch: int, length: int, kept: int, width: int, dtype: torch.dtype, with_pos: bool
) -> None:
    ids = permutations(batch, length)[:, :kept]
    x, pos = normal(batch, length, width, dtype=dtype), normal(length, width, dtype=dtype, seed=1)
    grad = normal(batch, kept, width, dtype=dtype, seed=2)
    assert_as_good_as_plain_torch(ours(ids), plain(ids), [x, pos] if with_pos else [x], grad)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("other", [torch.float64, torch.float16])
def test_dtypes_promote_as_in_torch(engine, dtypes: tuple[torch.dtype, torch.dtype], other: torch.dtype) -> None:
    ids = permutations(9, 12)[:, :5]
    for x_dtype, pos_dtype in (dtypes, (dtypes[0], other), (other, dtypes[1])):
        x, pos = normal(9, 12, 20, dtype=x_dtype), normal(1, 12, 20, dtype=pos_dtype, seed=1)
        assert_as_good_as_plain_torch(ours(ids), plain(ids), [x, pos], normal(9, 5, 20, seed=2))


@pytest.mark.parametrize("case", ["one index for all", "each twice", "random with repetition"])
def test_repeated_indices_are_summed(engine, case: str) -> None:
    batch, length, kept, width = 20, 11, 8, 40
    ids = {
        "one index for all": torch.full((batch, kept), 10),
        "each twice": torch.arange(kept).div(2, rounding_mode="floor").expand(batch, -1),
        "random with repetition": repeating(length, batch, kept),
    }[case]
    for dtype in DTYPES:
        tensors = [normal(batch, length, width, dtype=dtype), normal(length, width, dtype=dtype, seed=1)]
        assert_as_good_as_plain_torch(ours(ids), plain(ids), tensors, normal(batch, kept, width, dtype=dtype, seed=2))


def test_more_patches_may_be_taken_than_there_are(engine) -> None:
    ids = repeating(3, 4, 9)
    assert_as_good_as_plain_torch(ours(ids), plain(ids), [normal(4, 3, 8), normal(3, 8, seed=1)], normal(4, 9, 8))


def large() -> tuple[Tensor, list[Tensor], Tensor]:
    """Over the size from which the kernel's stores go past the caches; rows of 100 bytes lie across its vectors."""
    ids = permutations(400, 600)[:, :300]
    return ids, [normal(400, 600, 25), normal(600, 25, seed=1)], normal(400, 300, 25, seed=2)


def test_large_outputs_and_gradients(engine) -> None:
    ids, tensors, grad = large()
    doubled = [torch.cat([t, t], -1) for t in tensors]  # the forward's output is 24 MB, the gradient 48 MB
    assert_as_good_as_plain_torch(ours(ids), plain(ids), doubled, torch.cat([grad, grad], -1))
    assert_as_good_as_plain_torch(ours(ids), plain(ids), [t.bfloat16() for t in doubled], torch.cat([grad, grad], -1))
    assert_as_good_as_plain_torch(ours(ids), plain(ids), [t.double() for t in tensors], grad)


def test_more_elements_than_32_bits_count(engine) -> None:
    x, (first, last) = zeros(3, 2**20, 700, dtype=torch.bfloat16, device=engine.device), normal(2, 700).bfloat16()
    x[0, 0], x[2, -1] = first, last
    out = take_patches(x, torch.tensor([[0, 2**20 - 1], [5, 0], [2**20 - 1, 3]]))
    assert torch.equal(out[0, 0], first)
    assert torch.equal(out[2, 0], last)
    out[0, 0] = out[2, 0] = 0
    assert out.eq(0).all()


def test_larger_gradients_than_32_bits_count() -> None:
    grad, ids = zeros(2_100, 1_024, 1_000, dtype=torch.bfloat16), torch.arange(1_024).expand(2_100, -1)
    grad[0], grad[-1] = 1, torch.arange(1_000) % 7
    _, pos = torch.ops.fastssl.take_patches_backward(grad, ids, 1_024, torch.bfloat16, False, True, None)
    assert torch.equal(pos, grad[0] + grad[-1])


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    ids, tensors, grad = large()
    before = torch.get_num_threads()
    want = results(ours(ids), tensors, grad)
    try:
        for threads in (1, 2, 3, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            for got, expected in zip(results(ours(ids), tensors, grad), want, strict=True):
                assert torch.equal(got, expected)
    finally:
        torch.set_num_threads(before)


def test_a_class_token_kept_apart(engine) -> None:
    """Slices of what holds a class token too, forward and, by the concatenation, backward."""
    ids = permutations(6, 10)[:, :4]

    def encoder_input(take):
        def run(x: Tensor, pos: Tensor) -> Tensor:
            return torch.cat([x[:, :1] + pos[:, :1], take(x[:, 1:], pos[:, 1:])], dim=1)

        return run

    tensors = [normal(6, 11, 16), normal(1, 11, 16, seed=1)]
    assert_as_good_as_plain_torch(
        encoder_input(ours(ids)), encoder_input(plain(ids)), tensors, normal(6, 5, 16, seed=2)
    )


@pytest.mark.parametrize("layout", ["columns first", "every second column", "expanded sample", "reversed samples"])
def test_any_memory_layout(engine, layout: str) -> None:
    x = {
        "columns first": normal(6, 16, 10).transpose(1, 2),
        "every second column": normal(6, 10, 32)[:, :, ::2],
        "expanded sample": normal(1, 10, 16).expand(6, -1, -1),
        "reversed samples": normal(10, 6, 16).transpose(0, 1),
    }[layout]
    ids = permutations(10, 6).T[:, :10].remainder(10)
    pos = normal(16, 10, seed=1).T
    assert torch.equal(take_patches(x, ids, pos_embed=pos), reference(x, ids, pos))
    leaf = x.detach().clone().requires_grad_()
    take_patches(leaf, ids, pos_embed=pos).sum().backward()  # a gradient expanded from one element
    want = x.detach().clone().requires_grad_()
    reference(want, ids, pos).sum().backward()
    assert torch.equal(leaf.grad, want.grad)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_go_where_they_belong(engine, value: float) -> None:
    ids = permutations(4, 8)[:, :4]
    x, grad = normal(4, 8, 5), normal(4, 4, 5)
    x[2, int(ids[2, 1]), 3] = value
    grad[1, 2, 0] = value
    for got, want in zip(results(ours(ids), [x], grad), results(plain(ids), [x], grad), strict=True):
        torch.testing.assert_close(got, want, equal_nan=True, rtol=0, atol=0)


def test_gradient_only_where_asked(engine) -> None:
    ids = permutations(3, 6)[:, :2]
    x, pos = normal(3, 6, 4), normal(6, 4)
    take_patches(x, ids, pos_embed=pos.requires_grad_()).sum().backward()
    assert x.grad is None
    assert torch.equal(pos.grad, torch.bincount(ids.flatten(), minlength=6)[:, None].expand(6, 4).float())
    pos = pos.detach()
    take_patches(x.requires_grad_(), ids, pos_embed=pos).sum().backward()
    assert pos.grad is None
    assert x.grad.sum() == 3 * 2 * 4
    with torch.no_grad():
        assert not take_patches(x, ids).requires_grad


@pytest.mark.parametrize("shape", [(0, 5, 2, 3), (2, 5, 0, 3), (2, 5, 2, 0), (2, 0, 0, 3)])
def test_nothing_to_take(engine, shape: tuple[int, int, int, int]) -> None:
    batch, length, kept, width = shape
    ids = torch.zeros(batch, kept, dtype=torch.int64)
    x, pos = torch.ones(batch, length, width, requires_grad=True), torch.ones(length, width, requires_grad=True)
    out = take_patches(x, ids, pos_embed=pos)
    assert out.shape == (batch, kept, width)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert x.grad.sum() == pos.grad.sum() == batch * kept * width


def test_gradcheck(engine) -> None:
    ids = torch.tensor([[4, 0, 4], [1, 2, 3]])
    tensors = (t.requires_grad_() for t in (normal(2, 5, 3).double(), normal(5, 3, seed=1).double()))
    assert torch.autograd.gradcheck(ours(ids), tuple(tensors))


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    ids = permutations(4, 9)[:, :3]
    tensors, grad = [normal(4, 9, 8), normal(1, 9, 8, seed=1)], normal(4, 3, 8, seed=2)

    def step(x: Tensor, pos: Tensor) -> Tensor:
        return 2 * take_patches(x * 3, ids, pos_embed=pos)

    compiled = torch.compile(step, fullgraph=True)
    for got, want in zip(results(compiled, tensors, grad), results(step, tensors, grad), strict=True):
        torch.testing.assert_close(got, want)


def test_shapes_alone_on_the_meta_device() -> None:
    x = torch.empty(4, 9, 8, device="meta", dtype=torch.bfloat16, requires_grad=True)
    ids = torch.empty(4, 3, device="meta", dtype=torch.int64)
    out = take_patches(x, ids, pos_embed=torch.empty(9, 8, device="meta"))
    out.sum().backward()
    assert (out.shape, out.dtype, x.grad.dtype) == ((4, 3, 8), torch.float32, torch.bfloat16)


def test_second_derivative_is_refused(engine) -> None:
    x = normal(2, 5, 3).requires_grad_()
    (grad,) = torch.autograd.grad(take_patches(x, permutations(2, 5)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


def test_more_indices_than_the_gradient_counts_are_refused() -> None:
    x, ids = torch.zeros(0, 5, 1, requires_grad=True), torch.zeros(0, 2**31, dtype=torch.int64)
    taken = take_patches(x, ids, backend="cpu")
    with pytest.raises(ValueError, match=r"at most 2\^31 - 1 indices a sample; got 2147483648"):
        taken.sum().backward()


@pytest.mark.parametrize("bad", [-1, 5, 2**40, -(2**62)])
def test_an_index_outside_is_named(engine, bad: int) -> None:
    if engine.backend == "cuda":
        pytest.skip("nothing waits for a GPU to look at indices: the next test says what it does")
    ids = torch.zeros(3, 4, dtype=torch.int64)
    ids[1, 2] = bad
    with pytest.raises(ValueError, match=rf"ids must be in \[0, 5\); got {bad} at \(1, 2\)"):
        take_patches(torch.zeros(3, 5, 2), ids)
    with pytest.raises(ValueError, match=rf"ids must be in \[0, 5\); got {bad} at \(1, 2\)"):
        torch.ops.fastssl.take_patches_backward(torch.zeros(3, 4, 2), ids, 5, torch.float32, True, True, None)


@pytest.mark.parametrize("width", [2, 16])
@pytest.mark.parametrize("bad", [-1, 5, 2**40, -(2**62)])
def test_an_index_outside_is_nan_on_a_gpu(engine, bad: int, width: int) -> None:
    if engine.backend != "cuda":
        pytest.skip("it is named")
    ids = permutations(3, 5)[:, :4]
    ids[1, 2] = bad
    inside = ids.clamp(0, 4)
    x, pos, grad = normal(3, 5, width), normal(5, width, seed=1), normal(3, 4, width, seed=2)
    want = reference(x, inside, pos)
    want[1, 2] = float("nan")
    torch.testing.assert_close(take_patches(x, ids, pos_embed=pos), want, equal_nan=True, rtol=0, atol=0)
    backward = torch.ops.fastssl.take_patches_backward
    without = grad.clone()
    without[1, 2] = 0
    got = backward(grad, ids, 5, torch.float32, True, True, None)
    for x, expected in zip(got, backward(without, inside, 5, torch.float32, True, True, None), strict=True):
        torch.testing.assert_close(x, expected)


MEASURE = """
import re, sys, torch
from fastssl.ops import take_patches
torch.set_num_threads(2)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
for batch in (2, 64):
    x = torch.randn(batch, 64, 512, requires_grad=True)
    ids = torch.rand(batch, 64).argsort(1)[:, :16]
    pos = torch.randn(64, 512, requires_grad=True)
    grad = torch.ones(batch, 16, 512)
    before = peak()
    taken = take_patches(x, ids, pos_embed=pos, backend=sys.argv[1])
    forward = peak()
    taken.backward(grad)
print(forward - before, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_neither_the_sum_nor_expanded_indices_are_stored() -> None:
    """x is 8 MB: so is its gradient; what is taken is 2 MB."""

    def extra(backend: str) -> tuple[float, float]:
        done = subprocess.run([sys.executable, "-c", MEASURE, backend], capture_output=True, text=True, check=True)
        forward, both = map(float, done.stdout.split())
        return forward, both

    forward, both = extra("cpu")
    assert forward < 2 + 2
    assert both < 2 + 8 + 3
    assert extra("reference")[0] > 2 + 8 - 1  # the measurement does see the sum x + pos


X, IDS = torch.zeros(2, 5, 4), torch.zeros(2, 3, dtype=torch.int64)
BAD = [
    (dict(x=[1.0]), TypeError, "x must be a tensor; got list"),
    (dict(x=X.long()), TypeError, "x must be float32.*got torch.int64"),
    (dict(x=X[0]), ValueError, r"x must have shape \(B, L, D\); got \(5, 4\)"),
    (dict(ids=IDS.int()), TypeError, "ids must be int64; got torch.int32"),
    (dict(ids=[0]), TypeError, "ids must be a tensor; got list"),
    (dict(ids=IDS.to("meta")), ValueError, "x and ids must be on one device; got cpu and meta"),
    (dict(pos_embed=[1.0]), TypeError, "pos_embed must be a tensor; got list"),
    (dict(pos_embed=torch.zeros(2, 5, 4)), ValueError, r"pos_embed must have shape \(L, D\); got \(2, 5, 4\)"),
    (dict(ids=IDS[0]), ValueError, r"ids must have two dimensions.*got \(3\) for x \(2, 5, 4\)"),
    (dict(ids=IDS[:1]), ValueError, r"the first being the samples of x; got \(1, 3\) for x \(2, 5, 4\)"),
    (dict(ids=IDS.to("meta")), ValueError, "x and ids must be on one device; got cpu and meta"),
    (dict(pos_embed=torch.zeros(5, 3)), ValueError, r"with L = 5 and D = 4; got \(5, 3\)"),
    (dict(pos_embed=torch.zeros(2, 5, 4)), ValueError, r"pos_embed must have shape \(L, D\); got \(2, 5, 4\)"),
    (dict(pos_embed=torch.zeros(1, 6, 4)), ValueError, r"with L = 5 and D = 4; got \(1, 6, 4\)"),
    (dict(pos_embed=torch.zeros(5, 4).long()), TypeError, "pos_embed must be float32.*got torch.int64"),
    (dict(pos_embed=3.0), TypeError, "pos_embed must be a tensor; got float"),
    (dict(pos_embed=torch.zeros(5, 4, device="meta")), ValueError, "x and pos_embed must be on one device"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        take_patches(**{"x": X, "ids": IDS, **change})  # type: ignore[arg-type]
