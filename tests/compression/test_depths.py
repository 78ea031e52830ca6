"""Where to cut next, against what can be worked out by hand."""

import math

import numpy as np
import pytest

from mirabelle.compression.depths import (
    FIRST,
    REACH,
    STEP,
    UNTRAINED,
    Depths,
    Seen,
    bracket,
    first_depth,
    next_depth,
)

ENDS = (math.log(0.001), math.log(1.5))


def seen(*pairs):
    return [Seen(math.log(loss), drop) for loss, drop in pairs]


def test_a_depth_is_the_logarithm_of_the_loss_and_back():
    depths = Depths.of(lambda share: 0.01 / share**2, 0.1, 0.9)
    for share in (0.1, 0.3, 0.9):
        assert depths.depth(share) == pytest.approx(math.log(0.01 / share**2), abs=0.02)
        assert depths.share(depths.depth(share)) == pytest.approx(share, rel=0.02)
    assert depths.ends == (depths.depth(0.9), depths.depth(0.1))


def test_losses_that_fall_by_chance_are_taken_as_level():
    """A deeper plan that loses less than a shallower one is that of a knapsack that found more."""
    depths = Depths.of(lambda share: 0.3 if 0.3 < share < 0.4 else 0.1 / share, 0.1, 0.9)
    assert all(a >= b for a, b in zip(depths.losses, depths.losses[1:]))


def test_the_first_depth_is_deeper_for_a_wider_limit_and_more_training():
    assert first_depth(0.005, 400, ENDS) == pytest.approx(math.log(FIRST))
    assert first_depth(0.02, 9000, ENDS) == pytest.approx(math.log(2 * FIRST))
    assert first_depth(0.005, 100, ENDS) == pytest.approx(math.log(FIRST / 2))
    assert first_depth(0.005, 0, ENDS) == pytest.approx(math.log(UNTRAINED * FIRST))
    assert first_depth(0.9, 400, (-3.0, -2.5)) == -2.5


def test_the_limit_lies_between_what_holds_and_what_does_not():
    points = seen((0.1, 0.001), (0.2, 0.003), (0.4, 0.02), (0.8, 0.1))
    assert bracket(points, 0.005) == (math.log(0.2), math.log(0.4))
    assert bracket(points[:1], 0.005) == (math.log(0.1), None)
    assert bracket(points[2:], 0.005) == (None, math.log(0.4))


def test_the_drop_is_taken_as_proportional_to_the_loss():
    """Half of the limit was lost at 0.1: at 0.2 it is the limit."""
    depth = next_depth(seen((0.1, 0.0025)), 0.005, 0.0, ENDS)
    assert depth == pytest.approx(math.log(0.2))


def test_it_goes_no_further_than_it_can_see():
    assert next_depth(seen((0.1, 0.0)), 0.005, 0.0, ENDS) == pytest.approx(math.log(0.1) + REACH)
    far = next_depth(seen((0.1, 0.5)), 0.005, 0.0, ENDS)
    assert far == pytest.approx(math.log(0.1) - REACH)
    near = next_depth(seen((0.1, 0.0049)), 0.005, 0.0, ENDS)
    assert near == pytest.approx(math.log(0.1) + STEP)


def test_between_two_depths_it_stays_between_them():
    points = seen((0.1, 0.001), (0.4, 0.02))
    depth = next_depth(points, 0.005, 0.0, ENDS)
    assert math.log(0.1) < depth < math.log(0.4)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_it_closes_in_on_the_depth_that_just_holds(power):
    """Drops that follow a power of the loss, with noise of a tenth of the limit."""
    draw, limit = np.random.default_rng(0), 0.005
    truth = math.log(0.25)
    points = []
    depth = first_depth(limit, 400, ENDS)
    for _ in range(6):
        drop = limit * math.exp(power * (depth - truth)) + draw.normal(0, 0.1 * limit)
        points.append(Seen(depth, drop))
        depth = next_depth(points, limit, 0.1 * limit, ENDS)
    held, _ = bracket(points, limit)
    assert held is not None and abs(held - truth) < 0.35
