"""What ``fastssl info`` tells."""

from __future__ import annotations

from importlib import metadata

import pytest

from fastssl import info
from fastssl.cli import main
from fastssl.ops import _native
from fastssl.ops._backend import ops


def test_every_op_and_every_optional_package_is_told() -> None:
    assert {name for name, device, _ in info.served() if device == "cpu"} == set(ops())
    assert {"fastssl", "torch", "pillow", "C++ kernels", "CUDA kernels", "GPU", *info.OPTIONAL} <= set(info.facts())


def test_a_module_whose_package_has_another_name_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(info.metadata, "version", unknown)
    assert info._optional("sys", "always here") == "installed"
    assert info._optional("no_such_module", "its purpose") == "not installed: its purpose"
    assert info._optional("no_such_package.module", "its purpose") == "not installed: its purpose"


def test_of_data_packages_the_versions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"nvidia-dali-cuda120": "2.4.0", "av": "18.1"}
    monkeypatch.setattr(info, "find_spec", lambda name: name)

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(info.metadata, "version", version)
    told = info.facts()
    assert (told["nvidia.dali"], told["av"], told["webdataset"]) == ("2.4.0", "18.1", "installed")


def test_each_ops_backends_are_told_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {name: (there, why) for name, device, there, why in info.backends() if device == "cpu"}
    assert set(rows) == set(ops())
    there, why = rows["nt_xent"]
    assert there.split() == [name for name in ("triton", "cpu", "reference") if name in info.present()]
    assert why.startswith("cpu (not triton: ")
    assert main(["info", "--ops"]) == 0
    assert there in capsys.readouterr().out
    assert main(["info"]) == 0
    assert there not in capsys.readouterr().out


def test_a_backend_that_is_not_here_is_not_told_as_an_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(op: str) -> str:
        return next(there for name, device, there, _ in info.backends() if (name, device) == (op, "cpu"))

    monkeypatch.setattr(info, "find_spec", lambda name: object())
    assert told("nt_xent") == "triton cpu reference"
    monkeypatch.setattr(info, "find_spec", lambda name: None)
    assert told("nt_xent") == "cpu reference"
    for module in ("cuda", "cpu"):
        monkeypatch.setattr(_native, module, None)
        monkeypatch.setattr(_native, f"{module.upper()}_MISSING", "not built")
    assert told("nt_xent") == told("ema_update_") == "reference"


def test_a_module_that_was_built_is_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cuda", "cpu"):
        monkeypatch.setattr(_native, module, object())
        assert module in info.present()
