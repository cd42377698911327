"""The shape of the project: which way imports point, and that every op and method has all its files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fastssl import methods, ops

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastssl"

# each layer, and those of the others it may import; `_build`, `errors` and `files` serve all
LAYERS: dict[str, set[str]] = {
    "allocator": set(),
    "ops": set(),
    "losses": {"ops"},
    "momentum": {"ops"},
    "compat": {"ops", "losses"},
    "data": {"ops"},
    "models": {"ops", "data"},
    "schedule": set(),
    "optim": {"schedule"},
    "methods": {"ops", "losses", "momentum", "models", "data", "schedule"},
    "eval": {"ops", "losses", "models", "data", "methods", "optim"},
    "train": {"allocator", "ops", "losses", "models", "data", "methods", "schedule", "optim", "eval"},
    "report": {"ops", "losses", "models", "data", "methods", "eval", "train"},
    "info": {"ops"},
    "cli": {"allocator", "ops", "losses", "models", "data", "methods", "optim", "eval", "train", "report", "info"},
}
EVERYWHERE = {"_build", "errors", "files"}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "fastssl" else [f"fastssl.{alias.name}" for alias in node.names]
            assert node.level == 0, f"{path}: relative import"
        found |= {name.split(".")[1] for name in names if name.startswith("fastssl.")}
    return found


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if layer_of(p) not in {"__init__", "__main__", *EVERYWHERE})


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    layer = layer_of(path)
    wrong = imported_layers(path) - LAYERS[layer] - EVERYWHERE - {layer}
    assert not wrong, f"{path.relative_to(ROOT)} may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", [p for p in SOURCES if layer_of(p) != "cli"], ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_reads_arguments_and_environment(path: Path) -> None:
    read = re.findall(r"\b(sys\.argv|os\.environ|os\.getenv|getenv\()", path.read_text())
    if path.name == "build_clipart.py" or path.name == "__main__.py":
        read = [word for word in read if word != "sys.argv"]  # commands of their own
    assert not read, f"{path.relative_to(ROOT)} reads {', '.join(read)}"


OPS = sorted(name for name in ops.__all__ if name.islower() and name not in {"backend", "explain", "gamut_bins"})
# the reference serves them on a GPU; an op leaves this list with its kernel
WITHOUT_GPU_KERNEL: set[str] = set()


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_all_its_files(op: str) -> None:
    stem = op.rstrip("_")
    for needed in (
        f"fastssl/ops/{stem}.py",
        f"csrc/cpu/{stem}.cpp",
        f"tests/ops/test_{stem}.py",
        f"benchmarks/ops/{stem}.py",
    ):
        assert (ROOT / needed).is_file(), f"{op} lacks {needed}"
    gpu = (f"csrc/cuda/{stem}.cu", f"fastssl/ops/triton/{stem}.py")
    has_kernel = any((ROOT / path).is_file() for path in gpu)
    assert has_kernel != (op in WITHOUT_GPU_KERNEL), f"{op}: {' or '.join(gpu)} and WITHOUT_GPU_KERNEL disagree"


GPU_KERNELS = sorted([*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("fastssl/ops/triton/[a-z]*.py")])


@pytest.mark.parametrize("path", GPU_KERNELS, ids=lambda path: path.name)
def test_a_gpu_kernel_says_why_it_is_in_its_language(path: Path) -> None:
    why = "CUDA and not Triton: " if path.suffix == ".cu" else "Triton and not CUDA: |why they are in Triton: "
    assert re.search(why, path.read_text())
    assert f"tests/ops/test_{path.stem}.py" in path.read_text()


def test_no_native_source_is_forgotten() -> None:
    listed = set(re.findall(r"csrc/\S+\.(?:cpp|cu)", (ROOT / "CMakeLists.txt").read_text()))
    present = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".cu"}}
    assert listed == present


@pytest.mark.parametrize("method", methods.names())
def test_a_method_has_its_test(method: str) -> None:
    assert (ROOT / f"tests/methods/test_{method}.py").is_file()


def test_the_native_core_knows_nothing_of_torch() -> None:
    for path in (ROOT / "csrc").rglob("*.*"):
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text()), path
