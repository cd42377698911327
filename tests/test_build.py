"""The build: what it says when something is missing, and that a wheel made without torch works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pybind11
import pytest

from fastssl import _build

ROOT = Path(__file__).parent.parent
NVCC = shutil.which("nvcc")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH of its own with the programs a build needs, and neither nvcc nor any other compiler."""
    folder = tmp_path_factory.mktemp("tools")
    beside = Path(sys.executable).parent
    for tool in ("cmake", "ninja"):
        found = beside / tool if (beside / tool).exists() else Path(str(shutil.which(tool)))
        # a wrapper and not a link: the installed programs look for their files beside themselves
        (folder / tool).write_text(f'#!/bin/sh\nexec "{found}" "$@"\n')
        (folder / tool).chmod(0o755)
    return folder


def configure(out: Path, path: str, cuda: str = "auto", **environment: str) -> tuple[int, str]:
    """CMake's exit code, and what it recorded: build.json's text, or the one line of error.txt."""
    kept = {
        k: v for k, v in os.environ.items() if k not in {"CXX", "CC", "CUDACXX", "CUDAARCHS", "TORCH_CUDA_ARCH_LIST"}
    }
    done = subprocess.run(
        [
            *(
                "cmake",
                "-S",
                ROOT,
                "-B",
                out / "build",
                "-G",
                "Ninja",
                f"-DFASTSSL_OUT={out}",
                f"-DFASTSSL_CUDA={cuda}",
            ),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ],
        env={**kept, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )
    record = out / ("build.json" if done.returncode == 0 else "error.txt")
    assert record.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    return done.returncode, record.read_text()


def with_compiler(tools: Path) -> str:
    """The tools, and a C++ compiler that nothing else of the machine comes along with."""
    for tool in ("c++", "g++", "ld", "as", "ar", "ranlib", "nm"):
        found = shutil.which(tool)
        if found and not (tools / tool).exists():
            (tools / tool).symlink_to(found)
    return str(tools)


def test_without_a_compiler_the_pure_python_package_remains(tools: Path, tmp_path: Path) -> None:
    only_tools = tmp_path / "bin"
    only_tools.mkdir()
    for tool in ("cmake", "ninja"):
        shutil.copy2(tools / tool, only_tools / tool)
    code, said = configure(tmp_path / "out", f"{only_tools}")
    assert code == 0
    assert "no C++ compiler was found (install g++ or clang++)" in json.loads(said)["cpu"]
    assert "the reference and Triton kernels still serve every op" in json.loads(said)["cpu"]


def test_without_nvcc_the_rest_is_built(tools: Path, tmp_path: Path) -> None:
    code, said = configure(tmp_path, with_compiler(tools))
    assert code == 0
    assert json.loads(said)["cpu"].startswith("built for baseline")
    assert json.loads(said)["cuda"] == "not built: nvcc was not found; the C++ and Triton kernels still work"


def test_asking_for_cuda_without_nvcc_is_an_error_of_one_line(tools: Path, tmp_path: Path) -> None:
    code, said = configure(tmp_path, with_compiler(tools), cuda="1")
    assert code != 0
    assert said.startswith("FASTSSL_CUDA=1, but nvcc does not work or was not found")
    assert "FASTSSL_CUDA=0 builds the C++ kernels alone" in said
    assert "\n" not in said


def test_a_setting_that_is_none_is_named(tools: Path, tmp_path: Path) -> None:
    code, said = configure(tmp_path, with_compiler(tools), cuda="maybe")
    assert code != 0
    assert said == "FASTSSL_CUDA must be auto, 0 or 1; got 'maybe'"


def test_cuda_can_be_left_out(tools: Path, tmp_path: Path) -> None:
    code, said = configure(tmp_path, with_compiler(tools), cuda="0")
    assert code == 0
    assert json.loads(said)["cuda"] == "not built: FASTSSL_CUDA=0"


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize(
    ("name", "value", "built"),
    [
        ("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX", "built for 80-real 90-real 90-virtual"),
        ("CUDAARCHS", "90-real", "built for 90-real"),
        ("CUDAARCHS", "", "built for 80-real 90-real 100-real 100-virtual"),
    ],
)
def test_architectures_are_honoured(name: str, value: str, built: str, tmp_path: Path) -> None:
    code, said = configure(tmp_path, os.environ["PATH"], **{name: value})
    assert code == 0
    assert json.loads(said)["cuda"].startswith(built)


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_an_unknown_architecture_is_an_error_of_one_line() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build_ext",
            "--build-temp",
            "build/unknown",
            "--build-lib",
            "build/unknown",
        ],
        env={**os.environ, "TORCH_CUDA_ARCH_LIST": "9.9"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    shutil.rmtree(ROOT / "build" / "unknown", ignore_errors=True)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "fastssl: CUDA architecture '99' of TORCH_CUDA_ARCH_LIST is unknown to this nvcc, which knows: "
    )
    assert last.endswith("FASTSSL_CUDA=0 builds the C++ kernels alone")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Sources, what CMake made of them, and a package with modules of an earlier build."""
    for name in ("csrc/cuda/a.cu", "csrc/cpu/a.h", "CMakeLists.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"set(x {name})")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "build.json").write_text('{"cpu": "built", "cuda": "not built: nvcc was not found"}')
    (tmp_path / "out" / "_cpu.abi.so").write_text("new")
    (tmp_path / "fastssl").mkdir()
    for name in ("_cpu", "_cuda"):
        (tmp_path / "fastssl" / f"{name}.abi.so").write_text("old")
    return tmp_path


def test_of_an_earlier_build_nothing_stays(checkout: Path) -> None:
    """A CUDA module that is not built any more would be tested as if it were of these sources."""
    package = checkout / "fastssl"
    _build.keep(checkout / "out", package, checkout)
    assert {path.name for path in package.iterdir()} == {"_cpu.abi.so", "_build.json"}
    assert (package / "_cpu.abi.so").read_text() == "new"
    record = json.loads((package / "_build.json").read_text())
    assert record == {
        "cpu": "built",
        "cuda": "not built: nvcc was not found",
        "sources": _build.sources(checkout),
    }


@pytest.mark.parametrize("changed", ["csrc/cuda/a.cu", "csrc/cpu/a.h", "csrc/shared/new.cuh", "CMakeLists.txt"])
def test_a_build_of_other_sources_is_told(checkout: Path, changed: str) -> None:
    assert "built of sources that no record tells: run `pip install -e .`" in str(_build.stale(checkout))
    _build.keep(checkout / "out", checkout / "fastssl", checkout)
    assert _build.stale(checkout) is None
    (checkout / changed).parent.mkdir(exist_ok=True)
    (checkout / changed).write_text("set(x changed)")
    said = "built of other sources than csrc/ and CMakeLists.txt are now: run `pip install -e .`"
    assert said in str(_build.stale(checkout))


SAID = {
    "a.py": (
        '"""What it is for."""\n\nX = "# no comment"  # a comment\n\n\ndef f(x):\n    """Twice."""\n    return 2 * x\n',
        'X = "# no comment"\ndef f(x):\n    # doubled\n\n    return 2 * x\n',
    ),
    "a.cu": (
        "// what it is for\n#include <a>\nint x = 1'000;  /* a\n   comment */\n"
        'const char* y = "// none";\nchar z = \'"\';  // one\n',
        "#include <a>\nint x = 1'000;\n\nconst char* y = \"// none\";\nchar z = '\"';\n",
    ),
    "CMakeLists.txt": ('set(x "# none")  # what it is\n# and more\n', 'set(x "# none")\n'),
}


@pytest.mark.parametrize("name", SAID)
def test_what_a_source_does_is_told_without_what_it_says(name: str) -> None:
    before, after = SAID[name]
    assert _build.code(name, before) == _build.code(name, after)
    for changed in (after.replace("x", "u"), after.replace("none", "one").replace("no comment", "comment")):
        assert _build.code(name, before) != _build.code(name, changed)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("CMakeLists.txt", "set(a)\nset(b)\n", "#[[\nset(a)\n#]]\nset(b)\n"),
        ("a.cu", "// y\nint x;\nint z;\n", "// y \\\nint x;\nint z;\n"),
        ("a.h", "#define A \\\n    f();\ng();\n", "#define A \\\n    // y\n    f();\ng();\n"),
        ("a.py", 'def f(): "y"; return 1\n', 'def f(): "y"; return 2\n'),
    ],
)
def test_a_comment_that_does_something_is_a_change(name: str, before: str, after: str) -> None:
    """It hides a line, goes on in the next one, ends a macro, or stands beside code."""
    assert _build.code(name, before) != _build.code(name, after)


@pytest.mark.parametrize(("source", "is_told"), [("csrc/cpu/a.h", False), ("csrc/cuda/a.cu", True)])
def test_a_comment_makes_no_build_stale_but_of_gpu_kernels(checkout: Path, source: str, is_told: bool) -> None:
    """Whose texts are what a GPU has run."""
    (checkout / source).write_text("int x;\n")
    _build.keep(checkout / "out", checkout / "fastssl", checkout)
    (checkout / source).write_text("// what it is\nint x;  // so\n")
    assert ("built of other sources" in str(_build.stale(checkout))) == is_told
    (checkout / source).write_text("long x;\n")
    assert "built of other sources" in str(_build.stale(checkout))


def test_modules_without_sources_beside_them_are_what_was_installed(checkout: Path) -> None:
    shutil.rmtree(checkout / "csrc")
    assert _build.stale(checkout) is None


def test_without_modules_nothing_is_stale(checkout: Path) -> None:
    shutil.rmtree(checkout / "fastssl")
    assert _build.stale(checkout) is None


@pytest.fixture
def ci(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A copy of .ci/nvcc, and an environment with what it calls, without nvcc and where pip finds nothing."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "env", "dirname", "ln", "mkdir", "rm", "touch"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    (tools / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tools / "python3").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return tmp_path / ".ci" / "nvcc", {**kept, "PATH": str(tools), "PIP_NO_INDEX": "1"}


def test_ci_compiles_with_the_nvcc_that_is_there(ci: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    script, environment = ci
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    assert subprocess.check_output([script], env=environment, text=True) == f"{nvcc.parent}\n"


def test_ci_without_nvcc_gets_one_or_fails_with_a_sentence(ci: tuple[Path, dict[str, str]]) -> None:
    script, environment = ci
    done = subprocess.run([script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    said = "no nvcc on PATH, and pip could not install that of .ci/nvcc.txt: the CUDA kernels cannot be compiled"
    assert done.stderr.splitlines()[-1] == said


def test_ci_never_goes_on_without_nvcc() -> None:
    """And the version that it would get is that of the published table, which the tests then compare."""
    run = (ROOT / ".ci" / "run").read_text()
    assert run.index("nvcc_folder=$(.ci/nvcc)") < run.index("FASTSSL_CUDA=1") < run.index("make test")
    table = json.loads((ROOT / "benchmarks" / "results" / "gpu_kernels.json").read_text())
    assert f"nvidia-cuda-nvcc=={table['compilers']['nvcc']}\n" in (ROOT / ".ci" / "nvcc.txt").read_text()


@pytest.mark.slow
def test_a_wheel_from_the_sdist_works_where_torch_is_not(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    quick = {**os.environ, "FASTSSL_CUDA": "0"}
    copy = tmp_path / "source"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "build", "*.so", "runs", "*.egg-info"))
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path], cwd=copy, env=quick, check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, sdist], env=quick, check=True, cwd=tmp_path
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("fastssl/py.typed", "fastssl/_build.json", "fastssl/data/clipart.zip", "fastssl/report/page.html"):
        assert needed in names
    assert any(name.startswith("fastssl/_cpu") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "csrc/"))]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    (site,) = (tmp_path / "bare").glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    code = "import fastssl._cpu as cpu, importlib.util; print(cpu.isa(), importlib.util.find_spec('torch'))"
    told = subprocess.check_output([tmp_path / "bare" / "bin" / "python", "-c", code], text=True, cwd=tmp_path)
    assert told.split()[0] in {"baseline", "avx2", "avx512", "avx512bf16", "amx"}
    assert told.split()[1] == "None"
