"""The record of the native build: what was built, or why not, and of which sources.

setup.py runs this file by itself, for the package needs torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAME = "_build.json"  # in the package, beside the modules
KINDS = (".cpp", ".cu", ".cuh", ".h")


def sources(root: Path) -> str:
    """The hash of all files that the native modules are built of."""
    found = sorted(path for path in (root / "csrc").rglob("*") if path.suffix in KINDS)
    digest = hashlib.sha256()
    for path in (root / "CMakeLists.txt", *found):
        digest.update(f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def modules(package: Path) -> list[Path]:
    return [*package.glob("_cpu.*"), *package.glob("_cuda.*")]


def keep(out: Path, package: Path, root: Path) -> None:
    """Copies what CMake built of the sources in ``root`` into the package, in place of all modules there, and its
    record with their hash.

    A module that is not built any more would stay, of sources that nobody knows; one that is in use may be removed,
    but not written over.
    """
    package.mkdir(parents=True, exist_ok=True)
    for old in modules(package):
        old.unlink()
    record = out / "build.json"
    for built in out.iterdir():
        if built != record:
            shutil.copy2(built, package)
    told = {**json.loads(record.read_text()), "sources": sources(root)}
    (package / NAME).write_text(json.dumps(told, indent=2) + "\n")


def stale(root: Path = ROOT) -> str | None:
    """Why the native modules, if there are any, are not of the sources beside them; where installed, they lie alone."""
    package = root / "fastssl"
    record = package / NAME
    if not (root / "csrc").is_dir() or not modules(package):
        return None
    built = json.loads(record.read_text()).get("sources") if record.exists() else None
    if built == sources(root):
        return None
    how = "of other sources than csrc/ and CMakeLists.txt are now" if built else "of sources that no record tells"
    return f"the native modules in {package} were built {how}: run `pip install -e .`"
