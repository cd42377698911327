"""Which GPU kernels were run on a GPU as they are now: benchmarks/gpu_ledger.json, and what is told of it.

The ledger has an entry for each file of csrc/cuda and fastssl/ops/triton. The check alone, on the machine with the GPU,
writes what was run: an entry's hash, device, date, versions and tests. A kernel is proven while its file and all that
it takes to build and call it (``uses``) have the hashes of its entry: what it includes or imports, the bindings and
the compiler's options, the op's own file and what that imports. Of files that have no entry, comments and docstrings
are left out of the hash. An entry that is not proven says why, as ``unproven``.
"""

from __future__ import annotations

import ast
import datetime
import functools
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fastssl import _build, info

ROOT = Path(__file__).parent.parent.parent
LEDGER = ROOT / "benchmarks" / "gpu_ledger.json"
FILES = {"cuda": "csrc/cuda/{}.cu", "triton": "fastssl/ops/triton/{}.py"}
KINDS = ("csrc/cuda/*.*", "fastssl/ops/triton/*.py")
BINDINGS = ("CMakeLists.txt", "csrc/bindings/bind.h", "csrc/bindings/cuda.cpp")
OPS = "fastssl.ops"
OTHERS = "others"  # among a check's tests: those that are of no single op
Entry = dict[str, Any]
Ledger = dict[str, Entry]


def sha256(path: str) -> str:
    """Of a kernel's file; of what calls it without comments and docstrings, which unprove nothing."""
    return _build.code_hash(ROOT, path)


def kernels() -> list[tuple[str, str]]:
    """(op, backend) of every kernel for GPUs."""
    return [(op, backend) for op, backends in info.gpu_kernels().items() for backend in sorted(backends)]


def files() -> list[str]:
    """Those that have an entry: of kernels, and those beside them that kernels share."""
    return sorted(
        str(path.relative_to(ROOT)) for kind in KINDS for path in ROOT.glob(kind) if path.name != "__init__.py"
    )


# ---- what a kernel is made of ----


def uses(op: str, backend: str) -> list[str]:
    """The files that decide what a kernel does when its op is called, its own left out."""
    path, wrapper = FILES[backend].format(op), f"fastssl/ops/{op}.py"
    found = {wrapper, *reached(wrapper), *reached(path), *(BINDINGS if backend == "cuda" else ())}
    return sorted(name for name in found - {path} if (ROOT / name).is_file())


def reached(path: str) -> set[str]:
    """The files that a source includes, or imports from fastssl.ops, and theirs."""
    found: set[str] = set()
    waiting = [path] if (ROOT / path).is_file() else []
    while waiting:
        source = waiting.pop()
        text = (ROOT / source).read_text()
        names = imported(text) if source.endswith(".py") else included(source, text)
        fresh = {name for name in names if (ROOT / name).is_file()} - found - {path}
        found |= fresh
        waiting += fresh
    return found


def included(source: str, text: str) -> set[str]:
    folder = (ROOT / source).parent
    names = re.findall(r'#include "([^"]+)"', text)
    return {str((folder / name).resolve().relative_to(ROOT.resolve())) for name in names}


@functools.cache  # kernels share most of what they import
def imported(text: str) -> set[str]:
    """The files that a Python source may import from fastssl.ops: of each name also the module that it would be."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {f"{name.replace('.', '/')}.py" for name in names if name.startswith(f"{OPS}.")}


# ---- what the ledger says ----


def changed(path: str, entry: Entry, needed: list[str]) -> list[str]:
    """Which files of a kernel are not as they were when it was run."""
    then = {path: entry["sha256"], **entry.get("uses", {})}
    now = {name: sha256(name) for name in (path, *needed)}
    return sorted(name for name in {*then, *now} if then.get(name) != now.get(name))


def why_unproven(path: str, entry: Entry | None, needed: list[str]) -> str | None:
    """None for a file that is as it was when it was run."""
    if entry is None or "sha256" not in entry:
        return info.NOT_YET if entry is None else str(entry["unproven"])
    different = changed(path, entry, needed)
    return f"changed since: {', '.join(different)}" if different else None


def completed(ledger: Ledger) -> Ledger:
    """The ledger with an entry for each file there is, which says why it is unproven, or does not."""
    needed = {FILES[backend].format(op): uses(op, backend) for op, backend in kernels()}
    found: Ledger = {}
    for path in files():
        entry = ledger.get(path)
        why = why_unproven(path, entry, needed.get(path, []))
        facts = {key: value for key, value in (entry or {}).items() if key != "unproven"}
        found[path] = facts if why is None else {"unproven": why, **facts}
    return found


def recorded(ledger: Ledger, retested: Collection[str] = ()) -> dict[str, Entry]:
    """What ``fastssl info`` needs, by op and backend, of each kernel of which something was run: where, when, and the
    hashes of its sources; or why it is unproven all the same. ``retested`` are the ops whose tests are others now."""
    entries, found = completed(ledger), {}
    for op, backend in kernels():
        path = FILES[backend].format(op)
        entry = entries.get(path, {})
        if "device" not in entry:
            continue
        told = {"device": entry["device"], "date": entry["date"]}
        if "unproven" in entry:
            told["unproven"] = info.CHANGED if "sha256" in entry else entry["unproven"]
        else:
            told["sources"] = {path: entry["sha256"], **entry["uses"]}
            told |= {"tests": info.OTHER_TESTS} if op in retested else {}
        found[f"{op} {backend}"] = told
    return found


def proven(ledger: Ledger) -> list[str]:
    """The files of the kernels that are proven."""
    entries = completed(ledger)
    paths = (FILES[backend].format(op) for op, backend in kernels())
    return [path for path in paths if "unproven" not in entries.get(path, {"unproven": info.NOT_YET})]


def unproven(ledger: Ledger) -> list[str]:
    """The files of all kernels that are not."""
    there = proven(ledger)
    return [path for op, backend in kernels() if (path := FILES[backend].format(op)) not in there]


def read(path: Path = LEDGER) -> Ledger:
    found: Ledger = json.loads(path.read_text()) if path.exists() else {}
    return found


# ---- what a check adds to it ----


def verdict(op: str, backend: str, tests: dict[str, Any], memcheck: dict[str, Any]) -> str | int | None:
    """How many tests of a kernel passed, why it is not proven, or None if nothing was run.

    A test that is of no single op is of what all kernels are called by: where one fails, none of them is proven.
    """
    if op not in tests:
        return None
    if wrong := failed(tests[op], "tests") or failed(tests.get(OTHERS, {}), "tests of no single op"):
        return wrong
    if "failed" in memcheck.get(op, {}):
        return "memcheck failed"
    passed = int(tests[op].get("passed", {}).get(backend, 0))
    if not passed:
        return "none of its tests ran"
    if OTHERS not in tests:
        return "its tests passed, those of no single op not reached yet"
    if op not in memcheck:
        return "tests passed, memcheck not reached yet"
    return f"tests passed, memcheck skipped: {memcheck[op]['skipped']}" if "skipped" in memcheck[op] else passed


def failed(result: dict[str, Any], tests: str) -> str | None:
    """What went wrong with ``tests``, if something did."""
    if result.get("failures"):
        return f"{len(result['failures'])} {tests} failed"
    return f"{tests} failed: {str(result['failed']).strip().splitlines()[-1]}" if "failed" in result else None


def updated(ledger: Ledger, tests: dict[str, Any], memcheck: dict[str, Any], where: Mapping[str, str]) -> Ledger:
    """The ledger after a check: what passed, why what failed is unproven; others stay as they were.

    ``where`` has the device, the versions, and the folder of the results.
    """
    found, shared = dict(ledger), {}
    common = {**where, "date": datetime.date.today().isoformat()}
    for op, backend in kernels():
        path = FILES[backend].format(op)
        passed = verdict(op, backend, tests, memcheck)
        if isinstance(passed, str):
            found[path] = {"unproven": passed, **common}
        if not isinstance(passed, int) or not (ROOT / path).is_file():
            continue
        hashes = {name: sha256(name) for name in uses(op, backend)}
        entry = {"sha256": sha256(path), **common, "tests": f"passed {passed}", "memcheck": "passed"}
        found[path] = {**entry, "uses": hashes}
        for name in hashes:
            shared[name] = shared.get(name, 0) + passed
    for name, passed in shared.items():
        found[name] = {"sha256": sha256(name), **common, "tests": f"passed {passed}"}
    return completed(found)
