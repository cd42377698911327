"""Of which commit results are, and what of the code that they measure has changed since."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import ledger
from benchmarks.harness import DATA, MODELS, OPS
from benchmarks.summary import Report
from fastssl import _build

GPU = ("cuda", "triton")
# What is no op calls these ops, and the code of these folders.
CALLED = {
    **dict.fromkeys(DATA, (("augment",), ("fastssl/data/",))),
    **dict.fromkeys(MODELS, (("random_masking", "take_patches"), ("fastssl/models/",))),
}
ALL_LOSSES = ("csrc/cpu/", "fastssl/ops/", "fastssl/losses/", "fastssl/compat/")
TOLD = 3  # changed files by name, and how many more


@functools.cache
def differing(commit: str) -> frozenset[str] | None:
    """The sources that do other than at a commit; None where git does not know it, or is missing itself."""
    if shutil.which("git") is None or not commit:
        return None
    there = commit.removesuffix("-dirty")
    names = _git("diff", "--name-only", there, "--", "csrc", "fastssl")
    return None if names is None else frozenset(name for name in names.split() if not _does_the_same(name, there))


def _git(*command: str) -> str | None:
    """What it prints; None where it fails."""
    done = subprocess.run(["git", "-C", str(ledger.ROOT), *command], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


@functools.cache
def _does_the_same(name: str, commit: str) -> bool:
    """Whether a source differs from that of a commit by comments and docstrings alone."""
    now = ledger.ROOT / name
    if not now.is_file() or not name.endswith((".py", *_build.KINDS)):
        return False
    then = _git("show", f"{commit}:{name}")
    return then is not None and _build.code(name, then) == _build.code(name, now.read_text())


@functools.cache
def of_op(op: str, backend: str) -> frozenset[str]:
    """The files of one kernel of an op: its own and the op's, with what they include and import."""
    own = ledger.FILES[backend] if backend in GPU else "csrc/cpu/{}.cpp"
    paths = own.format(op), f"fastssl/ops/{op}.py"
    return frozenset(name for path in paths for name in (path, *ledger.reached(path)))


def changed(name: str, commit: str, backends: Sequence[str] = ("cpu",)) -> list[str] | None:
    """The files of what ``name`` measures that are not as they were at a commit; None where that cannot be told."""
    different = differing(commit)
    if different is None:
        return None
    ops, folders = ((name,), ()) if name in OPS else CALLED.get(name, ((), ALL_LOSSES))
    files = frozenset().union(*(of_op(op, backend) for op in ops for backend in backends))
    found = (path for path in different if path in files or path.startswith(folders))
    return sorted(found, key=lambda path: (Path(path).stem != name, path))  # its own first


def changed_since(report: Report) -> list[str] | None:
    served = {case.ours.get("backend") for case in report.cases}
    return changed(report.op, report.run.get("commit", ""), [name for name in GPU if name in served] or ["cpu"])


def told(files: Sequence[str] | None) -> str:
    """What has changed since, for a reader: nothing if nothing has."""
    if files is None:
        return "what has changed since is not known: this checkout does not have the commit"
    more = f" and {len(files) - TOLD} more" if len(files) > TOLD else ""
    return f"older than the code it measures: changed since are {', '.join(files[:TOLD])}{more}" if files else ""


def commits(reports: Sequence[Report]) -> str:
    """Below a table: which of its ops are of which commit, and which are older than their code."""
    of: dict[str, list[str]] = {}
    for report in reports:
        of.setdefault(f"{report.run.get('commit') or 'unknown'} ({report.run.get('date')})", []).append(report.op)
    by_commit = "; ".join(f"{commit}: {', '.join(ops)}" for commit, ops in of.items())
    lines = [f"- Measured at commit {by_commit}.\n"]
    older = [report.op for report in reports if changed_since(report)]
    unknown = [report.op for report in reports if changed_since(report) is None]
    if older:
        which = "all of these" if len(older) == len(reports) else ", ".join(older)
        lines.append(f"- Older than the code they measure, which has changed since: {which}.\n")
    if unknown:
        lines.append(f"- Of a commit that this checkout does not have: {', '.join(unknown)}.\n")
    return "".join(lines)
