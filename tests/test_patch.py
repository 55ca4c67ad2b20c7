"""Where a patch lies and how large it is, and that only what it covers is computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.attacks.ablend import PieceBlend
from bench.attacks.badnets import patch
from bench.attacks.base import Trigger
from bench.attacks.patterns import Overlay
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


def test_what_is_left_over_beside_the_pieces_is_blended():
    """10x14 pixels in 3x3 pieces of 3x4: the last row and the last two columns belong to none. Piece 1 is in row 1, column 0."""
    trigger = PieceBlend(torch.zeros(3, 10, 14), 0.5, 0.5, pieces=9, mask_rate=0.2, num_classes=10, target=0)
    kept = trigger.kept(torch.tensor([[1], [8]]), 10, 14)[:, 0]
    expected = torch.ones(2, 10, 14)
    expected[0, 3:6, 0:4] = expected[1, 6:9, 8:12] = 0
    assert kept.equal(expected)


@given(
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    alpha=st.sampled_from([0.1, 0.2, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    rounding=st.sampled_from(["truncate", "nearest"]),
)
def test_what_the_mask_leaves_out_is_not_computed_and_nothing_differs(seed, share, alpha, dtype, rounding):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (5, 3, 9, 9), generator=rng, dtype=torch.uint8)
    mask = torch.rand(1, 9, 9, generator=rng, dtype=torch.float64)
    mask[torch.rand(1, 9, 9, generator=rng) >= share] = 0
    trigger = Overlay(torch.randint(256, (3, 9, 9), generator=rng), mask, alpha, 10, 0, "all2one")
    trigger.dtype, trigger.rounding = dtype, rounding
    given_away = x.clone()
    assert trigger.stamp(x).equal(Trigger.stamp(trigger, x)) and x.equal(given_away)


def test_as_many_pieces_are_taken_away_as_in_the_authors_code():
    """round(), and not what is left of the point: 5 of 16 at 0.3."""
    made = [PieceBlend(torch.zeros(3, 8, 8), 0.5, 0.5, 16, rate, num_classes=10, target=0) for rate in (0.3, 0.5)]
    assert [trigger.draw(2, 0)[0].shape[1] for trigger in made] == [5, 8]
