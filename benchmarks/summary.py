"""The results files as readers need them: machines, cases, each case's rows and verdict, the series it belongs to."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import AGAIN, OURS, WHOLE, is_ours

RESULTS = Path(__file__).parent / "results"
SCORES = RESULTS / "scores"  # what methods learn: no machine's
UNUSUAL = 0.25  # of a machine's usual speed: what differs by more was another machine, or one disturbed
PEAK = "peak_extra_megabytes"
ALIKE = "each median lies between the other's 20th and 80th percentile"  # what the pages say of ``against``
Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """All rows of one case; ``failed`` are those that have a reason in place of a time.

    ``speed`` is that of the machine meanwhile, where it was not its usual one (1).
    """

    rows: list[Row]
    speed: float = 1.0

    @property
    def ours(self) -> Row:
        return next(row for row in self.rows if row["provider"] == OURS)

    @property
    def eager(self) -> Row | None:
        """Plain torch, or the library whose loss it is, which stands next to ours in every case."""
        others = [row for row in self.rows if not is_ours(row["provider"]) and "failed" not in row]
        return others[0] if others else None

    @property
    def compiled(self) -> Row | None:
        """The fastest of those that torch.compile made."""
        found = [row for row in self.rows if row["provider"].startswith("torch.compile") and "failed" not in row]
        return min(found, key=lambda row: float(row["median"]), default=None)

    @property
    def plain(self) -> Row | None:
        """The fastest of plain torch's own forms, called as they are: nothing compiled, and no dispatch of ours."""
        timed = [row for row in self.rows if "failed" not in row and not row["provider"].endswith(AGAIN)]
        found = [row for row in timed if row["provider"].startswith("torch ") or row["provider"] == "reference"]
        return min(found, key=lambda row: float(row["median"]), default=None)

    @property
    def best(self) -> Row | None:
        name = self.ours["best_rival"]
        return next((row for row in self.rows if row["provider"] == name), None)

    @property
    def leanest(self) -> Row | None:
        """Of the rivals whose memory was measured, the one that needs least; the best one if it needs no more."""
        found = [row for row in self.rows if not is_ours(row["provider"]) and PEAK in row]
        return min(found, key=lambda row: (float(row[PEAK]), row is not self.best), default=None)

    @property
    def needs_more(self) -> bool:
        """Whether some rival needs less memory."""
        return self.leanest is not None and PEAK in self.ours and bool(self.ours[PEAK] > self.leanest[PEAK])

    @property
    def verdict(self) -> str:
        """Against the best rival."""
        return self.against(self.best)[1]

    def against(self, rival: Row | None) -> tuple[float, str]:
        """How many times faster than a rival (below 1 slower), and the verdict on it.

        ``alike`` where each median lies in the other's spread, else ``faster`` or ``slower``; ``alone`` without one.
        """
        if rival is None:
            return float("nan"), "alone"
        ratio = float(rival["median"] / self.ours["median"])
        spreads = (self.ours, rival), (rival, self.ours)
        if all(a["p20"] <= b["median"] <= a["p80"] for a, b in spreads):
            return ratio, "alike"
        return ratio, "faster" if ratio > 1 else "slower"

    @property
    def title(self) -> str:
        return f"{self.ours['op']}, {self.ours['shape']}, {self.ours['dtype']}"


@dataclass(frozen=True)
class Report:
    """One file of results: the cases of an op, or of a library's losses, and the circumstances of the run."""

    op: str
    run: dict[str, Any]
    cases: list[Measured]

    @property
    def is_whole(self) -> bool:
        """Whether it is of a library's losses, and no op's."""
        return self.op in WHOLE


@dataclass(frozen=True)
class Machine:
    """The ops that were measured on one machine: a folder of results."""

    folder: str
    name: str
    reports: list[Report]


def name_of(run: dict[str, Any]) -> str:
    """A machine's name: a GPU's, or a processor's with the instruction set that the kernels used.

    Hosts that call themselves alike differ in it, and stand in no table together.
    """
    name: str = run.get("machine", run["processor"])
    used = re.match(r"(\w+) in use", run.get("C++ kernels", ""))
    processor, *others = name.split(", ")
    return name if used is None or used[1] in others else ", ".join([processor, used[1], *others])


def folder_of(name: str) -> str:
    """A machine's folder: ``intel-xeon-amx-2-threads`` of ``Intel(R) Xeon(R) Processor, amx, 2 threads``."""
    plain = re.sub(r"\((R|TM)\)|\b(Processor|CPU)\b", " ", name)
    return "-".join(re.findall(r"[a-z0-9]+", plain.lower()))


def machines(results: Path) -> list[Machine]:
    """Every machine that has results, the one measured last first."""
    found = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir() and path != SCORES):
        if measured := list(reports(folder)):
            found.append(Machine(folder.name, name_of(measured[0].run), at_their_speeds(measured)))
    return sorted(found, key=lambda machine: max(report.run["date"] for report in machine.reports), reverse=True)


def at_their_speeds(measured: list[Report]) -> list[Report]:
    """The reports of a folder, with the machine's speed in the cases of those whose floors are not its usual ones."""
    rates = {report.op: rate for report in measured if (rate := multiply_adds(report.run))}
    usual = statistics.median(rates.values()) if rates else 0.0
    found = []
    for report in measured:
        speed = rates.get(report.op, usual) / usual if usual else 1.0
        if abs(speed - 1) > UNUSUAL:
            report = replace(report, cases=[replace(case, speed=speed) for case in report.cases])
        found.append(report)
    return found


def multiply_adds(run: dict[str, Any]) -> float | None:
    """GFLOP/s of a machine's multiply-adds as measured in a run; None where there was no compiler."""
    floors = run.get("floors")
    return floors["fma_gflops"] if isinstance(floors, dict) else None


def reports(folder: Path) -> Iterator[Report]:
    """Every op that has results in a machine's folder."""
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text())
        yield Report(path.stem, report["run"], grouped([_held(row, report["run"]) for row in report["rows"]]))


def _held(row: Row, run: dict[str, Any]) -> Row:
    """The row without its floor where that was not measured: a CPU's of bfloat16 beside float32's rate alone."""
    floors = run.get("floors")
    if row["dtype"] != "bfloat16" or not isinstance(floors, dict) or "bandwidths" not in floors:
        return row
    known = "bfloat16_gflops" in floors or "tf32_gflops" in floors  # of a CPU or of a GPU
    unknown = () if known else ("floor", "percent_of_floor", "percent_of_peak")
    return {key: value for key, value in row.items() if key not in unknown}


def grouped(rows: list[Row]) -> list[Measured]:
    """The rows by case, in their order."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["shape"], row["dtype"]), []).append(row)
    return [Measured(rows) for rows in found.values()]


@dataclass(frozen=True)
class Series:
    """Cases that differ in one number of their shape alone, by that number."""

    op: str
    variable: str
    fixed: str
    cases: dict[float, Measured]


def series(report: Report) -> list[Series]:
    """What of an op's cases can be drawn over one variable: three points at least."""
    found: dict[tuple[str, str], dict[float, Measured]] = {}
    for case in report.cases:
        words = case.ours["shape"].split()
        for i, word in enumerate(words):
            if number := re.fullmatch(r"(\w+)=([\d.]+)", word):
                others = ", ".join([*words[:i], *words[i + 1 :], case.ours["dtype"]])
                found.setdefault((number[1], others), {})[float(number[2])] = case
    return [
        Series(report.op, variable, fixed, dict(sorted(cases.items())))
        for (variable, fixed), cases in found.items()
        if len(cases) >= 3
    ]
