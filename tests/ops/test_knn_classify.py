"""Weighted kNN against the definition in float64, on every engine."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from beyond_32_bits import DEVICES, NEAR, needles
from torch import Tensor
from torch.nn.functional import normalize

from fastssl.ops import knn_classify
from fastssl.ops._top_k import largest
from fastssl.ops.knn_classify import reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "triton")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TEMPERATURES = [0.01, 0.02, 0.07, 0.2, 1.0]
# queries, size of the bank, features: one, prime, ragged, more features than are multiplied at a time
SHAPES = [
    (1, 1, 1),
    (3, 2, 5),
    (7, 13, 128),
    (33, 97, 64),
    (123, 252, 100),
    (252, 507, 31),
    (40, 300, 511),
    (19, 90, 1100),
]


def data(
    q: int, m: int, d: int, *, classes: int = 5, dtype: torch.dtype = torch.float32, device: object = "cpu"
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(q + m + d)
    features, bank = (torch.randn(n, d, generator=generator).to(device=device, dtype=dtype) for n in (q, m))
    return [features, bank, torch.randint(classes, (m,), generator=generator).to(device)]


def definition(features: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """In float64, with one stable sort of all similarities."""
    similarity = normalize(features.double(), dim=1) @ normalize(bank.double(), dim=1).T
    values, columns = similarity.sort(dim=1, descending=True, stable=True)
    weights = ((values[:, :k] - values[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(features), classes).scatter_add_(1, labels[columns[:, :k]], weights)
    return votes / votes.sum(1, keepdim=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("q", "m", "d"), SHAPES)
def test_equals_the_definition(engine, q: int, m: int, d: int, dtype: torch.dtype) -> None:
    """A similarity moves by some rounding errors: its weight by that over t, and which one is the k-th with it."""
    if engine.backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernels take no float64")
    if engine.slow:  # as ragged, in fewer blocks
        q, m = min(q, 70), min(m, 140)
    features, bank, labels = data(q, m, d, dtype=dtype, device=engine.device)
    # the whole bank is sought among a few rows, which takes an interpreter long among many
    ks = {1, min(20, m), *([] if engine.slow and m > 100 else [m]), *([] if engine.slow else [min(5, m), min(200, m)])}
    for k in sorted(ks):
        for temperature in (0.07,) if engine.slow else TEMPERATURES:
            got = knn_classify(features, bank, labels, k=k, temperature=temperature, num_classes=5)
            assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            want = definition(features, bank, labels, k, temperature, 5)
            error = (got.double() - want).abs().amax(1)
            similarity = normalize(features.double(), dim=1) @ normalize(bank.double(), dim=1).T
            ranked = similarity.sort(dim=1, descending=True).values
            rounding = 16 * torch.finfo(got.dtype).eps
            decided = ranked[:, k - 1] - ranked[:, k] > rounding if k < m else torch.ones(q, dtype=torch.bool)
            assert decided.sum() >= 0.9 * q
            assert error[decided].max() <= rounding / temperature
            torch.testing.assert_close(got.sum(1), torch.ones_like(got[:, 0]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_at_most_twice_the_error_of_plain_torch(engine, dtype: torch.dtype) -> None:
    q, m = (40, 100) if engine.slow else (200, 500)
    features, bank, labels = data(q, m, 96, dtype=dtype, device=engine.device)
    want = definition(features, bank, labels, m, 0.07, 5)
    ours = knn_classify(features, bank, labels, k=m, temperature=0.07, num_classes=5).double() - want
    plain = reference(features, bank, labels, m, 0.07, 5).double() - want
    assert ours.norm() <= 2 * plain.norm()


@pytest.mark.parametrize("k", [1, 7, 16, 17, 60, 1000])
def test_of_equal_neighbours_the_first_in_the_bank_vote(engine, k: int) -> None:
    """Rows in four directions, so that nearly every similarity is a tie; each row is its own class: who voted shows."""
    m = 300 if engine.slow else 1000
    k = min(k, m)
    generator = torch.Generator().manual_seed(k)
    codes = torch.eye(4)[torch.randint(4, (m,), generator=generator)]
    bank = torch.where(torch.rand(m, 1, generator=generator) < 0.5, codes, -0.0 * codes).to(engine.device)
    query = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.0, 0.0, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0]], device=engine.device)
    labels = torch.arange(m, device=engine.device)
    got = knn_classify(query, bank, labels, k=k, temperature=10.0, num_classes=m)
    want = definition(query, bank, labels, k, 10.0, m)
    assert torch.equal(got > 0, want > 0)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


def test_ties_do_not_depend_on_where_rows_stand(engine) -> None:
    """300 copies of one row among others, at a size where a product could be summed in another order at the edges."""
    features, bank, _ = data(35, 611, 517, device=engine.device)
    twin = torch.arange(611, device=engine.device) % 2 == 0
    bank[twin] = bank[0].clone()
    features = features * 0.05 + bank[0]
    got = knn_classify(features, bank, torch.arange(611, device=engine.device), k=9, temperature=1.0, num_classes=611)
    if engine.backend == "cpu":
        assert torch.equal(got.nonzero()[:, 1].view(35, 9), torch.arange(0, 18, 2).expand(35, 9))
    else:
        assert got[:, twin].sum(1).min() > 0.999


@pytest.mark.parametrize("order", ["rising", "falling"])
@pytest.mark.parametrize("k", [1, 20, 90])
def test_banks_in_order_of_similarity(engine, order: str, k: int) -> None:
    """Every row a new nearest neighbour, or none after the first k."""
    m = 1100 if engine.slow else 2000  # enough for a bank in parts
    angle = torch.linspace(1.5, 0.1, m, dtype=torch.float64)
    angle = angle if order == "rising" else angle.flip(0)
    bank = torch.stack([angle.cos(), angle.sin()], 1).float().to(engine.device)
    query, labels = torch.tensor([[1.0, 0.0]], device=engine.device), torch.arange(m, device=engine.device)
    got = knn_classify(query, bank, labels, k=k, temperature=0.5, num_classes=m)
    nearest = labels[-k:] if order == "rising" else labels[:k]
    assert torch.equal(got[0].nonzero()[:, 0], nearest)


def test_the_length_of_rows_does_not_matter(engine) -> None:
    features, bank, labels = data(20, 100, 16, device=engine.device)
    want = knn_classify(features, bank, labels, k=9, temperature=0.1, num_classes=5)
    stretched = bank * torch.logspace(-10, 10, 100, base=2, device=engine.device)[:, None].round().clamp(min=2.0**-9)
    got = knn_classify(8 * features, stretched, labels, k=9, temperature=0.1, num_classes=5)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    zero = knn_classify(torch.zeros_like(features), bank, labels, k=100, temperature=0.1, num_classes=5)
    share = torch.bincount(labels, minlength=5) / 100
    torch.testing.assert_close(zero, share.expand_as(zero), rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [1e-4, 1e-20, 1e-60])
def test_low_temperatures_leave_the_nearest_alone(engine, temperature: float) -> None:
    features, bank, labels = data(20, 100, 16, device=engine.device)
    got = knn_classify(features, bank, labels, k=20, temperature=temperature, num_classes=5)
    want = knn_classify(features, bank, labels, k=1, temperature=1.0, num_classes=5)
    torch.testing.assert_close(got, want, rtol=0, atol=0.1 if temperature == 1e-4 else 0.0)


@pytest.mark.parametrize("device", DEVICES)
def test_more_pairs_than_32_bits_count(device: str) -> None:
    directions, bank, places = needles(2**20)
    labels = torch.zeros(len(bank), dtype=torch.int64)
    labels[places] = torch.arange(1, 19).view(6, 3)
    asked = torch.arange(2_100) % 6  # x 2^20 > 2^31
    inputs = (x.to(device) for x in (directions[asked], bank, labels))
    got = knn_classify(*inputs, k=3, temperature=0.5, num_classes=19)
    want = torch.zeros(6, 19).scatter_(1, labels[places], (NEAR / 0.5).softmax(0).expand(6, 3))
    torch.testing.assert_close(got.cpu(), want[asked], rtol=1e-5, atol=0)


@pytest.mark.usefixtures("other_working_memory")
def test_same_bits_again_and_with_any_number_of_threads(engine) -> None:
    q, m = (70, 150) if engine.slow else (150, 700)
    features, bank, labels = data(q, m, 48, device=engine.device)
    before = torch.get_num_threads()
    want = knn_classify(features, bank, labels, k=30, temperature=0.1, num_classes=5)
    try:
        for threads in (2,) if engine.slow else (1, 2, 3, before):
            if engine.backend != "reference":
                torch.set_num_threads(threads)
            got = knn_classify(features, bank, labels, k=30, temperature=0.1, num_classes=5)
            assert torch.equal(got, want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("q", "m", "k"), [(100, 1100, 40), (400, 4000, 3000)])
def test_many_blocks_of_queries(engine, q: int, m: int, k: int) -> None:
    """At k = 3000 the candidates of a block of queries are few: each query must meet its own."""
    if engine.slow and k > 40:  # as many blocks of queries, and nearly the whole bank for each
        q, m, k = 140, 200, 150
    features, bank, labels = data(q, m, 8, device=engine.device)
    got = knn_classify(features, bank, labels, k=k, temperature=0.1, num_classes=5)
    for rows in (slice(0, 1), slice(63, 66), slice(q - 20, q)):
        alone = knn_classify(features[rows], bank, labels, k=k, temperature=0.1, num_classes=5)
        torch.testing.assert_close(got[rows], alone, rtol=1e-4 if engine.backend == "reference" else 0, atol=0)


def test_non_contiguous_inputs(engine) -> None:
    features, bank, labels = data(30, 60, 24, device=engine.device)
    want = knn_classify(features, bank, labels, k=9, temperature=0.1, num_classes=5)
    strided = [x.T.contiguous().T for x in (features, bank)]
    got = knn_classify(*strided, torch.stack([labels, labels], 1)[:, 0], k=9, temperature=0.1, num_classes=5)
    torch.testing.assert_close(got, want, rtol=1e-4 if engine.backend == "reference" else 0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_give_nan(engine, value: float, dtype: torch.dtype) -> None:
    if engine.backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernels take no float64")
    features, bank, labels = data(50, 100, 24, dtype=dtype, device=engine.device)
    bad = features.clone()
    bad[13, 7] = value
    got = knn_classify(bad, bank, labels, k=9, temperature=0.1, num_classes=5)
    assert got[13].isnan().all()
    assert got[torch.arange(50, device=engine.device) != 13].isfinite().all()
    bank[99, 23] = value
    assert knn_classify(features, bank, labels, k=9, temperature=0.1, num_classes=5).isnan().all()


def test_no_gradient_flows(engine) -> None:
    features, bank, labels = data(5, 20, 4, device=engine.device)
    got = knn_classify(features.requires_grad_(), bank.requires_grad_(), labels, k=3, temperature=0.1, num_classes=5)
    assert not got.requires_grad


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def predict(features: Tensor, bank: Tensor, labels: Tensor) -> Tensor:
        return knn_classify(features * 2, bank, labels, k=3, temperature=0.1, num_classes=5) + 1

    inputs = data(9, 20, 4, device=engine.device)
    torch.testing.assert_close(torch.compile(predict, fullgraph=True)(*inputs), predict(*inputs))


def test_autocast_changes_nothing(engine) -> None:
    features, bank, labels = data(20, 60, 16, device=engine.device)
    want = knn_classify(features, bank, labels, k=9, temperature=0.1, num_classes=5)
    with torch.autocast(engine.device.type, torch.bfloat16):
        assert torch.equal(knn_classify(features, bank, labels, k=9, temperature=0.1, num_classes=5), want)


def test_shapes_alone_on_the_meta_device() -> None:
    x, labels = torch.empty(4, 8, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    got = knn_classify(x.half(), x.half(), labels, k=2, temperature=0.1, num_classes=7)
    assert (got.shape, got.dtype) == ((4, 7), torch.float32)


@pytest.mark.parametrize("k", [1, 3, 5, 6])
def test_largest_of_the_references_is_a_stable_sort(k: int) -> None:
    x = torch.tensor([[0.5, 1, 0.5, 0.5, 1, 0.2], [0, 0, 0, 0, 0, 0], [3, 2, 1, 4, 6, 5]])
    want = x.sort(dim=1, descending=True, stable=True)
    values, columns = largest(x, k)
    assert torch.equal(columns, want.indices[:, :k])
    assert torch.equal(values, want.values[:, :k])


MEASURE = """
import re, sys, torch
from fastssl.ops import knn_classify
torch.set_num_threads(2)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
for n in (64, 4000):
    q, bank, labels = torch.randn(n, 16), torch.randn(2 * n, 16), torch.zeros(2 * n, dtype=torch.int64)
    before = peak()
    knn_classify(q, bank, labels, k=20, temperature=0.5, num_classes=2, backend=sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_the_similarities_are_never_stored() -> None:
    """4000 x 8000: 122 MB; the reference holds 64 MB of them at a time."""

    def extra_megabytes(backend: str) -> float:
        done = subprocess.run([sys.executable, "-c", MEASURE, backend], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert extra_megabytes("cpu") < 16
    assert extra_megabytes("reference") > 60  # the measurement does see them


F, B, L = torch.zeros(3, 4), torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64)
BAD = [
    (dict(features=[1.0]), TypeError, "features must be a tensor; got list"),
    (dict(features=F.long()), TypeError, "features must be float32.*got torch.int64"),
    (dict(bank=B.double()), TypeError, "one dtype; got torch.float32 and torch.float64"),
    (dict(bank=B.to("meta")), ValueError, "one device; got cpu and meta"),
    (dict(features=F[0]), ValueError, r"features must have shape \(Q, D\); got \(4\)"),
    (dict(bank=B[:, :3]), ValueError, r"must agree on D; got \(3, 4\) and \(8, 3\)"),
    (dict(features=F[:0]), ValueError, r"at least one query.*got \(0, 4\) and \(8, 4\)"),
    (dict(bank=B[:0], labels=L[:0]), ValueError, r"one row in the bank.*got \(3, 4\) and \(0, 4\)"),
    (dict(features=F[:, :0], bank=B[:, :0]), ValueError, r"one feature; got \(3, 0\) and \(8, 0\)"),
    (dict(labels=[0] * 8), TypeError, "labels must be a tensor; got list"),
    (dict(labels=L.int()), TypeError, "labels must be int64; got torch.int32"),
    (dict(labels=L[:7]), ValueError, r"agree on M; got \(8, 4\) and \(7\)"),
    (dict(labels=L.to("meta")), ValueError, "one device; got cpu and meta"),
    (dict(labels=L + 2), ValueError, r"labels must lie in \[0, 2\); got 2 to 2"),
    (dict(labels=L - 1), ValueError, r"labels must lie in \[0, 2\); got -1 to -1"),
    (dict(k=0), ValueError, r"k must be in \[1, 8\], the size of the bank; got 0"),
    (dict(k=9), ValueError, "got 9"),
    (dict(k=3.0), TypeError, "k must be an integer; got float"),
    (dict(num_classes=2.0), TypeError, "num_classes must be an integer; got float"),
    (dict(bank=None), TypeError, "bank must be a tensor; got NoneType"),
    (dict(bank=B[0]), ValueError, r"bank must have shape \(M, D\); got \(4\)"),
    (dict(num_classes=0), ValueError, "num_classes must be at least 1; got 0"),
    (dict(temperature=0.0), ValueError, "temperature must be finite and above 0; got 0.0"),
    (dict(temperature=float("nan")), ValueError, "got nan"),
    (dict(temperature="0.1"), TypeError, "temperature must be a number; got str"),
    (dict(backend="cuda"), RuntimeError, "no such backend, only triton, cpu, reference"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = dict(features=F, bank=B, labels=L, k=3, temperature=0.1, num_classes=2)
    with pytest.raises(error, match=message):
        knn_classify(**{**arguments, **change})  # type: ignore[arg-type]
