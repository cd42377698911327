"""What this installation consists of and how it serves each op: ``fastssl info``."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import PIL
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import fastssl
from fastssl import _build
from fastssl.ops import _native
from fastssl.ops._backend import ops

OPTIONAL = {
    "triton": "Triton kernels for NVIDIA GPUs",
    "nvidia.dali": "the engine dali (pip install 'fastssl[dali]', Linux)",
    "matplotlib": "figures of the report (pip install 'fastssl[report]')",
    "sklearn": "t-SNE in the report (pip install 'fastssl[report]')",
    "jinja2": "the report's page (pip install 'fastssl[report]')",
    "webdataset": "shards (pip install 'fastssl[webdataset]')",
    "av": "video files (pip install 'fastssl[video]')",
    "soundfile": "audio other than uncompressed wav files (pip install 'fastssl[audio]')",
}
# What packages may be called that have another name than their module.
PACKAGES = {"sklearn": ("scikit-learn",), "nvidia.dali": ("nvidia-dali-cuda130", "nvidia-dali-cuda120")}
BUILD = "run `pip install -e .` in its folder"
ROOT = Path(fastssl.__file__).parent.parent
PROVEN = ROOT / "fastssl" / "gpu_proven.json"  # written by python -m benchmarks.publish from the check's ledger
LANGUAGES = {"cuda": "CUDA", "triton": "Triton"}
NOT_YET, CHANGED = "not yet run on a GPU", "changed since it was checked"
OTHER_TESTS = "by tests that have changed since"


def _record() -> dict[str, Any]:
    """What the build recorded; nothing where it left no record."""
    record = ROOT / "fastssl" / _build.NAME
    found: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    return found


def built(part: str, otherwise: str) -> str:
    """How ``part`` ("cpu" or "cuda") was built or why not, or, where no record tells, ``otherwise``."""
    return str(_record().get(part, otherwise))


def _cpu() -> str:
    if _native.cpu is None:
        return f"{_native.CPU_MISSING}; {built('cpu', BUILD)}"
    return f"{_native.cpu.isa()} in use, {built('cpu', 'built elsewhere')}"


def _cuda() -> str:
    if _native.cuda is None:
        return f"{_native.CUDA_MISSING}; {built('cuda', BUILD)}"
    return built("cuda", "built elsewhere")


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that this torch can use"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names)


def gpu_kernels() -> dict[str, set[str]]:
    """For each op with kernels for GPUs, by the name of its files: "cuda", "triton" or both."""
    found: dict[str, set[str]] = {}
    for name, op in sorted(ops().items()):
        if there := {"cuda", "triton"} & set(op.implementations):
            found.setdefault(name.removesuffix("_backward").rstrip("_"), set()).update(there)
    return found


def gpu_checks() -> dict[str, Any]:
    """What checks on a GPU found, by op and backend of each kernel that they ran.

    The GPU, the date, and the hashes of the kernel's sources; or why it is unproven all the same.
    """
    found: dict[str, Any] = json.loads(PROVEN.read_text()) if PROVEN.exists() else {}
    for entry in found.values():
        if not all(_as_it_was(path, sha256) for path, sha256 in entry.get("sources", {}).items()):
            entry["unproven"] = CHANGED
    return found


def _as_it_was(path: str, sha256: str) -> bool:
    """Whether a source has this hash, or, where it does not lie here, had it when the package was built."""
    if (ROOT / path).exists():
        return _build.code_hash(ROOT, path) == sha256
    return bool(_record().get("sources", {}).get(path) == sha256)


def gpu_sentence(checks: dict[str, Any], strong: str = "", code: str = "") -> str:
    """Which GPU kernels were checked on which GPU, and which were not; ``strong`` and ``code`` are put around words."""
    not_yet = f"{strong}{NOT_YET}{strong}"
    by_check: dict[str, list[str]] = {}
    for op, backends in gpu_kernels().items():
        for backend in sorted(backends):
            entry = checks.get(f"{op} {backend}")
            check = not_yet
            if entry is not None:
                check = f"checked on {entry['device']} on {entry['date']}"
                if "tests" in entry:
                    check += f" {entry['tests']}"
                if "unproven" in entry:
                    check = f"{strong}unproven{strong}, {entry['unproven']} ({entry['device']}, {entry['date']})"
            by_check.setdefault(check, []).append(f"{code}{op}{code} ({LANGUAGES[backend]})")
    last = {not_yet: by_check.pop(not_yet)} if not_yet in by_check else {}
    return "; ".join(f"{check}: {', '.join(names)}" for check, names in {**by_check, **last}.items())


def _optional(module: str, purpose: str) -> str:
    if not _is_found(module):
        return f"not installed: {purpose}"
    for name in PACKAGES.get(module, (module,)):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "installed"  # a package of another name brought it, as torch's own builds bring triton


def _is_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of what it is a part of
        return False


def facts() -> dict[str, str]:
    """Versions, native modules, devices and threads, by name."""
    return {
        "fastssl": fastssl.__version__,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "C++ kernels": _cpu(),
        "CUDA kernels": _cuda(),
        "GPU kernels": gpu_sentence(gpu_checks()),
        "GPU": _gpu(),
        "threads": f"{torch.get_num_threads()} (torch.get_num_threads)",
        **{module: _optional(module, purpose) for module, purpose in OPTIONAL.items()},
    }


def _devices() -> list[torch.device]:
    return [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])


def served() -> list[tuple[str, str, str]]:
    """For each op and each device here: (op, device, the backend that serves a small float32 call)."""
    return [
        (name, device.type, op.choose(op.example(device)))
        for name, op in sorted(ops().items())
        for device in _devices()
    ]


def present() -> set[str]:
    """The backends that are here: of others an op has an entry too, and no call can take them."""
    modules = {"cpu": _native.cpu, "cuda": _native.cuda, "triton": find_spec("triton")}
    return {"reference", *(name for name, module in modules.items() if module is not None)}


def backends() -> list[tuple[str, str, str, str]]:
    """For each op and each device here: (op, device, its backends that are here in the order of preference, which one
    serves a small call and why none before it)."""
    here, rows = present(), []
    for name, op in sorted(ops().items()):
        for device in _devices():
            why = op.explain(op.example(device)).removeprefix(f"{name}: ")
            rows.append((name, device.type, " ".join(each for each in op.implementations if each in here), why))
    return rows


def main(every_op: bool = False, more: Mapping[str, str] = MappingProxyType({})) -> None:
    """Prints the facts, ``more`` of them, and who serves each op.

    With ``every_op`` also each op's backends, and why not those before.
    """
    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in {**facts(), **more}.items():
        table.add_row(f"[bold]{name}[/]", escape(value))
    console.print(table)
    console.print()
    notes: list[str] = []
    rows: list[tuple[str, ...]]
    if every_op:
        table = Table("op", "tensors on", "backends here", "serves a small call", box=None, header_style="bold")
        rows = [(*row, _noted(why, notes)) for *row, why in backends()]
    else:
        table = Table("op", "tensors on", "served by", box=None, pad_edge=False, header_style="bold")
        rows = [*served()]
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for number, note in enumerate(notes, 1):
        console.print(f" {number}) {escape(note)}", highlight=False)


def _noted(why: str, notes: list[str]) -> str:
    """A backend and the number of the note that says why none before it: ops share their reasons."""
    backend, _, reason = why.partition(" ")
    if not reason:
        return backend
    note = reason.strip("()")
    if note not in notes:
        notes.append(note)
    return f"{backend} {notes.index(note) + 1})"
