"""Which GPU kernels were run on a GPU as they are now: benchmarks/gpu_ledger.json, and what is told of it.

The check alone writes the ledger, on the machine with the GPU, an entry a file of csrc/cuda and fastssl/ops/triton. A
kernel is proven while its file and all that it includes or imports have the hashes of their entries.
"""

from __future__ import annotations

import ast
import datetime
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from fastssl import info

ROOT = Path(__file__).parent.parent.parent
LEDGER = ROOT / "benchmarks" / "gpu_ledger.json"
FILES = {"cuda": "csrc/cuda/{}.cu", "triton": "fastssl/ops/triton/{}.py"}
Ledger = dict[str, dict[str, Any]]


def sha256(path: str) -> str:
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


def included(path: str) -> set[str]:
    """The files beside a kernel's that it includes or imports, and theirs."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        folder, text = (ROOT / waiting[-1]).parent, (ROOT / waiting.pop()).read_text()
        names = re.findall(r'#include "([^"]+)"', text) if path.startswith("csrc") else imported(text)
        beside = {str((folder / name).resolve().relative_to(ROOT.resolve())) for name in names}
        fresh = {name for name in beside if (ROOT / name).is_file()} - found - {path}
        found |= fresh
        waiting += fresh
    return found


def imported(text: str) -> set[str]:
    """The files of fastssl/ops/triton that a Python source imports from."""
    package, names = "fastssl.ops.triton", set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package):
            inside = str(node.module).removeprefix(package).strip(".")
            names |= {inside} if inside else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.removeprefix(f"{package}.") for a in node.names if a.name.startswith(f"{package}.")}
    return {f"{name}.py" for name in names}


def kernels() -> list[tuple[str, str]]:
    """(op, backend) of every kernel for GPUs."""
    return [(op, backend) for op, backends in info.gpu_kernels().items() for backend in sorted(backends)]


def proven(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Of each kernel that is proven, by op and backend: the GPU, the date, and the hashes of its sources."""
    found = {}
    for op, backend in kernels():
        path = FILES[backend].format(op)
        entry = ledger.get(path)
        if entry is None or not (ROOT / path).is_file():
            continue
        sources = {name: sha256(name) for name in (path, *sorted(included(path)))}
        if sources == {path: entry["sha256"], **entry.get("uses", {})}:
            found[f"{op} {backend}"] = {"device": entry["device"], "date": entry["date"], "sources": sources}
    return found


def unproven(ledger: Ledger) -> list[str]:
    """The files of all kernels that are not proven."""
    there = proven(ledger)
    return [FILES[backend].format(op) for op, backend in kernels() if f"{op} {backend}" not in there]


def read(path: Path = LEDGER) -> Ledger:
    found: Ledger = json.loads(path.read_text()) if path.exists() else {}
    return found


def verdict(op: str, backend: str, tests: dict[str, Any], memcheck: dict[str, Any]) -> str | int | None:
    """How many tests of a kernel passed, why it is not proven, or None if nothing was run."""
    if op not in tests:
        return None
    if tests[op].get("failures"):
        return f"{len(tests[op]['failures'])} tests failed"
    if "failed" in tests[op]:
        return str(tests[op]["failed"])
    if "failed" in memcheck.get(op, {}):
        return "memcheck failed"
    passed = int(tests[op].get("passed", {}).get(backend, 0))
    return passed if passed else "none of its tests ran"


def checked(op: str, memcheck: dict[str, Any]) -> str:
    """What compute-sanitizer said of an op's kernels that did not fail."""
    if op not in memcheck:
        return "not reached"
    return f"skipped: {memcheck[op]['skipped']}" if "skipped" in memcheck[op] else "passed"


def updated(ledger: Ledger, tests: dict[str, Any], memcheck: dict[str, Any], device: str, results: str) -> Ledger:
    """The ledger after a check on ``device``: entries of what passed, none of what failed; others stay as they were."""
    found, shared = dict(ledger), {}
    common = {"device": device, "date": datetime.date.today().isoformat(), "results": results}
    for op, backend in kernels():
        path = FILES[backend].format(op)
        passed = verdict(op, backend, tests, memcheck)
        if isinstance(passed, str):
            found.pop(path, None)
        if not isinstance(passed, int) or not (ROOT / path).is_file():
            continue
        uses = {name: sha256(name) for name in sorted(included(path))}
        entry = {"sha256": sha256(path), **common, "tests": f"passed {passed}", "memcheck": checked(op, memcheck)}
        found[path] = {**entry, "uses": uses}
        for name in uses:
            shared[name] = shared.get(name, 0) + passed
    for name, passed in shared.items():
        found[name] = {"sha256": sha256(name), **common, "tests": f"passed {passed}"}
    return {path: found[path] for path in sorted(found) if (ROOT / path).is_file()}
