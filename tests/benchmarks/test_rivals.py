"""Other libraries: what is said of one that is missing."""

from __future__ import annotations

import re
import sys

import pytest

from benchmarks import rivals


def test_a_missing_rival_is_named_and_so_is_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rivals.PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(
        rivals.NotInstalledError, match=r"no-such-package is not installed \(python -m benchmarks.rival"
    ):
        rivals.load("no_such_module.loss")
    assert rivals.versions()["no-such-package"] == "not installed"


def test_what_a_rival_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "rival_of_a_test.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(rivals.PACKAGES, "rival_of_a_test", "its-package")
    with pytest.raises(
        rivals.NotInstalledError, match="its-package is not installed: No module named 'no_such_module'"
    ):
        rivals.load("rival_of_a_test")
    assert "rival_of_a_test" not in sys.modules


def test_every_rival_has_a_pinned_version() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", rivals.REQUIREMENTS.read_text(), re.MULTILINE))
    assert set(rivals.PACKAGES.values()) <= set(pinned)
    assert "torch" not in pinned
