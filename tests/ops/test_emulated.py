"""The emulator finds what it is there to find, and computes what a GPU would."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "emulated_cuda"
COMPILER = shutil.which("g++")
FLAGS = "-std=gnu++17 -O1 -fno-extern-tls-init -fsanitize=alignment -fno-sanitize-recover=all -Wno-unknown-pragmas"

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("faults") / "faults"
    sources = ["-x", "c++", SOURCES / "faults.cu", SOURCES / "emulator.cpp"]
    command = [str(COMPILER), *FLAGS.split(), "-I", SOURCES / "include", *sources, "-o", built]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


def launched(program: Path, name: str) -> tuple[list[str], list[list[int]], str]:
    """What CUDA says of two launches, what they left in memory, and what the emulator complains of."""
    done = subprocess.run([program, name], capture_output=True, text=True)
    told, found = zip(*(line.split(":") for line in done.stdout.splitlines()), strict=True) if done.stdout else ((), ())
    return list(told), [[int(word) for word in words.split()] for words in found], done.stderr


def test_barriers_and_exchanges_work(program: Path) -> None:
    rotated = [*range(1, 64), 0]
    assert launched(program, "rotate") == (["no error"] * 2, [rotated] * 2, "")
    _, found, _ = launched(program, "sum")
    assert found[0] == found[1]
    assert (found[0][0], found[0][32]) == (sum(range(32)), sum(range(32, 64)))
    assert found[0][1] == int("aaaaaaaa", 16) - 2**32  # a bit for each odd lane


def test_a_missing_barrier_shows_in_two_runs(program: Path) -> None:
    _, (first, second), _ = launched(program, "no_barrier")
    assert first != second


def test_shared_memory_that_nobody_wrote_is_poisoned(program: Path) -> None:
    assert launched(program, "unwritten_shared")[1] == [[-1] * 64] * 2


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("half_a_barrier", "threads wait for one another for ever"),
        ("gone_lane", "names lane 5, which has ended"),
        ("beyond_shared", "a write beyond the end of the shared memory"),
        ("shared_as_global", "an access to global memory with an address in shared memory"),
        ("local_as_global", "an access to global memory with an address of a local variable"),
    ],
)
def test_a_fault_fails_the_launch_in_words(program: Path, name: str, complaint: str) -> None:
    told, _, complained = launched(program, name)
    assert told == ["unspecified launch failure"] * 2
    assert complaint in complained


def test_a_misaligned_access_ends_the_process_with_its_line(program: Path) -> None:
    _, found, complained = launched(program, "misaligned")
    assert not found
    assert "faults.cu" in complained
    assert "misaligned address" in complained


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("too_many_threads", "invalid configuration argument"),
        ("another_stream", "invalid resource handle"),
        ("too_many_blocks", "invalid configuration argument"),
        ("too_many_down", "invalid configuration argument"),
        ("no_blocks", "invalid configuration argument"),
        ("too_much_shared", "invalid argument"),
    ],
)
def test_a_launch_that_cuda_refuses_is_refused(program: Path, name: str, error: str) -> None:
    told, found, _ = launched(program, name)
    assert told == [error] * 2
    assert not any(map(any, found))
