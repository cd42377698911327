from __future__ import annotations

import subprocess
import sys

import pytest
from cli_helpers import Run

import fastssl
from fastssl.cli import COMMANDS


def test_no_words_and_help_say_what_there_is(run: Run) -> None:
    for words in ([], ["--help"], ["-h"]):
        outcome = run(*words)
        assert outcome.code == 0
        assert all(f"  {name} " in outcome.out for name in COMMANDS)


def test_version(run: Run) -> None:
    assert run("--version").out == f"fastssl {fastssl.__version__}\n"


def test_an_unknown_command_offers_the_nearest(run: Run) -> None:
    assert run("pretrian").error() == "error: unknown command 'pretrian': did you mean 'pretrain'?"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(command: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(command, "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: fastssl {command}" in text
    assert f"examples:\n  fastssl {command}" in text


@pytest.mark.parametrize(
    "words",
    ["pretrain", "evaluate RUN", "embed RUN DATA --out f.npz", "export RUN --out f", "report RUN", "info", "views DATA",
     "bench-data DATA"],
)  # fmt: skip
def test_an_unknown_option_offers_the_nearest(words: str, run: Run) -> None:
    assert run(*words.split(), "--hlep").error() == "error: unknown option '--hlep': did you mean '--help'?"


@pytest.mark.parametrize("command", ["pretrain dino", "views DATA --preset dino"])
def test_what_of_a_plan_is_left_alone_on_purpose_is_said_to_be(command: str, run: Run) -> None:
    said = run(*command.split(), "--plan.mean", "0").error()
    assert said.startswith("error: --plan.mean cannot be set: the encoder is fed alike wherever it is used")
    said = run(*command.split(), "--plan.local.interpolation", "bilinear").error()
    told = "error: --plan.local.interpolation cannot be set by itself: set plan.interpolation, which is that of all"
    assert said.startswith(told)


@pytest.mark.parametrize("command", ["evaluate", "embed", "export", "report"])
def test_a_missing_run_is_one_line(command: str, run: Run) -> None:
    assert f"RUN is missing: fastssl {command} RUN" in run(command).error()


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from fastssl.cli import main; main(['--help']);"
        "assert 'torch' not in sys.modules; assert 'jsonargparse' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_python_m_fastssl_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fastssl", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command 'nonsense'")
    assert len(done.stderr.splitlines()) == 1
