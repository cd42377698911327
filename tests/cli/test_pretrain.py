from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from cli_helpers import QUICK, Run, write_images

from fastssl.cli.pretrain import _arguments
from fastssl.errors import UserError
from fastssl.train import checkpoint as checkpoints
from fastssl.train import config as configs
from fastssl.train import log
from fastssl.train.folder import RunFolder


def test_one_command_leaves_everything(done: Path) -> None:
    folder = RunFolder(done)
    assert sorted(file.name for file in done.iterdir()) == [
        "checkpoint.pt",
        "config.yaml",
        "metrics.csv",
        "metrics.jsonl",
        "report.html",
        "scores.json",
    ]
    assert len(log.read(folder.metrics)) == 6
    rows = json.loads(folder.scores.read_text())["rows"]
    assert [row["features"] for row in rows] == ["trained", "random initialisation", "raw pixels"]
    assert checkpoints.load(folder.checkpoint).finished


def test_a_runs_config_repeats_it(done: Path, run: Run) -> None:
    assert run("pretrain", "--config", done / "config.yaml", "--out", "again").code == 0
    first, again = (checkpoints.load(RunFolder(path).checkpoint) for path in (done, Path("again")))
    assert all(torch.equal(first.model[name], again.model[name]) for name in first.model)


def test_the_command_in_the_report_gives_the_same_config(done: Path) -> None:
    config = configs.read(done / "config.yaml")
    words = configs.command(config).split()[2:]
    assert _arguments(words)[0] == config


def test_options_win_over_the_config_file(done: Path) -> None:
    config = _arguments(["--config", str(done / "config.yaml"), "--epochs", "5", "--optim.lr", "1e-3"])[0]
    assert (config.epochs, config.batch_size, config.optim.lr) == (5, 8, 1e-3)


def test_a_file_that_names_no_method_is_of_the_one_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "given.yaml"
    file.write_text("epochs: 50\nplan: {second: {blur: 0.3}}\n")
    config = _arguments(["byol", "--config", str(file)])[0]
    assert (config.method, config.epochs) == ("byol", 50)
    assert [part.blur for part in config.view_plan().parts] == [1.0, 0.3]
    with pytest.raises(UserError, match=r"given\.yaml: unknown setting 'plan.second'"):
        _arguments(["simclr", "--config", str(file)])
    with pytest.raises(UserError, match=r"^unknown method 'none_such'"):
        _arguments(["none_such", "--config", str(file)])


def test_each_field_of_a_plan_is_an_option() -> None:
    words = ["--views", "byol", "--plan.blur", "0", "--plan.crop_scale", "0.2", "1", "--plan.second.rot90", "0", "2"]
    words += ["--plan.interpolation", "bicubic", "--plan.second.blur", "0.3"]
    config = _arguments(words)[0]
    changes = {"blur": 0.0, "crop_scale": (0.2, 1.0), "interpolation": "bicubic"}
    assert config.plan == {**changes, "second": {"rot90": (0, 2), "blur": 0.3}}
    assert _arguments(configs.command(config).split()[2:])[0] == config


def test_changes_to_the_plan_are_kept_and_may_be_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    configs.save(configs.from_dict({"views": "byol", "plan": {"flip": 0.1, "second": {"blur": 0.3}}}), file)
    assert _arguments(["--config", str(file), "--plan.flip", "0.2"])[0].plan == {"flip": 0.2, "second": {"blur": 0.3}}
    with pytest.raises(UserError, match=r"unknown setting 'plan\.second'"):
        _arguments(["--config", str(file), "--views", "simclr"])


def test_the_help_tells_the_fields_of_a_plan_and_its_parts(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("pretrain", "--views", "byol", "--help")
    told = " ".join(capsys.readouterr().out.split())
    assert "--plan.PART.FIELD changes one part alone: first, second." in told
    has = "The preset has 1 (first), 0.1 (second). (type: float)"
    assert f"--plan.blur BLUR probability of a Gaussian blur. {has}" in told
    assert "--plan.crop_scale LOW HIGH bounds of the crop's area" in told
    assert "The preset has 0.08 1. (type: float)" in told
    assert "--plan.rot90 N [N ...] quarter turns" in told
    assert "--plan.second.blur" not in told
    assert "--out OUT folder of the run; without it runs/METHOD-DATA (type: str | null, not set)" in told
    assert "null" not in told[told.index("Changes to the views") : told.index("--plan.solarize")]


@pytest.mark.parametrize(
    ("words", "blur"),
    [
        (["--image_size", "224"], "0.5"),
        (["--image_size", "32"], "0"),
        (["--views", "mae", "--config", "CONFIG"], "0.3"),
    ],
)
def test_the_help_tells_what_the_plan_has_at_this_size_and_in_this_config(
    words: list[str], blur: str, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    configs.save(configs.from_dict({"plan": {"blur": 0.3}}), tmp_path / "CONFIG")
    with pytest.raises(SystemExit):
        run("pretrain", *words, "--help")
    told = " ".join(capsys.readouterr().out.split())
    assert f"probability of a Gaussian blur. The preset has {blur}. (type: float)" in told


def test_views_of_another_size_than_the_images_are_told(photos: Path, run: Run) -> None:
    outcome = run("pretrain", "--data", photos, "--out", "run", *QUICK, "--plan.size", "8")
    assert outcome.code == 0
    assert "trained on views of 8 x 8 pixels, scored on images of 16 x 16: plan.size is not image_size" in outcome.err
    assert "plan.size" not in run("pretrain", "--data", photos, "--out", "other", *QUICK).err


def test_another_plan_cannot_go_on_with_a_run(
    done: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTSSL_CACHE", str(tmp_path / "kept"))
    outcome = run("pretrain", "--out", done, "--resume", "--plan.blur", "0.5", "--plan.crop_scale", "0.3", "1")
    assert "other settings (plan.crop_scale: [0.08, 1.0] -> [0.3, 1.0]; plan.blur: 0.0 -> 0.5)" in outcome.error()
    assert not (tmp_path / "kept").exists()
    assert outcome.err.count("\n") == 1  # no data was read


def test_without_out_the_folder_is_named_after_method_and_data(photos: Path) -> None:
    assert _arguments(["--data", str(photos)])[1].path == Path("runs/simclr-photos")


def test_images_without_labels_are_trained_on_and_not_scored(run: Run, tmp_path: Path) -> None:
    write_images(tmp_path / "flat", {"": 12})
    outcome = run("pretrain", "--data", "flat", "--out", "run", *QUICK)
    assert outcome.code == 0
    assert "not scored: the images have no labels" in outcome.out
    assert not Path("run/scores.json").exists()
    assert "no labels, so there is nothing to score" in Path("run/report.html").read_text()


def test_the_engine_that_is_not_installed_is_refused_before_anything_is_read(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    outcome = run("pretrain", "--engine", "dali", "--out", "run", *QUICK)
    assert "pip install 'fastssl[dali]'" in outcome.error()
    assert not Path("run").exists()


def test_corrupt_files_are_counted_and_named(run: Run, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", {"cat": 15, "dog": 15})
    (folder / "cat" / "broken.png").write_bytes(b"not a picture")
    outcome = run("pretrain", "--data", "photos", "--out", "run", *QUICK)
    assert outcome.code == 0
    assert outcome.err.splitlines()[-1] == "skipped 1 that cannot be read, all named in the report"
    assert outcome.err.count("broken.png") == outcome.err.count("'cat/broken.png' cannot be read (not an image") == 1
    assert "cat/broken.png" in Path("run/report.html").read_text()
    outcome = run("evaluate", "run")
    assert outcome.err.splitlines()[-1] == "skipped 1 that cannot be read, named above"
    assert outcome.err.count("broken.png") == 1


def test_files_of_a_compressed_tar_that_cannot_be_read_are_named_at_once_and_counted(run: Run, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", {"cat": 15, "dog": 15})
    (folder / "cat" / "broken.png").write_bytes(b"not a picture")
    with tarfile.open("photos.tar.gz", "w:gz") as archive:
        archive.add("photos")
    outcome = run("pretrain", "--data", "photos.tar.gz", "--out", "run", *QUICK)
    assert outcome.code == 0
    assert outcome.err.count("skipped") == 1
    assert "skipped 1 that cannot be read:\n  photos/cat/broken.png: not an image" in outcome.err


def test_without_a_report_all_files_that_cannot_be_read_are_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(tmp_path / "photos", {"cat": 15, "dog": 15})
    for i in range(7):
        (folder / "cat" / f"broken{i}.png").write_bytes(b"not a picture")
    with tarfile.open("photos.tar.gz", "w:gz") as archive:
        archive.add("photos")
    words = "pretrain", "--data", "photos.tar.gz", "--max_skipped", 0.5, "--out", "run", *QUICK
    outcome = run(*words)
    assert (outcome.code, outcome.err.count("broken")) == (0, 5)
    assert "  and 2 more, all named in the report\n" in outcome.err
    monkeypatch.setattr("fastssl.report._NEEDS", ("no_such_module",))
    for without in (run(*words, "--overwrite"), run("report", "run")):
        assert (without.err.count("broken"), "named in the report" in without.err) == (7, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["simclt"], "unknown method 'simclt': did you mean 'simclr'?"),
        (["--encoder", "resnet17"], "unknown encoder 'resnet17': did you mean 'resnet"),
        (["--data", "clipar"], "unknown data set 'clipar': did you mean 'clipart'?"),
        (["--views", "simcl"], "unknown view plan 'simcl': did you mean 'simclr'?"),
        (["--optim.name", "sdg"], "unknown --optim.name 'sdg': did you mean 'sgd'?"),
        (["--epoch", "3"], "unknown option '--epoch': did you mean '--epochs'?"),
        (["--stem", "cifer"], "unknown --stem 'cifer': did you mean 'cifar'?"),
        (["--depth", "many"], "--depth must be of type int or null; got many"),
        (["--depth", "2"], "resnet18 has no depth, which was set to 2; its options are stem, width"),
        (["mae", "--encoder", "resnet18"], "MAE hides patches, which a ResNet does not have: give it a vit_*"),
        (["mae", "--patch_size", "5"], "patches of 5 pixels do not fill images of 16 x 16"),
        (["--data", "few", "--image_size", "many"], "--image_size must be of type int; got many"),
        (["--seed", "many"], "--seed must be of type int; got many"),
        (["--seed", "4294967296"], "seed must be at most 4294967295"),
        (["--data", "few", "--device", "meta"], "unknown device 'meta': give --device auto, cpu, cuda or cuda:N"),
        (["--lr", "3"], "unknown option '--lr': did you mean '--optim.lr'?"),
        (["--plan.blurr", "0"], "unknown option '--plan.blurr': did you mean '--plan.blur'?"),
        (["--plan.local.blur", "0"], "unknown option '--plan.local.blur'"),
        (["--blur", "0"], "unknown option '--blur': did you mean '--plan.blur'?"),
        (["--plan.blur", "2"], "plan.blur must be a probability in [0, 1]; got 2.0"),
        (["--plan.blur", "often"], "--plan.blur must be of type float; got often"),
        (["--plan.crop_scale", "0.5"], "--plan.crop_scale: expected 2 arguments"),
        (["--plan.interpolation", "nearest"], "unknown --plan.interpolation 'nearest'"),
        (["--plan.views", "3"], "the plan makes 3 views of each image, the method 'simclr' takes 2"),
        (
            ["--views", "byol", "--plan.second.interpolation", "bicubic"],
            "cannot be set by itself: set plan.interpolation",
        ),
        (["--plan.lokal.views", "3"], "unknown option '--plan.lokal.views': did you mean '--plan.views'?"),
        (["--sharpness", "3"], "unknown option '--sharpness': see --help"),
        (
            ["--data", "few", "--views", "byol", "--plan.second.size", "8"],
            "SimCLR takes views of one size alone; got 8 and 16",
        ),
        (["--optim.lr", "nan"], "--optim.lr must be a finite number; got nan"),
        (["--optim", "nope.yaml"], "--optim 'nope.yaml' is no YAML file of settings: give one, or set --optim.name"),
        (["--data", "few", "--out", "few/cat/0.png/x"], "cannot write few/cat/0.png/x: Not a directory"),
        (["--data", "few", "--out", "/proc/x"], "cannot write /proc/x: "),
        (["--seed", "-1"], "seed must be 0 or more; got -1"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--data"], "--data: expected one argument"),
        (["--resume=3"], "--resume: ignored explicit argument '3'"),
        (["--simclr.temperature", "0"], "temperature"),
        (["--simclr.temperature", "nan"], "temperature"),
        (["--simclr.temperature", ".nan"], "temperature"),
        (["--config", "missing.yaml"], "cannot read the config missing.yaml: No such file"),
        (["--resume"], "runs/simclr-clipart holds no finished or interrupted run"),
        (["--out", "missing", "--resume"], "missing holds no finished or interrupted run"),
        (["simclr", "again"], "unexpected word 'again'"),
        (["--data", "missing/"], "no file or folder 'missing/'"),
        (["--data", "nowhere"], "no file or folder 'nowhere': check the path, or give 'clipart' for embedded images"),
        (["--data", "empty"], "no image in 'empty'"),
        (["--data", "unreadable"], "no readable image in 'unreadable'"),
        (["--data", "single"], "1 training image: training needs at least 2"),
        (["--data", "few"], "a batch of 8 is larger than the data set of"),
        (["--data", "few", "--device", "toaster"], "unknown device 'toaster'"),
        (["--data", "few", "--out", "few/cat/0.png"], "few/cat/0.png is a file: give a folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words: list[str], message: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "few", {"cat": 4, "dog": 4})
    write_images(tmp_path / "single", {"": 1})
    write_images(tmp_path / "unreadable", {"cat": 1})
    (tmp_path / "unreadable" / "cat" / "0.png").write_bytes(b"not a picture")
    before = sorted(tmp_path.rglob("*"))
    outcome = run("pretrain", *words, *(QUICK if words[-1] not in ("--epochs", "--data") else []))
    assert message in outcome.error()
    assert sorted(tmp_path.rglob("*")) == before


def test_more_threads_than_the_processors_can_serve_are_refused(photos: Path, run: Run, tmp_path: Path) -> None:
    outcome = run("pretrain", "--data", photos, *QUICK, "--threads", "100000")
    assert "threads 100000 are too many for the" in outcome.error()
    assert not (tmp_path / "runs").exists()


def test_a_run_in_the_folder_is_kept_unless_asked(done: Path, photos: Path, run: Run) -> None:
    before = (done / "checkpoint.pt").read_bytes()
    outcome = run("pretrain", "--data", photos, "--out", done, *QUICK)
    assert "holds a run: --resume continues it, --overwrite replaces it" in outcome.error()
    assert "other settings (seed: 0 -> 1)" in run("pretrain", "--out", done, "--resume", "--seed", "1").error()
    assert (done / "checkpoint.pt").read_bytes() == before


def test_without_the_extra_the_run_is_saved(photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastssl.report._NEEDS", ("matplotlib", "no_such_module"))
    outcome = run("pretrain", "--data", photos, "--out", "run", *QUICK)
    assert outcome.code == 0
    hint = "no report: drawing it needs no_such_module: pip install 'fastssl[report]', then: fastssl report run"
    assert hint in outcome.err.splitlines()
    assert Path("run/scores.json").exists()
    assert not Path("run/report.html").exists()
    assert "pip install 'fastssl[report]'" in run("report", "run").error()


def start(*words: object, limit: int | None = None) -> subprocess.Popen[str]:
    """The command in a process of its own; a file of more than ``limit`` bytes fails, as on a full disk."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "fastssl", "pretrain", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limited,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_ctrl_c_then_resume_equals_a_run_that_was_not_stopped(
    photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastssl.report._NEEDS", ("no_such_module",))  # the report is not what is tested
    words = ["--data", photos, *QUICK, "--epochs", "40", "--eval_every", "0"]
    process = start(*words, "--out", "stopped")
    metrics = RunFolder(Path("stopped")).metrics
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 4):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "go on with: fastssl pretrain --out stopped --resume" in err.splitlines()[-1]
    assert not checkpoints.load(RunFolder(Path("stopped")).checkpoint).finished

    assert run("pretrain", "--out", "stopped", "--resume").code == 0
    assert run("pretrain", *words, "--out", "whole").code == 0
    stopped, whole = (RunFolder(Path(name)) for name in ("stopped", "whole"))
    a, b = checkpoints.load(stopped.checkpoint).model, checkpoints.load(whole.checkpoint).model
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [(r.step, r.loss) for r in log.read(stopped.metrics)] == [(r.step, r.loss) for r in log.read(whole.metrics)]
    assert stopped.scores.read_text() == whole.scores.read_text()


def test_a_full_disk_is_one_line(photos: Path, run: Run) -> None:
    process = start("--data", photos, *QUICK, "--out", "full", limit=100_000)
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith("error: cannot write full/checkpoint.pt: ")
    assert "Traceback" not in err
    assert not Path("full").exists()


def test_two_runs_cannot_write_to_one_folder(photos: Path, run: Run) -> None:
    process = start("--data", photos, *QUICK, "--epochs", "1000", "--eval_every", "0", "--out", "shared")
    metrics = RunFolder(Path("shared")).metrics
    while process.poll() is None and not metrics.exists():
        time.sleep(0.01)
    for how in ("--resume", "--overwrite"):
        outcome = run("pretrain", "--data", photos, "--out", "shared", *QUICK, how)
        assert "another process is writing a run to shared: wait until it ends" in outcome.error()
    process.kill()
    process.communicate()
    assert run("pretrain", "--data", photos, "--out", "shared", "--overwrite", *QUICK).code == 0
    assert len(log.read(metrics)) == 6
    assert not (Path("shared") / ".lock").exists()


def test_stopped_while_it_is_scored_it_says_how_to_go_on(
    photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fastssl.cli.pretrain.score", interrupted)
        outcome = run("pretrain", "--data", photos, "--out", "a run", *QUICK)
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "interrupted; go on with: fastssl pretrain --out 'a run' --resume"
    outcome = run("pretrain", "--out", "a run", "--resume")
    assert outcome.code == 0
    assert "all 2 epochs are trained already" in outcome.err
    assert Path("a run/scores.json").exists()


def test_a_lack_of_memory_is_one_line(photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fastssl.data.reading._memory", lambda: 1e6)
        told = run("pretrain", "--data", photos, "--image_size", "1000", "--no_cache").error()
    assert "GiB of memory, this machine has" in told
    assert "image_size must be at most 32768; got 40000" in run("pretrain", "--image_size", "40000").error()

    def greedy(*_: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr("fastssl.cli.pretrain._finish", greedy)
    assert "give a smaller --batch_size" in run("pretrain", "--data", photos, "--out", "run", *QUICK).error()
