"""What must hold: how limits are read, how points are compared, and which one is best."""

from dataclasses import replace

import pytest

from mirabelle.base.errors import InputError
from mirabelle.compression.front import Point, front
from mirabelle.compression.limits import Goal, sure_of

NOTHING = {"accuracy_drop": None, "latency": None, "size": None, "macs": None, "minimize": None}


def goal(**given):
    return Goal.of({**NOTHING, **given})


def point(latency, drop, half=0.001, **given):
    made = Point(
        trial=0,
        steps=9,
        knobs={},
        plan={"loss": 0.1},
        costs={"latency": latency, "size": 0.2, "macs": 0.4},
        milliseconds=latency,
        bytes=1000,
        macs=1000,
        drop=drop,
        interval=(drop - half, drop + half),
        accuracy=0.9,
        n=100,
        folder=f"{latency}/{drop}",
    )
    return replace(made, **given)


def test_what_is_minimized():
    assert goal(accuracy_drop=0.01).minimize == "latency"
    assert goal(latency=0.3).minimize == "accuracy_drop"
    assert goal(accuracy_drop=0.01, latency=0.5).minimize == "size"
    assert goal(accuracy_drop=0.01, minimize="size").quantity == "size"
    assert goal(latency=0.3, size=0.2).quantity == "latency"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "accuracy_drop=0.005"),
        ({"latency": 0.5, "minimize": "size"}, "how much accuracy"),
        ({"accuracy_drop": 0.01, "minimize": "accuracy_drop"}, "give latency="),
    ],
)
def test_limits_that_say_nothing(given, word):
    with pytest.raises(InputError, match=word):
        goal(**given)


def test_the_cheapest_that_holds():
    points = [point(0.5, 0.0), point(0.3, 0.004), point(0.2, 0.02)]
    wanted = goal(accuracy_drop=0.005)
    assert wanted.best(points, sure=False) is points[1]
    # With the upper end of the interval, 0.005, it still holds; with a wider one it does not.
    wider = [points[0], replace(points[1], interval=(0.0, 0.008)), points[2]]
    assert wanted.best(wider, sure=True) is wider[0]


def test_the_most_accurate_within_a_cost():
    points = [point(0.5, 0.0), point(0.3, 0.004), point(0.2, 0.02), point(0.29, 0.003)]
    assert goal(latency=0.3).best(points, sure=False) is points[3]


def test_where_nothing_holds_the_nearest():
    points = [point(0.5, 0.02), point(0.3, 0.05)]
    wanted = goal(accuracy_drop=0.001)
    assert wanted.best(points, sure=False) is points[0]
    assert wanted.missed(points[0], sure=False) == ["accuracy_drop"]


def test_points_are_compared_by_cost_and_by_how_far_they_miss_the_limit():
    wanted = goal(accuracy_drop=0.005)
    points = [point(0.5, 0.001), point(0.3, 0.004), point(0.1, 0.3)]
    assert min(points, key=wanted.score) is points[1]
    assert wanted.score(points[1]) == pytest.approx(0.3)
    assert wanted.score(points[2]) == pytest.approx(0.1 * (1 + (0.3 - 0.005) / 0.005))


def test_the_data_can_tell_where_intervals_are_narrow():
    wanted = goal(accuracy_drop=0.01)
    assert sure_of(wanted, [point(0.5, 0.001, half=0.004)])
    assert not sure_of(wanted, [point(0.5, 0.001, half=0.02)])
    assert not sure_of(goal(latency=0.5), [point(0.5, 0.001)])


def test_the_front_by_hand():
    points = [point(0.5, 0.0), point(0.3, 0.004), point(0.4, 0.01), point(0.3, 0.01)]
    assert front(points) == [points[1], points[0]]


def test_a_point_survives_json():
    import json

    before = point(0.5, 0.001, knobs={"share": 0.4}, loss=0.1)
    assert Point.of(json.loads(json.dumps(before.to_dict()))) == before
