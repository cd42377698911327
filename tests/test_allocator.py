"""Freed memory stays with the process of a command."""

from __future__ import annotations

import sys

import pytest
import resident

from fastssl.allocator import keep_freed_memory

SCRIPT = """
from fastssl.cli import main

before = resident()
used()
returned = resident() - before
assert main(["--version"]) == 0
used()
print(returned // 2**20, (resident() - before) // 2**20)
"""


def test_a_command_keeps_what_it_frees() -> None:
    if not keep_freed_memory():
        pytest.skip("only glibc can be told to keep freed memory")
    done = resident.run(SCRIPT)
    assert done.returncode == 0, done.stderr
    returned, kept = map(int, done.stdout.splitlines()[-1].split())
    assert returned <= 28
    assert kept >= 100


def test_where_the_system_is_another_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
