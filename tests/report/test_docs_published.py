"""docs/published-settings.md tells the defaults as they are, and its commands set what it says is published."""

from __future__ import annotations

import runpy
import shlex
from pathlib import Path

import pytest

from fastssl import methods
from fastssl.cli.pretrain import _arguments
from fastssl.train import config as configs

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "published_settings.py"))


def test_the_page_is_of_the_settings_as_they_are() -> None:
    kept = (DOCS / "published-settings.md").read_text(encoding="utf-8")
    assert kept == SCRIPT["page"]()  # else: python docs/published_settings.py


def test_every_method_is_on_the_page_or_said_not_to_be() -> None:
    left_out = {name for name in methods.names() if f"[{name}](methods/{name}.md)" in SCRIPT["TAIL"]}
    assert {run.config.method for run in SCRIPT["RUNS"]} == set(methods.names()) - left_out


@pytest.mark.parametrize("run", SCRIPT["RUNS"], ids=lambda run: run.title)
def test_a_command_sets_what_was_published(run: object) -> None:
    words = shlex.split(configs.command(run.config))  # type: ignore[attr-defined]
    config, _, _ = _arguments(words[2:])
    assert config == run.config  # type: ignore[attr-defined]
