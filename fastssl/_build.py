"""The record of the native build: what was built, or why not, and of which sources.

setup.py runs this file by itself, for the package needs torch.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import re
import shutil
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAME = "_build.json"  # in the package, beside the modules
KINDS = (".cpp", ".cu", ".cuh", ".h")
BY_TEXT = ("csrc/cuda/", "fastssl/ops/triton/")  # what runs on a GPU is proven as it is written, comments included
# Literals, that what looks like a comment inside one is none, and the comments.
IN_CPP = re.compile(
    r'"(?:\\.|[^"\\\n])*"|\'(?:\\[^\'\n]+|[^\'\\\n])\'|(?P<comment>//(?:\\\n|[^\n])*|/\*.*?\*/)', re.DOTALL
)
IN_CMAKE = re.compile(r'"(?:\\.|[^"\\])*"|(?P<comment>#\[(?P<level>=*)\[.*?\](?P=level)\]|#[^\n]*)', re.DOTALL)


@functools.lru_cache(maxsize=2048)  # a check hashes the same files for each of its parts
def code(name: str, text: str) -> str:
    """What a source does: its lines without comments, docstrings and what is empty then.

    It is as it was while this is, though what is said of it be another.
    """
    if name.endswith(".py"):
        text = _python_code(text)
    elif name.endswith((*KINDS, "CMakeLists.txt")):
        pattern = IN_CMAKE if name.endswith(".txt") else IN_CPP
        text = pattern.sub(lambda found: " " if found["comment"] else found[0], text)
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(line for line, above in zip(lines, ["", *lines], strict=False) if line or above.endswith("\\"))


def _python_code(text: str) -> str:
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            said = node.body[0]
            first, last = said.lineno - 1, said.end_lineno or 0
            beside = lines[first].encode()[: said.col_offset] + lines[last - 1].encode()[said.end_col_offset :]
            if not beside.strip():
                lines[first:last] = [""] * (last - first)
    return "\n".join(lines)


def code_hash(root: Path, name: str) -> str:
    """The hash of what the source of this name below ``root`` does; of a GPU kernel's file, of its text."""
    if name.startswith(BY_TEXT):
        return hashlib.sha256((root / name).read_bytes()).hexdigest()
    return hashlib.sha256(code(name, (root / name).read_text()).encode()).hexdigest()


def sources(root: Path) -> dict[str, str]:
    """All files that the native modules are built of, with the hashes of what they do."""
    found = sorted(path for path in (root / "csrc").rglob("*") if path.suffix in KINDS)
    names = (path.relative_to(root).as_posix() for path in (root / "CMakeLists.txt", *found))
    return {name: code_hash(root, name) for name in names}


def modules(package: Path) -> list[Path]:
    return [*package.glob("_cpu.*"), *package.glob("_cuda.*")]


def keep(out: Path, package: Path, root: Path) -> None:
    """Copies what CMake built of the sources in ``root`` into the package, in place of all modules there, and its
    record with their hashes.

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
