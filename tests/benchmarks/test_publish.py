"""What is published of results: every verdict, losing rows by name, failures, and the picture of a series."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import age, crossover_page, harness, kernels_page, publish, summary, tables
from benchmarks.elsewhere import Elsewhere
from benchmarks.scores import side_by_side
from benchmarks.summary import Machine, Measured, Report


def row(provider: str, median: float, spread: float = 0.1, **more: Any) -> dict[str, Any]:
    common = {"op": "an_op", "shape": "n=1 d=2", "dtype": "float32", "provider": provider, "median": median}
    spread_of = {"p20": median - spread, "p80": median + spread, "samples": 20, "error_against_float64": None}
    return {**common, **spread_of, "times_faster_than": {"eager": 1.0, "other": 1.0}, "best_rival": "other", **more}


def case(ours: float, other: float, spread: float = 0.1, **more: Any) -> Measured:
    return Measured([row("fastssl", ours, spread, **more), row("eager", 9.0, **more), row("other", other, **more)])


@pytest.mark.parametrize(
    ("ours", "other", "spread", "verdict"),
    [
        (1.0, 2.0, 0.1, "faster"),
        (2.0, 1.0, 0.1, "slower"),
        (1.0, 1.05, 0.1, "alike"),
        # within the spread of one of them alone
        (1.05, 1.0, 0.01, "slower"),
        (1.0, 1.05, 0.01, "faster"),
        (2.0, 1.0, 1.5, "slower"),
        (1.0, 2.0, 1.5, "faster"),
    ],
)
def test_verdicts(ours: float, other: float, spread: float, verdict: str) -> None:
    assert case(ours, other, spread).verdict == verdict


def test_the_pages_say_what_alike_means() -> None:
    """In one sentence, which ``Measured.against`` computes."""
    beside_lightly = side_by_side.READ.format(command="", alike=summary.ALIKE)
    for text in (publish.READ_SUMMARY, publish.READ_WHOLE, beside_lightly):
        assert f"*alike* where {summary.ALIKE}." in text.replace("\n", " ")
        assert text.count("*alike*") == 1


def test_a_case_that_loses_is_in_bold_and_named() -> None:
    losing = case(2.0, 1.0, percent_of_floor=41.3, peak_extra_megabytes=3.0)
    cells = tables.summary_cells(losing)
    assert cells == ["`an_op`, n=1 d=2, float32", "other", "2.00", "1.00", "**0.50**", "41 %", "3.0 / 3.0", ""]
    told = tables.lost([losing, case(1.0, 2.0)])
    assert "- Slower than the best rival: an_op, n=1 d=2, float32 (other).\n" in told
    assert "- No different from the best rival: none of these.\n" in told
    assert "- More memory than the rival that needs least: none of these.\n" in told


def test_a_provider_past_the_floor_is_named() -> None:
    found = case(1.0, 2.0, percent_of_floor=80.0)
    assert "Past the floor" not in tables.lost([found])
    found.rows[1]["percent_of_floor"] = 104.3
    assert "- Past the floor, within its noise: an_op, n=1 d=2, float32 (eager at 104 %).\n" in tables.lost([found])


def test_no_committed_time_is_past_its_floor_by_more_than_noise() -> None:
    """A count of operations or bytes that is too high would show here."""
    reports = [report for machine in summary.machines(summary.RESULTS) for report in machine.reports]
    percents = [row.get("percent_of_floor", 0) for report in reports for each in report.cases for row in each.rows]
    assert 90 < max(percents) < 110


def remembered(ours: float, best: float | None, other: float) -> Measured:
    """A case whose best rival is not the one that needs least memory, unless it is."""
    rows = [row("fastssl", 1.0, peak_extra_megabytes=ours), row("other", 2.0), row("eager", 9.0)]
    rows.append(row("eager again", 9.0))
    rows[1] |= {} if best is None else {"peak_extra_megabytes": best}
    rows[2]["peak_extra_megabytes"] = other
    return Measured([*rows, {"provider": "gone", "failed": "not installed"}])


@pytest.mark.parametrize(
    ("megabytes", "cells"),
    [
        ((6.8, 192.0, 0.2), ["**6.8** / 192", "0.2 (eager)"]),
        ((6.8, 0.2, 192.0), ["**6.8** / 0.2", ""]),
        ((6.8, 100.0, 192.0), ["6.8 / 100", ""]),
        ((6.8, 7.0, 6.8), ["6.8 / 7.0", "6.8 (eager)"]),
        ((6.8, 7.0, 7.0), ["6.8 / 7.0", ""]),
        ((6.8, None, 0.2), ["**6.8** / -", "0.2 (eager)"]),
    ],
)
def test_memory_stands_beside_the_best_rivals_and_the_least(megabytes: Any, cells: list[str]) -> None:
    found = remembered(*megabytes)
    assert tables.summary_cells(found)[-2:] == cells
    told = "an_op, n=1 d=2, float32 (6.8 MB against 0.2, " if cells[0].startswith("**") else "none of these."
    assert f"More memory than the rival that needs least: {told}" in tables.lost([found])


def test_memory_that_was_not_measured_is_no_loss() -> None:
    found = remembered(6.8, 0.2, 0.2)
    del found.ours["peak_extra_megabytes"]
    assert tables.summary_cells(found)[-2:] == ["", ""]
    assert not found.needs_more


def test_a_backend_that_is_not_our_kernel_is_said() -> None:
    assert "(reference)" in tables.summary_cells(case(1.0, 2.0, backend="reference"))[0]


def whole(theirs: float, compiled: dict[str, Any]) -> Machine:
    """A machine that has measured one loss of lightly's, and an op."""
    common = {"op": "lightly", "shape": "NTXentLoss N=8"}
    rows = [row("fastssl", 1.0, peak_extra_megabytes=6.0, **common)]
    rows.append(row("lightly NTXentLoss", theirs, peak_extra_megabytes=213.4, **common))
    rows.append({**row("torch.compile, lightly NTXentLoss", 0.5, **common), **compiled})
    reports = [Report("lightly", {}, [Measured(rows)]), Report("an_op", {}, [case(1.0, 2.0)])]
    return Machine("a-machine", "A Machine, 2 threads", reports)


def test_whole_losses_have_a_section_of_their_own() -> None:
    machine = whole(theirs=3.0, compiled={})
    page = publish.performance([machine], {})
    ops, losses = page.split("## Whole losses, as their users call them")
    assert "`an_op`, n=1 d=2" in ops
    assert "NTXentLoss" not in ops
    assert "### [A Machine, 2 threads](performance/a-machine.md)" in losses
    cells = tables.whole_cells(machine.reports[0].cases[0])
    assert cells == [
        "`lightly`, NTXentLoss N=8, float32",
        "1.00",
        "3.00",
        "3.00",
        "0.50",
        "**0.50**",
        "6.0",
        "213",
        "-",
    ]
    assert f"| {' | '.join(cells)} |" in losses
    assert "an_op" not in losses.partition("## Which backend")[0]
    assert publish.NOT_MEASURED in publish.performance([], {})


def test_a_whole_loss_that_needs_more_memory_than_its_compiled_form_says_so() -> None:
    (found, *_) = whole(theirs=3.0, compiled={"peak_extra_megabytes": 0.1}).reports[0].cases
    assert tables.whole_cells(found)[-3:] == ["**6.0**", "213", "0.1"]
    assert "NTXentLoss N=8, float32 (6.0 MB against 0.1, torch.compile, lightly NTXentLoss)" in tables.lost([found])


def test_a_whole_loss_that_cannot_be_compiled_has_no_time_of_it() -> None:
    failed = whole(theirs=1.05, compiled={"failed": "Unsupported"})
    cells = tables.whole_cells(failed.reports[0].cases[0])
    assert cells[1:6] == ["1.00", "1.05", "1.05 (alike)", "-", "-"]


def test_the_page_on_migrating_has_before_and_after() -> None:
    machines = [whole(theirs=3.0, compiled={})]
    head, _, told = publish.gains(machines).splitlines()
    assert head.startswith("| forward and backward | measured on | ms before | ms after | times faster |")
    assert told == "| `lightly`, NTXentLoss N=8, float32 | A Machine, 2 threads | 3.00 | 1.00 | 3.00 | 213 | 6.0 |"
    page = publish.MIGRATING.read_text()
    assert told in publish.with_gains(page, machines)
    assert publish.with_gains(page, summary.machines(summary.RESULTS)) == page, "run python -m benchmarks.publish"


def test_the_page_has_failures_and_a_picture(tmp_path: Path) -> None:
    failed = {"op": "an_op", "shape": "n=4 d=2", "dtype": "float32", "provider": "gone", "failed": "not installed"}
    cases = [case(1.0 * n, 2.0 * n, shape=f"n={n} d=2", peak_extra_megabytes=float(n)) for n in (1, 2, 4)]
    cases[2].rows.append(failed)
    report = Report("an_op", {"rivals": {"timm": "not installed"}, "commit": "abc"}, cases)
    machine = Machine("a-machine", "A Machine, 2 threads", [report])
    page = publish.machine_page(machine, tmp_path)
    assert "gone: failed, not installed" in page
    assert "rivals: timm not installed" in page
    assert "(a-machine/an_op-d-2-float32.svg)" in page
    first = (tmp_path / "a-machine" / "an_op-d-2-float32.svg").read_text()
    assert "<svg" in first
    publish.machine_page(machine, tmp_path)
    assert (tmp_path / "a-machine" / "an_op-d-2-float32.svg").read_text() == first


def test_the_first_page_begins_with_a_picture(tmp_path: Path) -> None:
    def over_rows(best: float) -> Machine:
        cases = [case(1.0 * n, best * n, op="nt_xent", shape=f"rows={n} d=2") for n in (1000, 2000, 4000)]
        return Machine("a-machine", "A Machine, 2 threads", [Report("nt_xent", {}, cases)])

    page = publish.performance([over_rows(2.0)], {})
    before, _, rest = page.partition("![Time and memory of nt_xent over rows](performance/a-machine/")
    assert "|" not in before
    assert "on A Machine, 2 threads." in rest
    assert "the best rival is faster" not in rest
    publish.machine_page(over_rows(2.0), tmp_path)
    assert (tmp_path / "a-machine" / rest.partition(")")[0]).exists()
    assert "At 1,000 and 2,000 and 4,000 rows the best rival is faster." in publish.performance([over_rows(0.5)], {})
    assert "![" not in publish.performance([whole(3.0, {})], {})


def test_a_series_needs_three_cases_that_differ_in_one_number() -> None:
    cases = [case(1.0, 2.0, shape=shape) for shape in ("n=1 d=2", "n=2 d=2", "n=4 d=2", "n=1 d=3")]
    (found,) = summary.series(Report("an_op", {}, cases))
    assert (found.variable, found.fixed, list(found.cases)) == ("n", "d=2, float32", [1.0, 2.0, 4.0])


def test_the_choice_is_told_by_what_was_measured_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [{"sizes": {"rows": rows, "d": 8}, "kernel": ms, "reference": 2.0} for rows, ms in ((2, 3.0), (4, 1.0))]
    entry = {"processor": "A Machine", "date": "2026-11-26", "commit": "abc"}
    cpu = {"an_op": {**entry, "points": points}, "other": {**entry, "points": points[1:]}}
    monkeypatch.setattr(age, "differing", lambda commit: frozenset({"csrc/cpu/tile.h"}))
    text = crossover_page.section({"cpu": cpu}, [])
    said = "`an_op`: 2 sizes measured on A Machine on 2026-11-26, commit abc; at these the choice is `reference`."
    assert f"{said} This is older than the code it measures: changed since are csrc/cpu/tile.h.\n" in text
    assert (
        "| rows | d | C++ kernel, ms | `reference`, ms |\n| ---: | ---: | ---: | ---: |\n| 2 | 8 | 3.00 | 2.00 |"
        in text
    )
    assert "commit abc; the choice is the C++ kernel at all of them. This is older" in text
    assert "For a GPU this table was not measured yet" in text


def test_rows_where_plain_torch_itself_is_faster_stand_beside_the_choice() -> None:
    def formed(name: str, ours: float, median: float) -> Measured:
        return Measured([row("fastssl", ours, shape=f"of {name}"), row(name, median)])

    names = (
        "torch eager",
        "reference",
        "torch.compile",
        "lightly NTXentLoss",
        "torchvision tensors",
        "torch eager again",
    )
    cases = [formed(name, 2.0, 1.0) for name in names]
    cases += [formed("torch slower", 1.0, 2.0), formed("torch alike", 1.0, 1.05)]
    reports = [Report("an_op", {}, cases), Report("lightly", {}, [formed("torch whole", 2.0, 1.0)])]
    _, _, *rows = crossover_page.plain_wins([Machine("a-machine", "A Machine", reports)]).splitlines()
    assert rows == [
        f"| `an_op`, of {name}, float32 | A Machine | {name} | 2.00 | 1.00 |" for name in ("torch eager", "reference")
    ]


def test_the_committed_results_can_be_published(tmp_path: Path) -> None:
    machines = summary.machines(summary.RESULTS)
    page = publish.performance(machines, {})
    assert any("nt_xent" in {report.op for report in machine.reports} for machine in machines)
    for machine in machines:
        assert f"[{machine.name}](performance/{machine.folder}.md)" in page
        assert publish.machine_page(machine, tmp_path).count("\n") > 50
    (shown,) = re.findall(r"!\[.*\]\(performance/(.*)\)", page)
    assert (tmp_path / shown).exists()
    assert (publish.DOCS / "performance" / shown).exists(), "run python -m benchmarks.publish"


def test_what_is_timed_in_processes_of_its_own_is_said(tmp_path: Path) -> None:
    (op,) = {
        case.op
        for case in harness.cases()
        if any(getattr(make, "func", None) is Elsewhere for make in case.providers.values())
    }
    assert f"(`{op}`: each in its own)" in publish.READ_SUMMARY.replace("\n", " ")
    assert "stands still while others have their turn" in publish.NOTES[op]
    machine = Machine("a-machine", "A Machine, 2 threads", [Report(op, {}, [case(1.0, 2.0)])])
    for page in (publish.performance([machine], {}), publish.machine_page(machine, tmp_path)):
        assert publish.NOTES[op] in page
        assert publish.NOTES["start"] not in page


def test_the_page_of_gpu_kernels_has_them_all() -> None:
    """Made anew by ``python -m benchmarks.kernels``, then ``python -m benchmarks.publish``."""
    measured = json.loads(publish.KERNELS.read_text())
    root = publish.DOCS.parent
    sources = {*root.glob("csrc/cuda/*.cu"), *root.glob("fastssl/ops/triton/[a-z]*.py")}
    told = {row["source"] for row in measured["rows"] if not row["source"].endswith("*.cuh")}
    assert told == {str(path.relative_to(root)) for path in sources}
    assert not any(row["local"] or (row["stack"] and row["source"].endswith(".cu")) for row in measured["rows"])
    assert (publish.DOCS / "gpu-kernels.md").read_text() == kernels_page.page(measured)
