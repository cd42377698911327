"""The choice between a kernel and the reference by what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastssl import ops
from fastssl.ops import _crossover
from fastssl.ops._crossover import Crossover, Point, crossover, table

MEASURED = Crossover(
    (
        Point({"rows": 16, "d": 128}, kernel=1.0, reference=2.0),
        Point({"rows": 16, "d": 2048}, kernel=3.0, reference=2.0),
        Point({"rows": 1024, "d": 2048}, kernel=3.0, reference=2.9),  # too near to call
    ),
    "measured here",
)


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    _crossover._reason.cache_clear()
    yield
    _crossover._reason.cache_clear()


def test_the_nearest_size_decides() -> None:
    said = "reference is faster at rows=16 d=2048: 2 ms against 3 ms, measured here"
    assert MEASURED.reason({"rows": 16, "d": 2048}) == said
    assert MEASURED.reason({"rows": 2, "d": 1000}) == said
    assert MEASURED.reason({"rows": 16, "d": 500}) is None
    assert MEASURED.reason({"rows": 600, "d": 2048}) is None
    assert MEASURED.reason({"rows": 0, "d": 2000}) == said  # an empty queue, say


def test_without_a_win_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> dict[str, int]:
        raise AssertionError

    monkeypatch.setattr(_crossover, "table", lambda _: {"op": Crossover(MEASURED.points[:1], "here")})
    assert crossover("op", never)(1) is None
    assert crossover("another op", never)(1) is None


def test_an_op_may_keep_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_crossover, "table", lambda _: {"op": MEASURED})
    slower = crossover("op", lambda rows: {"rows": rows, "d": 2048} if rows < 10 else None)
    assert slower(8) is not None
    assert slower(12) is None


def test_the_table_chooses_and_a_forced_backend_is_honoured() -> None:
    won = [point for point in table("cpu")["nt_xent"].points if point.reference_wins]
    if not won:
        pytest.skip("the kernel is faster at every measured size")
    z = torch.randn(won[0].sizes["rows"] // 2, won[0].sizes["d"])
    told = ops.explain(ops.nt_xent, z, z, temperature=0.5)
    assert told.startswith("nt_xent: reference (")
    assert "not cpu: reference is faster at rows=" in told
    assert "measured on" in told
    assert ops.explain(ops.nt_xent, z, z, temperature=0.5, backend="cpu").startswith("nt_xent: cpu")
    with ops.backend("cpu"):
        assert ops.explain(ops.nt_xent, z, z, temperature=0.5).startswith("nt_xent: cpu")


def test_the_reference_is_never_chosen_where_it_stores_more_than_the_features() -> None:
    z = torch.randn(600, 1100)  # 1200 rows: their similarities outnumber the features
    assert ops.explain(ops.nt_xent, z, z, temperature=0.5).startswith("nt_xent: cpu")


def test_both_directions_are_served_alike() -> None:
    for point in table("cpu")["nt_xent"].points:
        z = torch.empty(point.sizes["rows"] // 2, point.sizes["d"])
        lse = torch.empty(2, point.sizes["rows"])
        registered = ops._backend.ops()
        forward = registered["nt_xent"].choose((z, z, 0.5))
        assert registered["nt_xent_backward"].choose((torch.ones(()), z, z, lse, 0.5)) == forward
        assert forward == ("reference" if point.reference_wins else "cpu")


def test_a_gpus_choice_follows_its_own_entries_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [{"sizes": {"rows": 16}, "kernel": 3.0, "reference": 1.0}]
    written = tmp_path / "crossover.json"
    written.write_text(json.dumps({"cuda": {"op": {"processor": "a GPU", "date": "2000-01-01", "points": points}}}))
    monkeypatch.setattr(_crossover, "TABLE", written)
    monkeypatch.setattr(_crossover, "table", table.__wrapped__)
    said = "reference is faster at rows=16: 1 ms against 3 ms, measured on a GPU on 2000-01-01"
    rows = lambda n: {"rows": n}  # noqa: E731
    assert crossover("op", rows, "cuda")(16) == said
    assert crossover("op", rows)(16) is None
    assert crossover("another op", rows, "cuda")(16) is None


MEASURED_OPS = [name for name in ops._backend.ops() if name.removesuffix("_backward").rstrip("_") in table("cpu")]


@pytest.mark.parametrize("name", MEASURED_OPS)
def test_gpu_kernels_ask_the_gpus_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invented one, in which plain torch wins: a GPU's kernel is passed over where the C++ kernel could be."""
    entry = name.removesuffix("_backward").rstrip("_")
    sizes = table("cpu")[entry].points[0].sizes
    invented = {entry: Crossover((Point(sizes, kernel=2.0, reference=1.0),), "invented")}
    op = ops._backend.ops()[name]
    call = op.example(torch.device("cpu"))
    for device, backends in (("cpu", ("cpu",)), ("cuda", ("cuda", "triton"))):
        monkeypatch.setattr(_crossover, "table", lambda asked, there=device: invented if asked == there else {})
        _crossover._reason.cache_clear()
        passed = {kind for kind, implementation in op.implementations.items() if implementation.slower(*call)}
        if name in ("siglip_loss_backward", "queue_info_nce_backward"):
            assert not passed  # these only scale: always the kernel's
        else:
            assert passed == set(backends) & set(op.implementations)
