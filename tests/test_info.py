"""What ``fastssl info`` tells."""

from __future__ import annotations

from importlib import metadata

import pytest

from fastssl import info
from fastssl.cli import main
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
    assert there == "triton cpu reference"
    assert why.startswith("cpu (not triton: ")
    assert main(["info", "--ops"]) == 0
    assert "triton cpu reference" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "triton cpu reference" not in capsys.readouterr().out
