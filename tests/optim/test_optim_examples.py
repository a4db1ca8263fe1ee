"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import qat_vsam.optim

MODULES = [m.name for m in pkgutil.walk_packages(qat_vsam.optim.__path__, "qat_vsam.optim.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
