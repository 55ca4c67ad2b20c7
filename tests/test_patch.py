"""Where a patch lies and how large it is."""

import pytest

from bench.attacks.badnets import patch
from bench.errors import UserError


@pytest.mark.parametrize("name", ["square", "random"])
@pytest.mark.parametrize(("side", "size", "distance", "first", "last"), [
    (32, 5, 0, 27, 31), (32, 1, 2, 29, 29), (32, 3, 4, 25, 27), (64, 5, 1, 52, 61), (28, 2, 0, 26, 27),
])  # fmt: skip
def test_size_and_distance(name, side, size, distance, first, last):
    """From 64 pixels on both are doubled."""
    image, mask = patch(name, (3, side, side), distance, 0, size)
    rows, cols = mask[0].nonzero().unbind(1)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (first, last, first, last)
    assert mask[0].sum() == (last - first + 1) ** 2 and ((image > 0) == (mask > 0)).all()


@pytest.mark.parametrize(("size", "distance"), [(9, 0), (5, 4), (0, 0), (3, -1)])
def test_a_patch_that_does_not_fit(size, distance):
    with pytest.raises(UserError, match=rf"attack\.distance={distance} puts a patch of {size} outside the 8x8"):
        patch("square", (3, 8, 8), distance, 0, size)
