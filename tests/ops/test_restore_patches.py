"""restore_patches against tokens concatenated and gathered, on every engine."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from beyond_32_bits import zeros
from patches_helpers import DTYPES, SHAPES, assert_as_good_as_plain_torch, normal, permutations, repeating, results
from torch import Tensor

from fastssl.ops import restore_patches
from fastssl.ops.restore_patches import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "cuda")
pytestmark = pytest.mark.usefixtures("made_on_the_engine")


def ours(ids: Tensor):
    return lambda x, token, pos=None: restore_patches(x, ids, token, pos_embed=pos)


def plain(ids: Tensor):
    return lambda x, token, pos=None: reference(x, ids, token, pos)


def inputs(batch: int, length: int, kept: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, mask_token and pos_embed."""
    return [
        normal(batch, kept, width, dtype=dtype),
        normal(width, dtype=dtype, seed=3),
        normal(length, width, dtype=dtype, seed=1),
    ]


@pytest.mark.parametrize("with_pos", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "length", "kept", "width"), SHAPES)
def test_equals_concatenation_and_gather(
    engine, batch: int, length: int, kept: int, width: int, dtype: torch.dtype, with_pos: bool
) -> None:
    ids = permutations(batch, length)
    tensors = inputs(batch, length, kept, width, dtype)[: 3 if with_pos else 2]
    assert_as_good_as_plain_torch(ours(ids), plain(ids), tensors, normal(batch, length, width, dtype=dtype, seed=2))


@pytest.mark.parametrize("token_shape", [(20,), (1, 1, 20)])
def test_dtypes_promote_as_in_torch(engine, token_shape: tuple[int, ...]) -> None:
    ids, grad = permutations(9, 12), normal(9, 12, 20, seed=2)
    half, full = torch.bfloat16, torch.float32
    for x_dtype, token_dtype, pos_dtype in (
        (half, full, full),
        (half, half, full),
        (half, full, half),
        (full, half, half),
        (half, torch.float16, half),
        (half, half, torch.float64),
    ):
        tensors = [
            normal(9, 5, 20, dtype=x_dtype),
            normal(*token_shape, dtype=token_dtype, seed=3),
            normal(1, 12, 20, dtype=pos_dtype, seed=1),
        ]
        assert_as_good_as_plain_torch(ours(ids), plain(ids), tensors, grad)


@pytest.mark.parametrize("case", ["one patch everywhere", "no patch", "random with repetition"])
def test_repeated_indices_are_summed(engine, case: str) -> None:
    batch, length, kept, width = 20, 11, 4, 40
    ids = {
        "one patch everywhere": torch.full((batch, length), 2),
        "no patch": torch.full((batch, length), kept),
        "random with repetition": repeating(length, batch, length),
    }[case]
    for dtype in DTYPES:
        grad = normal(batch, length, width, dtype=dtype, seed=2)
        assert_as_good_as_plain_torch(ours(ids), plain(ids), inputs(batch, length, kept, width, dtype), grad)


@pytest.mark.parametrize("kept", [0, 6])
def test_no_patch_or_all(engine, kept: int) -> None:
    ids = permutations(5, 6)
    assert_as_good_as_plain_torch(ours(ids), plain(ids), inputs(5, 6, kept, 8), normal(5, 6, 8, seed=2))


def large() -> tuple[Tensor, list[Tensor], Tensor]:
    """Over the size from which the kernel's stores go past the caches; rows of 100 bytes lie across its vectors."""
    return permutations(500, 700), inputs(500, 700, 350, 25), normal(500, 700, 25, seed=2)


def test_large_outputs_and_gradients(engine) -> None:
    ids, tensors, grad = large()
    assert_as_good_as_plain_torch(ours(ids), plain(ids), tensors, grad)
    assert_as_good_as_plain_torch(ours(ids), plain(ids), [t.bfloat16() for t in tensors], grad.bfloat16())
    assert_as_good_as_plain_torch(ours(ids), plain(ids), [t.double() for t in tensors], grad.double())


def test_larger_gradients_than_32_bits_count() -> None:
    """One patch was kept; the token stands for all others."""
    grad, ids = zeros(2_100, 1_024, 1_000, dtype=torch.bfloat16), torch.arange(1_024).expand(2_100, -1)
    grad[0, :2], grad[-1, -2:] = 1, torch.arange(1_000) % 7
    backward = torch.ops.fastssl.restore_patches_backward
    x, token, pos = backward(grad, ids, 1, torch.bfloat16, True, True, True, None)
    assert torch.equal(x, grad[:, :1])
    assert torch.equal(token, 1 + 2 * grad[-1, -1])
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
    ids = permutations(6, 10)

    def decoder_input(restore):
        def run(x: Tensor, token: Tensor, pos: Tensor) -> Tensor:
            return torch.cat([x[:, :1] + pos[:, :1], restore(x[:, 1:], token, pos[:, 1:])], dim=1)

        return run

    tensors = [normal(6, 5, 16), normal(1, 1, 16, seed=3), normal(1, 11, 16, seed=1)]
    assert_as_good_as_plain_torch(
        decoder_input(ours(ids)), decoder_input(plain(ids)), tensors, normal(6, 11, 16, seed=2)
    )


@pytest.mark.parametrize("layout", ["columns first", "every second column", "expanded sample", "reversed samples"])
def test_any_memory_layout(engine, layout: str) -> None:
    x = {
        "columns first": normal(6, 16, 4).transpose(1, 2),
        "every second column": normal(6, 4, 32)[:, :, ::2],
        "expanded sample": normal(1, 4, 16).expand(6, -1, -1),
        "reversed samples": normal(4, 6, 16).transpose(0, 1),
    }[layout]
    ids, token, pos = permutations(10, 6).argsort(0).T, normal(32, seed=3)[::2], normal(16, 10, seed=1).T
    assert torch.equal(restore_patches(x, ids, token, pos_embed=pos), reference(x, ids, token, pos))
    leaf = x.detach().clone().requires_grad_()
    restore_patches(leaf, ids, token, pos_embed=pos).sum().backward()  # a gradient expanded from one element
    want = x.detach().clone().requires_grad_()
    reference(want, ids, token, pos).sum().backward()
    assert torch.equal(leaf.grad, want.grad)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_go_where_they_belong(engine, value: float) -> None:
    ids = permutations(4, 8)
    tensors, grad = inputs(4, 8, 3, 5), normal(4, 8, 5)
    tensors[0][2, 1, 3] = value
    grad[1, 2, 0] = value
    for got, want in zip(results(ours(ids), tensors, grad), results(plain(ids), tensors, grad), strict=True):
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("asked", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradient_only_where_asked(engine, asked: tuple[bool, bool, bool]) -> None:
    ids, grad = permutations(40, 70), normal(40, 70, 12, seed=2)
    tensors = inputs(40, 70, 20, 12)
    want = results(ours(ids), tensors, grad)[1:]
    leaves = [t.clone().requires_grad_(need) for t, need in zip(tensors, asked, strict=True)]
    ours(ids)(*leaves).backward(grad)
    for leaf, gradient, need in zip(leaves, want, asked, strict=True):
        assert torch.equal(leaf.grad, gradient) if need else leaf.grad is None
    with torch.no_grad():
        assert not ours(ids)(*leaves).requires_grad


@pytest.mark.parametrize("shape", [(0, 5, 2, 3), (2, 5, 2, 0), (2, 0, 0, 3)])
def test_nothing_to_restore(engine, shape: tuple[int, int, int, int]) -> None:
    batch, length, kept, width = shape
    leaves = [t.requires_grad_() for t in inputs(batch, length, kept, width)]
    out = ours(torch.arange(length).expand(batch, -1))(*leaves)
    assert out.shape == (batch, length, width)
    out.sum().backward()
    for leaf in leaves:
        assert leaf.grad.eq(0).all()


def test_gradcheck(engine) -> None:
    ids = torch.tensor([[4, 0, 4, 1, 2], [1, 2, 3, 0, 4]])
    tensors = tuple(t.double().requires_grad_() for t in inputs(2, 5, 3, 2))
    assert torch.autograd.gradcheck(ours(ids), tensors)


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    ids, tensors, grad = permutations(4, 9), inputs(4, 9, 3, 8), normal(4, 9, 8, seed=2)

    def step(x: Tensor, token: Tensor, pos: Tensor) -> Tensor:
        return 2 * restore_patches(x * 3, ids, token, pos_embed=pos)

    compiled = torch.compile(step, fullgraph=True)
    for got, want in zip(results(compiled, tensors, grad), results(step, tensors, grad), strict=True):
        torch.testing.assert_close(got, want)


def test_shapes_alone_on_the_meta_device() -> None:
    x = torch.empty(4, 3, 8, device="meta", dtype=torch.bfloat16, requires_grad=True)
    token = torch.empty(8, device="meta", requires_grad=True)
    out = restore_patches(x, torch.empty(4, 9, device="meta", dtype=torch.int64), token)
    out.sum().backward()
    assert (out.shape, out.dtype) == ((4, 9, 8), torch.float32)
    assert (x.grad.shape, x.grad.dtype, token.grad.shape) == ((4, 3, 8), torch.bfloat16, (8,))


def test_second_derivative_is_refused(engine) -> None:
    x = normal(2, 3, 3).requires_grad_()
    out = restore_patches(x, permutations(2, 5), torch.zeros(3))
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("bad", [-1, 5, 2**40, -(2**62)])
def test_an_index_outside_is_named(engine, bad: int) -> None:
    if engine.backend == "cuda":
        pytest.skip("nothing waits for a GPU to look at indices: the next test says what it does")
    ids = torch.zeros(3, 5, dtype=torch.int64)
    ids[1, 2] = bad
    with pytest.raises(ValueError, match=rf"ids_restore must be in \[0, 5\); got {bad} at \(1, 2\)"):
        restore_patches(torch.zeros(3, 4, 2), ids, torch.zeros(2))
    with pytest.raises(ValueError, match=rf"ids_restore must be in \[0, 5\); got {bad} at \(1, 2\)"):
        torch.ops.fastssl.restore_patches_backward(torch.zeros(3, 5, 2), ids, 4, torch.float32, True, True, True, None)


@pytest.mark.parametrize("width", [2, 16])
@pytest.mark.parametrize("bad", [-1, 5, 2**40, -(2**62)])
def test_an_index_outside_is_nan_on_a_gpu(engine, bad: int, width: int) -> None:
    if engine.backend != "cuda":
        pytest.skip("it is named")
    ids = permutations(3, 5)
    ids[1, 2] = bad
    inside = ids.clamp(0, 4)
    x, token, pos = inputs(3, 5, 3, width)
    want = reference(x, inside, token, pos)
    want[1, 2] = float("nan")
    torch.testing.assert_close(restore_patches(x, ids, token, pos_embed=pos), want, equal_nan=True, rtol=0, atol=0)
    backward, grad = torch.ops.fastssl.restore_patches_backward, normal(3, 5, width, seed=2)
    without = grad.clone()
    without[1, 2] = 0
    got = backward(grad, ids, 3, torch.float32, True, True, True, None)
    want_x, want_token, _ = backward(without, inside, 3, torch.float32, True, True, True, None)
    torch.testing.assert_close(got, (want_x, want_token, grad.sum(0)))


MEASURE = """
import re, sys, torch
from fastssl.ops import restore_patches
torch.set_num_threads(2)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
for batch in (2, 64):
    x = torch.randn(batch, 16, 512, requires_grad=True)
    ids = torch.rand(batch, 64).argsort(1)
    token, pos = torch.randn(512, requires_grad=True), torch.randn(64, 512, requires_grad=True)
    grad = torch.ones(batch, 64, 512)
    before = peak()
    restore_patches(x, ids, token, pos_embed=pos, backend=sys.argv[1]).backward(grad)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_neither_the_concatenation_nor_expanded_indices_are_stored() -> None:
    """The output is 8 MB, the gradient of x 2 MB."""

    def extra(backend: str) -> float:
        done = subprocess.run([sys.executable, "-c", MEASURE, backend], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert extra("cpu") < 8 + 2 + 4
    assert extra("reference") > 8 + 2 + 4  # the measurement does see the concatenation


X, IDS, TOKEN = torch.zeros(2, 3, 4), torch.zeros(2, 5, dtype=torch.int64), torch.zeros(4)
BAD = [
    (dict(x=[1.0]), TypeError, "x must be a tensor; got list"),
    (dict(x=X.long()), TypeError, "x must be float32.*got torch.int64"),
    (dict(x=X[0]), ValueError, r"x must have shape \(B, K, D\); got \(3, 4\)"),
    (dict(x=torch.zeros(2, 6, 4)), ValueError, r"at most the L = 5 patches of ids_restore; got 6"),
    (dict(ids_restore=IDS.int()), TypeError, "ids_restore must be int64; got torch.int32"),
    (dict(ids_restore=IDS[:1]), ValueError, r"the first being the samples of x; got \(1, 5\) for x \(2, 3, 4\)"),
    (dict(ids_restore=[0]), TypeError, "ids_restore must be a tensor; got list"),
    (dict(ids_restore=IDS.to("meta")), ValueError, "x and ids_restore must be on one device; got cpu and meta"),
    (dict(pos_embed=[1.0]), TypeError, "pos_embed must be a tensor; got list"),
    (dict(pos_embed=torch.zeros(5, 4).int()), TypeError, "pos_embed must be float32.*got torch.int32"),
    (dict(mask_token=torch.zeros(3)), ValueError, r"mask_token must have D = 4 elements; got \(3\)"),
    (dict(mask_token=torch.zeros(2, 4)), ValueError, r"mask_token must have D = 4 elements; got \(2, 4\)"),
    (dict(mask_token=0.0), TypeError, "mask_token must be a tensor; got float"),
    (dict(mask_token=torch.zeros(4).int()), TypeError, "mask_token must be float32.*got torch.int32"),
    (dict(mask_token=torch.zeros(4, device="meta")), ValueError, "x and mask_token must be on one device"),
    (dict(pos_embed=torch.zeros(3, 4)), ValueError, r"with L = 5 and D = 4; got \(3, 4\)"),
    (dict(pos_embed=torch.zeros(5, 4, device="meta")), ValueError, "x and pos_embed must be on one device"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        restore_patches(**{"x": X, "ids_restore": IDS, "mask_token": TOKEN, **change})  # type: ignore[arg-type]
