from __future__ import annotations

import sys
from types import ModuleType

import pytest

from fastssl import methods
from fastssl.errors import UserError
from fastssl.methods.simclr import SimCLR


def test_registry_is_the_folder():
    assert "simclr" in methods.names()
    assert "base" not in methods.names()
    assert methods.get("simclr") is SimCLR


def test_unknown_method_offers_the_nearest():
    with pytest.raises(UserError, match="unknown method 'simcrl': did you mean 'simclr'"):
        methods.get("simcrl")
    with pytest.raises(UserError, match="unknown method 'base'"):
        methods.get("base")


def test_a_module_that_only_imports_a_method_is_refused(monkeypatch):
    module = ModuleType("fastssl.methods.simclr")
    module.Method = methods.Method
    monkeypatch.setitem(sys.modules, "fastssl.methods.simclr", module)
    with pytest.raises(TypeError, match="must define exactly one Method; it defines \\[\\]"):
        methods.get("simclr")
