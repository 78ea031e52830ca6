"""A report to draw."""

from __future__ import annotations

import json

import pytest

from tests.report.pages import EXAMPLE


@pytest.fixture
def example() -> dict:
    return json.loads(EXAMPLE.read_text(encoding="utf-8"))
