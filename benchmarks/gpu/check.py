"""Runs the stages within the minutes given, keeps each part's result as it comes, and writes ledger and pages."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import harness, summary, where
from benchmarks.gpu import ledger, pages, pretend
from benchmarks.gpu.stages import STAGES, Result, Stage, environment, files_of, module_is_there
from fastssl.errors import UserError
from fastssl.files import atomic_write

LEDGER, BENCHMARKS = "gpu_ledger.json", "benchmarks.json"
Say = Callable[[str], None]


def write(path: Path, content: Any) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


@dataclass
class Record:
    """A stage's file in the folder of results: the circumstances, and the parts that are done."""

    stage: Stage
    path: Path
    subject: dict[str, Any]  # what the results are of besides their sources
    parts: dict[str, Result] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def opened(out: Path, stage: Stage, dry: bool) -> Record:
        """With the parts of an earlier run in the same environment whose sources are the same now: of what is in
        ``out``, or else of what the repository has adopted."""
        path = out / f"{stage.name}.json"
        subject = {"dry_run": dry, "max-autotune": where.searching(), **environment()}
        earlier = next(
            (file for file in (path, ledger.ROOT / results_of(subject["device"]) / path.name) if file.exists()), None
        )
        found = json.loads(earlier.read_text()) if earlier else {}
        if found.get("subject") != subject:
            return Record(stage, path, subject)
        parts = {name: result for name, result in found["parts"].items() if same_sources(stage, name, result)}
        return Record(stage, path, subject, parts, found.get("run", {}))

    def keep(self, part: str, result: Result) -> None:
        self.run = result.pop("run", self.run)
        self.parts[part] = {**result, "sources": sources(self.stage, part)}
        write(self.path, {"subject": self.subject, "run": self.run, "parts": self.parts})


def results_of(device: str) -> Path:
    """Where, in the repository, what checks on a device found is kept."""
    return Path("benchmarks", "results", summary.folder_of(device), "check")


def sources(stage: Stage, part: str) -> str:
    """The hash of all files that a part's result is of."""
    digest = hashlib.sha256()
    for path in files_of(sorted(stage.sources(part))):
        digest.update(f"{path} {ledger.sha256(path)}\n".encode())
    return digest.hexdigest()


def same_sources(stage: Stage, part: str, result: Result) -> bool:
    return bool(result["sources"] == sources(stage, part))


def told(part: str, result: Result) -> str:
    """One line of a part's result."""
    if "failed" in result:
        why = [*result.get("failures", []), *str(result["failed"]).strip().splitlines()[-3:]]
        return f"{part} FAILED: " + "\n    ".join(why)
    if "rows" in result:
        ours = result["rows"][0]
        best = ours["times_faster_than"].get(ours["best_rival"])
        against = f", {best:.2f} times as fast as {ours['best_rival']}" if best else ""
        return f"{part}: {1e3 * ours['median']:.1f} us by {ours['backend']}{against}"
    found = ", ".join(f"{key} {value}" for key, value in result.items() if value and key != "sources")
    return f"{part}: {found or 'nothing that runs here'}"


def perform(stage: Stage, out: Path, seconds: float, dry: bool, say: Say) -> bool:
    """Does what is left of a stage; whether all its parts are done and none failed."""
    record = Record.opened(out, stage, dry)
    if not dry and stage.undone():
        record.parts.clear()
    wanted = stage.parts(dry)
    todo = [part for part in wanted if part not in record.parts]
    if len(todo) < len(wanted):
        say(f"{stage.name}: {len(wanted) - len(todo)} of {len(wanted)} parts were done before")

    def tell(part: str, result: Result) -> None:
        record.keep(part, result)
        say(f"{stage.name} {sum(name in record.parts for name in wanted)}/{len(wanted)}: {told(part, result)}")

    if todo:
        say(f"{stage.name}: {len(todo)} parts in at most {seconds:.0f} s")
        stage.run(todo, seconds, tell, dry)
    if left := [part for part in wanted if part not in record.parts]:
        say(f"{stage.name}: no time was left for {', '.join(left)}; the next run begins with them")
    return not left and not any("failed" in record.parts[part] for part in wanted)


def run(out: Path, minutes: float, only: str | None, dry: bool, say: Say) -> bool:
    """The stages in their order and the ledger; whether all of it is right."""
    end, fine = time.monotonic() + 60 * minutes, True
    stages = [stage for stage in STAGES if only in (None, stage.name)]
    for i, stage in enumerate(stages):
        left = max(0.0, end - time.monotonic())
        seconds = left * stage.share / sum(later.share for later in stages[i:])
        if stage.name != "build" and not dry and not module_is_there():
            say(f"{stage.name}: not begun, for fastssl._cuda is not built: the next run goes on with the build")
            fine = False  # what would fail now would be kept, and not be done again
            continue
        fine = perform(stage, out, seconds, dry, say) and fine
    if only in (None, "ledger"):
        write_ledger(out, dry, say)
    return fine


def kept(out: Path, stage: str, dry: bool) -> Record:
    """What an earlier run or this one left of a stage, if its sources are still the same."""
    (found,) = (each for each in STAGES if each.name == stage)
    return Record.opened(out, found, dry)


def write_ledger(out: Path, dry: bool, say: Say) -> None:
    """The repository's ledger with what this check found, and the pages; of a dry run a ledger that proves nothing."""
    tests, memcheck, measured = (kept(out, stage, dry) for stage in ("tests", "memcheck", "benchmarks"))
    device = pretend.NAME if dry else tests.subject["device"]
    if device == "none":
        say("ledger: nothing is written of a run without a GPU")
        return
    after = with_found({} if dry else ledger.read(), {**tests.subject, "device": device}, tests.parts, memcheck.parts)
    proven = ledger.proven(after)
    assert not (dry and proven), "a dry run proves no kernel"
    write(out / LEDGER, after)
    say(f"ledger: {len(proven)} of {len(ledger.kernels())} kernels are proven on {device}")
    for path in ledger.unproven(after):
        say(f"ledger: unproven {path}: {after[path]['unproven']}")
    say(f"pages: {pages.write(out, {'run': measured.run, 'parts': measured.parts}, after, dry)}")


def with_found(
    before: ledger.Ledger, subject: dict[str, Any], tests: dict[str, Result], memcheck: dict[str, Result]
) -> ledger.Ledger:
    """A ledger with what tests and memcheck found on the subject's device."""
    versions = {name: str(subject[name]) for name in ("device", "torch", "triton", "nvcc")}
    return ledger.updated(before, tests, memcheck, {**versions, "results": str(results_of(subject["device"]))})


def adopt(out: Path, into: Path = ledger.ROOT) -> list[Path]:
    """Copies a check's results from ``out`` into the repository, its ledger too; the paths that were written.

    Only what was found of these very sources goes into the ledger. Rows are of this commit if they are of its sources:
    the check may have run without the repository's history.

    Raises:
        UserError: if there are none, or they are of a dry run.
    """
    records = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json")) if path.name != LEDGER}
    if not records:
        raise UserError(f"no results of a check in {out}: give the folder that --out had")
    devices = {record["subject"]["device"] for record in records.values()}
    if any(record["subject"]["dry_run"] for record in records.values()) or devices == {"none"}:
        raise UserError(f"the results in {out} are of a dry run: only those of a GPU are kept")
    if len(devices) > 1:
        raise UserError(f"the results in {out} are of several devices: {', '.join(sorted(devices))}")
    folder = into / results_of(devices.pop())
    contents = {folder / f"{stage}.json": record for stage, record in records.items()}
    parts = {stage.name: of_these_sources(stage, records.get(stage.name, {})) for stage in STAGES}
    if measured := records.get("benchmarks"):
        if parts["benchmarks"] == measured["parts"]:
            measured["run"]["commit"] = harness.commit()
        contents |= {folder.parent / f"{op}.json": report for op, report in pages.reports(measured)}
    if "tests" in records:
        path = into / "benchmarks" / LEDGER
        before = ledger.read(path)
        contents[path] = with_found(before, records["tests"]["subject"], parts["tests"], parts["memcheck"])
    for path, content in contents.items():
        write(path, content)
    return list(contents)


def of_these_sources(stage: Stage, record: dict[str, Any]) -> dict[str, Result]:
    """A record's parts whose sources are as they are here; and the tests of no single op, which were run with them."""
    parts = record.get("parts", {}).items()
    return {part: result for part, result in parts if part == ledger.OTHERS or same_sources(stage, part, result)}


def retested(found: ledger.Ledger) -> set[str]:
    """The ops of proven kernels whose tests, as they are now, no check has run: they have changed since."""
    (stage,), ops = (each for each in STAGES if each.name == "tests"), set()
    for op, backend in ledger.kernels():
        entry = found.get(ledger.FILES[backend].format(op), {})
        if "sha256" not in entry:
            continue
        record = json.loads((ledger.ROOT / entry["results"] / f"{stage.name}.json").read_text())
        if not same_sources(stage, op, record["parts"][op]):
            ops.add(op)
    return ops


def date_and_device(dry: bool) -> str:
    return f"{datetime.date.today().isoformat()}, {pretend.NAME if dry else environment()['device']}"
