"""The data, and pictures whose class changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mirabelle.report.schema.part import Part


@dataclass(frozen=True)
class Example(Part):
    """A test picture whose class changed."""

    index: float | None
    before: Any
    after: Any
    label: Any
    picture: str | None


@dataclass(frozen=True)
class Changed(Part):
    stage: str | None
    runtime: str | None
    changed: float | None
    n: float | None
    gained: float | None
    lost: float | None
    colors: bool | None
    examples: list[Example]


@dataclass(frozen=True)
class Preprocessing(Part):
    layout: str | None


@dataclass(frozen=True)
class Answers(Part):
    """What the float network said of pictures as they are brought to it."""

    pictures: float | None
    right: float | None
    steady: float | None
    warnings: list[Any]


@dataclass(frozen=True)
class Sheet(Part):
    picture: str | None
    captions: list[Any]


@dataclass(frozen=True)
class Data(Part):
    text: str | None
    made_up: str | None
    pictures: str | None
    preprocessing: Preprocessing
    check: Answers
    sheet: Sheet
    name: str | None
