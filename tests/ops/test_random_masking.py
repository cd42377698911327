"""Random masking against two argsorts of the same noise, on every engine."""

from __future__ import annotations

import pytest
import torch

from fastssl.ops import _native, random_masking
from fastssl.ops.random_masking import kept_patches, reference  # type: ignore[attr-defined]

BACKENDS = ("reference", "cpu", "cuda")
SHAPES = [
    *((1, 1), (1, 2), (3, 10), (5, 49), (123, 7), (252, 3), (507, 2), (16, 196)),
    *((1, 123), (3, 252), (2, 257), (5, 507), (7, 1000), (2, 4096), (1, 4097), (2, 9000)),
]


def argsorts(noise: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample by sample, with Python's own stable sort."""
    ids_keep, ids_restore, mask = [], [], []
    for row in noise.tolist():
        order = sorted(range(len(row)), key=lambda i: (row[i] != row[i], row[i] if row[i] == row[i] else 0.0))
        place = {patch: rank for rank, patch in enumerate(order)}
        ids_keep.append(order[:keep])
        ids_restore.append([place[i] for i in range(len(row))])
        mask.append([float(place[i] >= keep) for i in range(len(row))])
    return torch.tensor(ids_keep), torch.tensor(ids_restore), torch.tensor(mask)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75, 0.9])
@pytest.mark.parametrize(("batch", "length"), SHAPES)
def test_equals_two_argsorts(engine, batch: int, length: int, ratio: float) -> None:
    keep = kept_patches(length, ratio)
    if keep == 0:
        pytest.skip("keeps nothing, which is refused")
    noise = torch.rand(batch, length, generator=torch.Generator().manual_seed(length)).to(engine.device)
    got = random_masking(batch, length, ratio, noise=noise)
    for tensor, want, dtype in zip(got, argsorts(noise, keep), (torch.int64, torch.int64, torch.float32), strict=True):
        assert tensor.dtype == dtype
        assert tensor.device.type == engine.device.type
        assert torch.equal(tensor.cpu(), want)


def test_ties_zeros_and_special_values(engine) -> None:
    row = [0.5, 0.0, -0.0, float("nan"), 0.5, float("inf"), -1.0, float("-inf"), 1e-42, -float("nan"), -2.0]
    noise = torch.tensor([row, row[::-1]], device=engine.device)
    got = random_masking(2, len(row), 0.5, noise=noise)
    for tensor, want in zip(got, argsorts(noise, kept_patches(len(row), 0.5)), strict=True):
        assert torch.equal(tensor.cpu(), want)


@pytest.mark.parametrize("length", [13, 16, 17, 64, 196, 255, 513, 1500])
@pytest.mark.parametrize("values", [1, 2, 50])
def test_equal_noise_keeps_its_order(engine, values: int, length: int) -> None:
    """Equal patches next to each other and far apart, few and all, short and long."""
    drawn = torch.randint(values, (20, length), generator=torch.Generator().manual_seed(length))
    noise = drawn.float().to(engine.device)
    noise[1] = torch.arange(length) % ((length + 1) // 2)
    noise[2] = float("nan")
    want = argsorts(noise, kept_patches(length, 0.5))
    for tensor, expected in zip(random_masking(20, length, 0.5, noise=noise), want, strict=True):
        assert torch.equal(tensor.cpu(), expected)


@pytest.mark.usefixtures("other_working_memory")
@pytest.mark.parametrize("length", [196, 1500])
def test_any_number_of_threads(engine, length: int) -> None:
    noise = torch.rand(61, length, generator=torch.Generator().manual_seed(0)).to(engine.device)
    before, want = torch.get_num_threads(), argsorts(noise, kept_patches(length, 0.75))
    try:
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            for tensor, expected in zip(random_masking(61, length, 0.75, noise=noise), want, strict=True):
                assert torch.equal(tensor.cpu(), expected)
    finally:
        torch.set_num_threads(before)


def test_non_contiguous_noise(engine) -> None:
    noise = torch.rand(32, 6, device=engine.device).T
    for tensor, want in zip(random_masking(6, 32, 0.5, noise=noise), reference(noise, 16), strict=True):
        assert torch.equal(tensor, want)


def test_the_generator_decides(engine) -> None:
    def draw(seed: int) -> torch.Tensor:
        return random_masking(4, 64, 0.75, generator=torch.Generator(engine.device).manual_seed(seed))[1]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert draw(1).device.type == engine.device.type


def test_every_patch_is_kept_equally_often(engine) -> None:
    mask = random_masking(4000, 16, 0.75, generator=torch.Generator(engine.device).manual_seed(0))[2]
    share = 1 - mask.mean(0)
    assert mask.sum(1).eq(12).all()
    assert (share - 0.25).abs().max() < 6 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.one_isa
def test_under_compile(engine) -> None:
    def masked(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        _, _, mask = random_masking(4, 12, 0.5, noise=noise)
        return x * mask

    x, noise = torch.randn(4, 12, device=engine.device), torch.rand(4, 12, device=engine.device)
    assert torch.equal(torch.compile(masked, fullgraph=True)(x, noise), masked(x, noise))


@pytest.mark.parametrize(
    ("length", "ratio", "kept"),
    [(10, 0.9, 1), (196, 0.75, 49), (100, 0.71, 29), (50, 0.75, 12), (7, 0.0, 7), (1000, 0.999, 1)],
)
def test_kept_patches_survives_rounding(length: int, ratio: float, kept: int) -> None:
    assert kept_patches(length, ratio) == kept


def test_more_patches_than_32_bits_count_are_refused() -> None:
    with pytest.raises(ValueError, match=r"random_masking: takes at most 2\^32 - 1 patches.*; got 4294967296"):
        _native.cpu.random_masking(0, 0, 2**32, 1, 0, 0, 0, 1)  # of no sample: addresses and a number of threads


BAD = [
    (dict(batch=0), ValueError, "at least 1; got 0 and 8"),
    (dict(length=0), ValueError, "at least 1; got 2 and 0"),
    (dict(ratio=1.0), ValueError, r"ratio must be in \[0, 1\); got 1.0"),
    (dict(ratio=-0.1), ValueError, "got -0.1"),
    (dict(ratio=float("nan")), ValueError, "got nan"),
    (dict(ratio=0.99), ValueError, "ratio 0.99 keeps none of 8 patches"),
    (dict(noise=torch.rand(3, 8)), ValueError, r"noise must have shape \(2, 8\); got \(3, 8\)"),
    (dict(noise=torch.rand(2, 8).double()), TypeError, "noise must be float32; got torch.float64"),
    (dict(batch=2.0), TypeError, "batch must be an integer; got float"),
    (dict(length="8"), TypeError, "length must be an integer; got str"),
    (dict(ratio="0.5"), TypeError, "ratio must be a number; got str"),
    (dict(noise=[0.5]), TypeError, "noise must be a tensor; got list"),
    (dict(noise=torch.rand(8)), ValueError, r"noise must have shape \(B, N\); got \(8\)"),
    (dict(backend="triton"), RuntimeError, "no such backend, only cuda, cpu, reference"),
    (dict(generator=0), TypeError, "generator must be a torch.Generator; got int"),
    (
        dict(generator=torch.Generator(), device="cuda"),
        ValueError,
        "generator is on cpu, and device=cuda was asked for",
    ),
    (dict(noise=torch.rand(2, 8), device="cuda"), ValueError, "noise is on cpu, and device=cuda was asked for"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:40] for *_, m in BAD])
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        random_masking(**{"batch": 2, "length": 8, "ratio": 0.5, **change})  # type: ignore[arg-type]
