"""No method's numbers move unnoticed: neither by a change of its code, nor by one of a library. See canary.py."""

import json

import canary
import pytest

KEPT = json.loads(canary.FILE.read_text())


@pytest.mark.parametrize("method", canary.METHODS)
def test_numbers_are_those_committed(method):
    assert method in KEPT, "a new method: python tests/canary.py"
    found = canary.numbers(method)
    assert found.keys() == KEPT[method].keys()
    for key, value in found.items():
        expected = KEPT[method][key]
        assert canary.moved(expected["is"], value) <= expected["within"], (
            f"{method}: {key} is {value}, it was {expected['is']}: if that is meant, count the method up in "
            f"analysis/revisions.py, and run python tests/canary.py"
        )


@pytest.mark.parametrize("method", canary.METHODS)
def test_rounding_explains_little(method):
    """Some numbers of some methods hang on a sign or a rank; no method's all do."""
    assert sum(expected["within"] <= 0.05 for expected in KEPT[method].values()) >= 2
