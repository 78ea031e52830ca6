"""Numbers are written for people."""

from __future__ import annotations

import pytest

from mirabelle.report import units
from mirabelle.report.sections.verification import exact_share

# Numbers and the recipe


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.size(2480000), "2.48 MB"),
        (units.size(999_600), "1 MB"),
        (units.count(51_600_000), "51.6 M"),
        (units.count(None), "–"),
        (units.milliseconds(0.81), "0.81 ms"),
        (units.milliseconds(1234.5), "1 234 ms"),
        (units.milliseconds(float("nan")), "–"),
        (units.digits(-0.5), "−0.5"),
        (units.digits(3.14e-7), "3.1e−7"),
        (units.points(0.0031), "0.31"),
        (units.seconds(71.2), "71.2 s"),
        (units.seconds(725), "12 min 5 s"),
        (units.seconds(7380), "2 h 03 min"),
        (units.span([0.1, 0.2, None]), "0.1 … 0.2"),
        (units.interval(None, 1.0, units.digits), ""),
        (exact_share(0.999991), "> 99.99 %"),
        (exact_share(1.0), "100.00 %"),
    ],
)
def test_numbers_are_for_people(shown, expected):
    assert shown.replace("\u00a0", " ") == expected
