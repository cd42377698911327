"""lightly's names against lightly itself: results, gradients, state dicts, and what differs on purpose."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import rivals
from fastssl.compat import lightly as ours

try:
    loss, utils, heads, bank = (
        rivals.load(f"lightly.{name}") for name in ("loss", "models.utils", "models.modules.heads", "loss.memory_bank")
    )
    # by its file: its package asks for pytorch_lightning
    knn_file = Path(rivals.load("lightly").__file__).parent / "utils" / "benchmarking" / "knn.py"
except rivals.NotInstalledError as missing:
    pytest.skip(str(missing), allow_module_level=True)

spec = importlib.util.spec_from_file_location("lightlys_knn", knn_file)
knn = importlib.util.module_from_spec(spec)
spec.loader.exec_module(knn)

THEIRS = {
    **{name: getattr(loss, name) for name in ("NTXentLoss", "DINOLoss", "NegativeCosineSimilarity")},
    **{
        name: getattr(heads, name)
        for name in ("ProjectionHead", "SimCLRProjectionHead", "MoCoProjectionHead", "DINOProjectionHead")
    },
    "MemoryBankModule": bank.MemoryBankModule,
    "knn_predict": knn.knn_predict,
    **{name: getattr(utils, name) for name in ours.__all__ if hasattr(utils, name)},
}
DTYPES = [torch.float32, torch.float64]


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_gradients(function, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    result = function(*leaves)
    result.sum().backward()
    return result.detach(), *(x.grad for x in leaves)


def assert_alike(got, want) -> None:
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ours.__all__)
def test_arguments_have_the_same_names_order_and_defaults(name: str) -> None:
    def told(x) -> list[tuple[str, object]]:
        return [(p.name, p.default) for p in inspect.signature(x).parameters.values()]

    assert told(getattr(ours, name)) == told(THEIRS[name])
    if inspect.isclass(THEIRS[name]):
        assert told(getattr(ours, name).forward) == told(THEIRS[name].forward)


@pytest.mark.parametrize(
    "module",
    [
        *("loss", "loss.dino_loss", "loss.memory_bank", "loss.negative_cosine_similarity", "loss.ntx_ent_loss"),
        *("models.modules", "models.modules.heads", "models.modules.memory_bank", "models.utils"),
    ],
)
def test_names_are_where_lightly_has_them(module: str) -> None:
    wanted = set(ours.__all__) & set(vars(rivals.load(f"lightly.{module}")))
    assert wanted
    assert wanted <= set(vars(importlib.import_module(f"fastssl.compat.lightly.{module}")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d", "temperature"), [(1, 3, 0.5), (17, 8, 0.1), (64, 33, 0.07)])
def test_nt_xent(n: int, d: int, temperature: float, dtype: torch.dtype) -> None:
    views = rows(0, n, d, dtype=dtype), rows(1, n, d, dtype=dtype)
    got, want = (
        with_gradients(library(temperature=temperature), *views) for library in (ours.NTXentLoss, loss.NTXentLoss)
    )
    assert_alike(got, want)


@pytest.mark.parametrize(("n", "d", "size"), [(4, 8, 16), (7, 5, 21)])
def test_nt_xent_with_a_bank_over_steps_that_do_not_wrap(n: int, d: int, size: int) -> None:
    theirs, mine = loss.NTXentLoss(0.2, (size, d)), ours.NTXentLoss(0.2, (size, d))
    mine.memory_bank.bank.copy_(theirs.memory_bank.bank)
    for step in range(size // n + 2):
        views = rows(2 * step, n, d), rows(2 * step + 1, n, d)
        assert_alike(with_gradients(mine, *views), with_gradients(theirs, *views))
        assert_alike([mine.memory_bank.bank], [theirs.memory_bank.bank])
        assert mine.memory_bank.bank_ptr == theirs.memory_bank.bank_ptr
    with torch.no_grad():  # without a gradient the bank stays
        before = mine.memory_bank.bank.clone()
        assert_alike([mine(*views)], [theirs(*views)])
        assert torch.equal(mine.memory_bank.bank, before)


@pytest.mark.parametrize("feature_dim_first", [True, False])
def test_a_bank_by_itself(feature_dim_first: bool) -> None:
    theirs, mine = (
        library((12, 5), feature_dim_first=feature_dim_first)
        for library in (bank.MemoryBankModule, ours.MemoryBankModule)
    )
    mine.bank.copy_(theirs.bank)
    for step in range(4):
        output = rows(step, 4, 5)
        for got, want in zip(mine(output, update=True), theirs(output, update=True), strict=True):
            assert torch.equal(got, want)
    assert ours.MemoryBankModule(0)(output) == (output, None)


def of_lists(library, teacher: Tensor, temp: float | None, epoch: int | None, student: Tensor) -> Tensor:
    return library(list(teacher), list(student), temp, epoch)


@pytest.mark.parametrize(("students", "teachers"), [(2, 2), (8, 2), (2, 1), (1, 2)])
def test_dino(students: int, teachers: int) -> None:
    theirs, mine = loss.DINOLoss(11, warmup_teacher_temp_epochs=5), ours.DINOLoss(11, warmup_teacher_temp_epochs=5)
    for step, (temp, epoch) in enumerate([(None, None), (0.07, None), (None, 2), (None, 9)]):
        student, teacher = rows(step, students, 6, 11), rows(9 + step, teachers, 6, 11)
        got, want = (
            with_gradients(functools.partial(of_lists, library, teacher, temp, epoch), student)
            for library in (mine, theirs)
        )
        assert_alike(got, want)
        assert_alike([mine.center], [theirs.center])


def test_negative_cosine() -> None:
    for dim in (1, -1, 0):
        x = rows(0, 6, 5), rows(1, 6, 5)
        got, want = (
            with_gradients(library(dim), *x)
            for library in (ours.NegativeCosineSimilarity, loss.NegativeCosineSimilarity)
        )
        assert_alike(got, want)


def test_update_momentum_and_deactivate() -> None:
    networks = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    averages = [copy.deepcopy(networks[1]) for _ in range(2)]
    for library, average in zip((ours, utils), averages, strict=True):
        library.update_momentum(networks[0], average, 0.9)
        library.deactivate_requires_grad(average)
        assert not any(parameter.requires_grad for parameter in average.parameters())
    assert_alike(*(average.state_dict().values() for average in averages))


@pytest.mark.parametrize("mask_class_token", [True, False])
@pytest.mark.parametrize(("size", "ratio"), [((3, 10), 0.6), ((2, 11), 0.9), ((4, 197), 0.75), ((1, 1), 0.5)])
def test_random_token_mask_draws_the_same(size: tuple[int, int], ratio: float, mask_class_token: bool) -> None:
    torch.manual_seed(0)
    got = ours.random_token_mask(size, ratio, mask_class_token)
    torch.manual_seed(0)
    for x, y in zip(got, utils.random_token_mask(size, ratio, mask_class_token), strict=True):
        assert torch.equal(x, y)


def test_tokens_and_patches() -> None:
    images, tokens = rows(0, 2, 3, 8, 8), rows(1, 2, 6, 5)
    index, value, token = torch.tensor([[0, 3], [5, 1]]), rows(2, 2, 2, 5), rows(3, 1, 1, 5)
    for name, arguments in {
        "patchify": (images, 4),
        "unpatchify": (utils.patchify(images, 4), 4),
        "repeat_token": (token, (2, 6)),
        "get_at_index": (tokens, index),
        "set_at_index": (tokens, index, value),
        "mask_at_index": (tokens, index, token),
    }.items():
        torch.testing.assert_close(getattr(ours, name)(*arguments), getattr(utils, name)(*arguments))


def test_shuffling_draws_the_same_and_comes_back() -> None:
    batch = rows(0, 7, 3)
    torch.manual_seed(0)
    shuffled, order = ours.batch_shuffle(batch)
    torch.manual_seed(0)
    want, same = utils.batch_shuffle(batch)
    assert torch.equal(shuffled, want)
    assert torch.equal(order, same)
    assert torch.equal(ours.batch_unshuffle(shuffled, order), batch)


@pytest.mark.parametrize(("k", "t"), [(1, 0.1), (7, 0.1), (20, 0.07)])
def test_knn_predict_ranks_the_classes_alike(k: int, t: float) -> None:
    features, known = (nn.functional.normalize(rows(i, n, 8), dim=1) for i, n in enumerate((12, 40)))
    labels = torch.randint(3, (40,), generator=torch.Generator().manual_seed(5))
    got, want = (library.knn_predict(features, known.T, labels, 3, k, t) for library in (ours, knn))
    assert torch.equal(got[:, 0], want[:, 0])
    assert torch.equal(got.sort(1).values, want.sort(1).values)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("SimCLRProjectionHead", {}),
        ("SimCLRProjectionHead", dict(num_layers=3, batch_norm=False)),
        ("SimCLRProjectionHead", dict(num_layers=1)),
        ("MoCoProjectionHead", {}),
        ("MoCoProjectionHead", dict(num_layers=4, batch_norm=True)),
        ("DINOProjectionHead", {}),
        ("DINOProjectionHead", dict(batch_norm=True, norm_last_layer=False)),
    ],
)
def test_heads_load_each_others_weights(name: str, settings: dict[str, object]) -> None:
    sizes = dict(input_dim=6, hidden_dim=7, output_dim=5)
    if name.startswith("DINO"):
        sizes["bottleneck_dim"] = 4
    theirs, mine = (getattr(library, name)(**sizes, **settings).eval() for library in (heads, ours))
    mine.load_state_dict(theirs.state_dict())
    x = rows(0, 9, 6)
    torch.testing.assert_close(mine(x), theirs(x))
    assert [p.requires_grad for p in mine.parameters()] == [p.requires_grad for p in theirs.parameters()]


def test_the_last_layer_is_frozen_for_the_first_epochs() -> None:
    head = ours.DINOProjectionHead(6, 7, 4, 5, freeze_last_layer=2)
    for epoch, frozen in ((0, True), (1, True), (2, False)):
        head(rows(0, 3, 6)).sum().backward()
        head.cancel_last_layer_gradients(epoch)
        assert (head.last_layer.weight_v.grad is None) == frozen


# ---- what differs on purpose ----


def test_a_bank_that_wraps_loses_nothing() -> None:
    mine = ours.MemoryBankModule((10, 3))
    for step in range(3):
        mine(rows(step, 4, 3), update=True)
    assert mine.bank_ptr == 2
    assert torch.equal(mine.bank[8:], rows(2, 4, 3)[:2])
    assert torch.equal(mine.bank[:2], rows(2, 4, 3)[2:])


def test_a_bank_is_saved_and_lightlys_checkpoints_without_one_load() -> None:
    mine = ours.NTXentLoss(memory_bank_size=(10, 3))
    mine(rows(0, 4, 3).requires_grad_(), rows(1, 4, 3))
    again = ours.NTXentLoss(memory_bank_size=(10, 3))
    again.load_state_dict(mine.state_dict())
    assert torch.equal(again.memory_bank.bank, mine.memory_bank.bank)
    assert again.memory_bank.bank_ptr == 4
    again.load_state_dict(loss.NTXentLoss(memory_bank_size=(10, 3)).state_dict())
    older = {"memory_bank.bank": rows(5, 3, 10), "memory_bank.bank_ptr": torch.tensor([6])}
    again.load_state_dict(older)
    assert torch.equal(again.memory_bank.bank, older["memory_bank.bank"].T)


def test_the_center_stays_under_eval() -> None:
    mine = ours.DINOLoss(5).eval()
    mine([rows(0, 4, 5)], [rows(1, 4, 5), rows(2, 4, 5)])
    assert mine.center.eq(0).all()
    lightlys = loss.DINOLoss(5)
    lightlys([rows(0, 4, 5)], [rows(1, 4, 5), rows(2, 4, 5)])
    mine.load_state_dict(lightlys.state_dict())
    assert torch.equal(mine.center, lightlys.center)


def test_a_module_in_bfloat16_keeps_its_center_in_float32() -> None:
    mine = ours.DINOLoss(5).bfloat16()
    teacher = rows(0, 4, 5)
    mine([teacher.bfloat16()], [rows(1, 4, 5).bfloat16(), rows(2, 4, 5).bfloat16()])
    assert mine.center.shape == (1, 1, 5)
    torch.testing.assert_close(mine.center[0, 0], 0.1 * teacher.bfloat16().float().mean(0))


def test_bfloat16_gives_a_loss_in_float32() -> None:
    views = rows(0, 16, 8), rows(1, 16, 8)
    got = ours.NTXentLoss()(*(x.bfloat16() for x in views))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, loss.NTXentLoss()(*views), rtol=0.01, atol=0)


def test_a_temperature_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Illegal temperature: -0\.5"):
        ours.NTXentLoss(-0.5)
