"""Finds the reference folder and hands each test the entries in it: no test knows a file's values beforehand."""

import os
from pathlib import Path

import pytest
import torch

from . import vectors


def reference_folder(config) -> Path:
    given = config.getoption("reference") or os.environ.get("BACKPRUNE_REFERENCE")
    return Path(given) if given else Path(__file__).parents[3] / "shared" / "reference"


def pytest_generate_tests(metafunc):
    root = reference_folder(metafunc.config)
    for argument, find in vectors.KINDS.items():
        if argument in metafunc.fixturenames:
            found = find(root) if root.is_dir() else [None]
            skip = pytest.mark.skip(reason=f"{root} holds nothing for this test.")
            metafunc.parametrize(argument, found or [pytest.param(None, marks=skip)], ids=str)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Without the folder of vectors a test skips, but fails where CI=true."""
    root = reference_folder(pyfuncitem.config)
    if not root.is_dir():
        sentence = f"There is no reference folder at {root}: name one with --reference=DIR or BACKPRUNE_REFERENCE."
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(sentence)


@pytest.fixture
def reference(request) -> Path:
    return reference_folder(request.config)


@pytest.fixture(autouse=True)
def one_thread():
    """The vectors were computed on one thread; more of them add up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
