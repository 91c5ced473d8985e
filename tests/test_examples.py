"""The examples in the docstrings of the method's packages do what they say; what `import sqlib` offers is there."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch

import sqlib

METHOD = ("quant", "networks", "maps", "measures", "training")
MODULES = [
    module.name
    for package in METHOD
    for module in pkgutil.iter_modules([f"{sqlib.__path__[0]}/{package}"], f"sqlib.{package}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    torch.manual_seed(0)
    found = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not found.failed


def test_every_public_name_is_there_and_its_docstring_has_an_example():
    without = []
    for name in sqlib.__all__:
        value = getattr(sqlib, name)
        assert name in dir(sqlib)
        if callable(value) and value.__module__.split(".")[1] in METHOD and ">>>" not in value.__doc__:
            without.append(name)
    assert not without
    with pytest.raises(AttributeError, match="module 'sqlib' has no attribute 'quantize_'"):
        _ = sqlib.quantize_


def test_the_lines_that_the_package_opens_with():
    lines = [line[4:] for line in sqlib.__doc__.splitlines() if line.startswith("    ")]
    assert len(lines) >= 10
    exec("\n".join(lines), {})


def test_to_import_the_package_imports_no_torch():
    code = "import sys, sqlib; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": sqlib.__path__[0].rpartition("/")[0]})
