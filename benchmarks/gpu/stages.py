"""The stages of the check: each a list of parts, and how a part's result is had.

A stage's ``run`` is given the parts to do, its seconds, and ``tell``, to be called with each part and its result.
A result with "failed" is a part that is not right.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch

from benchmarks import where
from benchmarks.gpu import ledger, pretend, processes
from benchmarks.gpu.building import build, module_is_there
from benchmarks.gpu.ledger import OTHERS
from benchmarks.gpu.processes import ROOT, Result, Tell
from benchmarks.harness import OPS, WHOLE, cases
from fastssl import info

AT_ONCE = min(12, (os.cpu_count() or 2) - 2)  # processes that compile and test, which leave some processors to others
PRETENDED = "pretended"  # in place of a backend, of tests that a dry run passes
# measured first, one case each and then some of their second ones; then the others' first cases, then their second ones
FIRST = ("nt_xent", "queue_info_nce", "distillation_loss", "sinkhorn_knopp", "random_masking", "take_patches")
FIRST += ("ema_update", "augment")
SECOND = ("take_patches", "ema_update", "nt_xent")


@dataclass(frozen=True)
class Stage:
    """``share`` is of the minutes that are left, against the shares of the stages to come.

    ``sources`` gives the files and folders that a part's result is of.
    """

    name: str
    share: float
    sources: Callable[[str], Iterable[str]]
    parts: Callable[[bool], list[str]]
    run: Callable[[list[str], float, Tell, bool], None]
    undone: Callable[[], bool] = lambda: False  # whether it must be done again, whatever its results say


# ---- tests ----


# torch's products are then repeatable, and the processes leave one another the processors
ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"}


def ops_with_kernels() -> list[str]:
    return list(dict.fromkeys(op for op, _ in ledger.kernels()))


def op_of(test: str) -> str:
    """The op that a test is of: its file's, or else the longest of the names of ops in its parameters."""
    file, _, name = test.partition("::")
    stem = Path(file).stem.removeprefix("test_")
    if stem in OPS:
        return stem
    found = [op for op in OPS if op in name.partition("[")[2]]
    return max(found, key=len, default=OTHERS)


def tests(parts: list[str], seconds: float, tell: Tell, dry: bool) -> None:
    """Each op's tests in processes of their own, for a kernel that goes wrong leaves its process without a GPU.

    A dry run collects them all and runs some of each op, with its formula in place of its kernels.
    """
    deadline = time.monotonic() + seconds
    pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
    by_op: dict[str, list[str]] = {part: [] for part in parts}
    names, broken = collected([*pytest, "--collect-only", "tests/ops"], seconds)
    for test in names:
        by_op.setdefault(op_of(test), []).append(test)
    if time.monotonic() > deadline:
        return
    workers = 2 if dry else max(1, AT_ONCE)
    left = {part: portions(by_op[part], sum(map(len, by_op.values())), workers, dry) for part in parts}
    found: dict[str, list[Result]] = {part: [] for part in parts}
    telling = threading.Lock()

    def done(part: str, result: Result) -> None:
        missing = ", ".join(file for file in broken if op_of(file) == part)
        tell(part, {**result, "failed": f"{missing} cannot be imported"} if missing else result)

    def one(part: str, portion: list[str]) -> None:
        with tempfile.TemporaryDirectory(prefix="fastssl-gpu-") as folder:
            report, start = Path(folder) / "report.xml", time.monotonic()
            chosen = ["--pretend-gpu", *some_of(part, portion)] if dry else portion
            code, said = processes.run([*pytest, f"--junitxml={report}", *chosen], deadline - start, **ENVIRONMENT)
            if code is None:
                return
            result = outcome(report, dry) if code in (0, 1) and report.exists() else {"failed": said}
            if result.get("failures"):
                result["said"] = said
        result |= {"collected": len(portion), "seconds": round(time.monotonic() - start, 1)}
        with telling:
            found[part].append(result)
            if len(found[part]) == len(left[part]):
                done(part, together(found[part]))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda task: one(*task), ((part, portion) for part in parts for portion in left[part])))
    for part in parts:
        if not by_op[part]:
            done(part, {"collected": 0} if part == OTHERS else {"failed": "no tests of it were collected"})


def portions(tests: list[str], total: int, workers: int, dry: bool) -> list[list[str]]:
    """What one process runs of an op's tests: some of many, so that none is still at it when the others are done.

    Tests that compile much stand side by side: each process has some of them.
    """
    count = 1 if dry else math.ceil(len(tests) / max(16, total // (3 * workers)))
    return [tests[first::count] for first in range(count)] if tests else []


def together(results: list[Result]) -> Result:
    """One result of those of several processes."""
    if len(results) == 1:
        return results[0]
    passed: dict[str, int] = {}
    for result in results:
        for backend, count in result.get("passed", {}).items():
            passed[backend] = passed.get(backend, 0) + count
    failures = [each for result in results for each in result.get("failures", [])]
    found: Result = {"passed": passed, "skipped": sum(result.get("skipped", 0) for result in results)}
    found |= {"failures": failures, "collected": sum(result["collected"] for result in results)}
    found["seconds"] = round(sum(result["seconds"] for result in results), 1)
    if died := [result["failed"] for result in results if "failed" in result and "failures" not in result]:
        found["failed"] = died[0]
    elif failures:
        found["failed"] = f"{len(failures)} tests"
    if said := [result["said"] for result in results if "said" in result]:
        found["said"] = said[0]
    return found


def collected(command: Sequence[object], seconds: float) -> tuple[list[str], list[str]]:
    """The names of the tests that pytest would run, and the files that it could not read."""
    said = list(processes.lines(processes.start(command), time.monotonic() + seconds))
    broken = (re.match(r"ERROR (tests/\S+\.py)", line) for line in said)
    return [line for line in said if re.match(r"tests/\S+\.py::", line)], [line[1] for line in broken if line]


def some_of(op: str, tests: Sequence[str]) -> list[str]:
    """Of an op's tests those that every kernel owes, and of each other file the first one of a backend that it has."""
    backends = "|".join(backend for name, backend in ledger.kernels() if op in (name, OTHERS))
    found: dict[str, str] = {}
    for test in tests:
        file, _, name = test.partition("::")
        of_every_kernel = file.endswith("test_gpu.py")
        if of_every_kernel or re.search(rf"[\[-]({backends})\b", name):
            found.setdefault(test if of_every_kernel else file, test)
    return list(found.values()) or list(tests[:1])


def outcome(report: Path, dry: bool = False) -> Result:
    """Of pytest's report: how many passed on each backend, how many were skipped, and what failed."""
    passed: dict[str, int] = {}
    failures, skipped = [], 0
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        wrong = [child for child in case if child.tag in ("failure", "error")]
        if wrong:
            failures.append(f"{name}: {str(wrong[0].get('message')).strip().partition(chr(10))[0][:300]}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            backend = PRETENDED if dry else next(iter(re.findall(r"[\[-](cuda|triton)\b", name)), "")
            passed[backend] = passed.get(backend, 0) + 1
    found: Result = {"passed": passed, "skipped": skipped, "failures": failures}
    return {**found, "failed": f"{len(failures)} tests"} if failures else found


# ---- memcheck ----


FOUND_ERRORS = 86  # the exit code that compute-sanitizer is asked for


def sanitizer() -> str | None:
    beside = Path("/usr/local/cuda/bin/compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)


def memcheck(parts: list[str], seconds: float, tell: Tell, dry: bool) -> None:
    """Small calls of every op, each allocation one of CUDA's own, so that an access beyond it is seen."""
    tool = sanitizer()
    if tool is None and not dry:
        for part in parts:
            tell(part, {"skipped": "compute-sanitizer is not installed"})
        return
    options = ["--report-api-errors", "no", "--target-processes", "application-only", "--error-exitcode", FOUND_ERRORS]
    checked: list[object] = [tool, "--tool", "memcheck", *options] if tool and not dry else []
    calls = [sys.executable, "tests/ops/small_calls.py", "cpu" if dry else "cuda"]

    def complaints(said: str) -> str:
        words = [line for line in said.splitlines() if line.startswith("=========")]
        return "\n".join(line for line in words if not re.search("COMPUTE-SANITIZER|ERROR SUMMARY: 0", line))

    def judged(part: str, result: Result, said: str) -> None:
        wrong = complaints(said)
        tell(part, {**result, "failed": wrong} if wrong else result)

    def ended(done: list[str], code: int, said: str) -> None:
        """The tool prints from a process of its own: what it says late may be of any op before."""
        if checked and (wrong := complaints(said) or ("it found errors" if code == FOUND_ERRORS else "")):
            for part in done:
                tell(part, {"failed": f"of this or another op in the same process: {wrong}"})

    processes.each([*checked, *calls], parts, seconds, judged, ended, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


# ---- benchmarks ----


AHEAD = 0.2  # of the benchmarks' time, at most, goes into compiling what is measured then


def cases_in_order(dry: bool) -> list[str]:
    """The names of all cases, such that a run that is cut short has measured something of every op and library."""
    if not dry:
        where.use("cuda")
    with pretend.gpu() if dry else nullcontext():
        names = {op: [case.name for case in cases(op)] for op in (*FIRST, *OPS, *WHOLE)}
    first = [name for ops, i in ((FIRST, 0), (SECOND, 1)) for op in ops for name in names[op][i : i + 1]]
    in_turns = (name for turn in zip_longest(*names.values()) for name in turn if name is not None)
    return list(dict.fromkeys((*first, *in_turns)))


def benchmarks(parts: list[str], seconds: float, tell: Tell, dry: bool) -> None:
    deadline = time.monotonic() + seconds
    command = [sys.executable, "-m", "benchmarks.gpu.measure", *(["--max-autotune"] if where.searching() else [])]
    command += ["--dry-run"] if dry else []
    with tempfile.TemporaryDirectory(prefix="fastssl-compiled-") as cache:
        environment = {"TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", cache)}
        if not dry:
            compile_ahead([*command, "--compile"], parts, seconds * AHEAD, environment)
        left = deadline - time.monotonic()
        processes.each(command, parts, left, lambda part, result, said: tell(part, result), **environment)


def compile_ahead(command: list[str], parts: list[str], seconds: float, environment: dict[str, str]) -> None:
    """Lets torch.compile fill its cache by many processes, which one that measures alone would take minutes for.

    What it chose by timing while they shared the GPU is forgotten, and chosen again where it is measured.
    """
    if AT_ONCE < 2:
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        several = [[*command, *parts[first::AT_ONCE]] for first in range(AT_ONCE)]
        list(
            pool.map(lambda one: processes.run(one, seconds, TORCHINDUCTOR_COMPILE_THREADS="1", **environment), several)
        )
    for chosen in Path(environment["TORCHINDUCTOR_CACHE_DIR"]).rglob("*.best_config"):
        chosen.unlink()


# ---- what the results of a part are of ----


BUILT = ("csrc", "CMakeLists.txt", "setup.py", "pyproject.toml", "fastssl/_build.py")
TESTED = (*BUILT, "fastssl/ops", "tests/ops", "tests/conftest.py")
MEASURING = tuple(f"benchmarks/{name}.py" for name in ("harness", "losses", "rivals", "where"))
MEASURING += tuple(f"benchmarks/gpu/{name}.py" for name in ("exponential", "floors", "measure", "timing"))
MEASURED = ("csrc", "fastssl/ops", "fastssl/losses", "fastssl/compat", "benchmarks/ops", "benchmarks/whole", *MEASURING)


def of_op(op: str) -> set[str]:
    """The files of an op's kernels, and those that they take to build and call."""
    backends = [backend for name, backend in ledger.kernels() if name == op]
    return {path for backend in backends for path in (ledger.FILES[backend].format(op), *ledger.uses(op, backend))}


def tested(op: str) -> set[str]:
    """Also its tests, and those that are of many ops and run on a GPU."""
    if op == OTHERS:
        return {*TESTED}
    files = {path.stem.removeprefix("test_"): path for path in (ROOT / "tests" / "ops").glob("*.py")}
    others = {name for name, path in files.items() if name not in OPS and may_run_on_a_gpu(path)}
    shared = {str(path.relative_to(ROOT)) for name, path in files.items() if name in (op, *others)}
    return of_op(op) | shared | {"tests/conftest.py"}


def may_run_on_a_gpu(path: Path) -> bool:
    """All that is no test may serve one; a test says so."""
    return not path.name.startswith("test_") or re.search("engine|gpu", path.read_text()) is not None


def measured(case: str) -> set[str]:
    """Also its benchmark, and how it is measured."""
    op = case.partition(" ")[0]
    return of_op(op) | {*MEASURING, f"benchmarks/ops/{op}.py"} if op in OPS else {*MEASURED}


STAGES = (
    Stage("build", 3, lambda part: BUILT, lambda dry: ["build"], build, lambda: not module_is_there()),
    Stage("tests", 6, tested, lambda dry: [OTHERS, *ops_with_kernels()], tests),
    Stage("memcheck", 2, tested, lambda dry: ops_with_kernels(), memcheck),
    Stage("benchmarks", 4, measured, cases_in_order, benchmarks),
)


def environment() -> dict[str, str]:
    """What results depend on besides the sources."""
    return {
        "python": sys.version.partition(" ")[0],
        "torch": torch.__version__,
        "triton": info.facts()["triton"],
        "nvcc": info.built("cuda", "not built"),  # not what this process has loaded: it may be what builds
        "compute-sanitizer": sanitizer() or "not installed",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def files_of(sources: Iterable[str]) -> list[str]:
    """All files of some folders and files, results and what is built left out."""
    found: list[Path] = []
    for source in sources:
        path = ROOT / source
        found += sorted(path.rglob("*")) if path.is_dir() else [path]
    kept = {".py", ".cpp", ".h", ".cu", ".cuh", ".txt", ".toml"}
    return [str(p.relative_to(ROOT)) for p in found if p.is_file() and p.suffix in kept]
