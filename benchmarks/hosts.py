"""What one machine's page may hold: results of one instruction set, at the machine's usual speed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks import summary
from benchmarks.summary import Machine, Report
from fastssl.errors import UserError

SLOWER = "the machine was slower"  # a run's ``remark``, by hand: its rows are published, and say so


def demand_alike(machines: Iterable[Machine]) -> None:
    """
    Raises:
        UserError: naming the files of a folder that were measured on another host than the rest, or at another speed.
    """
    wrong = [told for machine in machines for told in (*strangers(machine), *disturbed(machine))]
    if wrong:
        raise UserError(f"results that cannot stand on one machine's page: {'; '.join(wrong)}")


def strangers(machine: Machine) -> list[str]:
    """Files whose run has another machine's name than that of their folder."""
    names = [(path(machine, report), summary.name_of(report.run)) for report in machine.reports]
    return [
        f"{file} is of {name}: it belongs into {summary.folder_of(name)}"
        for file, name in names
        if summary.folder_of(name) != machine.folder
    ]


def disturbed(machine: Machine) -> list[str]:
    """Files measured at another speed than the folder's usual one, without a remark that this is known."""
    return [
        f"{path(machine, report)} was measured at {100 * speed:.0f} % of the machine's usual multiply-adds: measure it "
        f'anew, or publish it marked, with "remark": "{SLOWER}" in its "run"'
        for report in machine.reports
        if (speed := speed_of(report.cases)) != 1 and not (speed < 1 and report.run.get("remark") == SLOWER)
    ]


def speed_of(cases: Sequence[summary.Measured]) -> float:
    return cases[0].speed if cases else 1.0


def path(machine: Machine, report: Report) -> str:
    return f"benchmarks/results/{machine.folder}/{report.op}.json"
