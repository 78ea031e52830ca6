"""Test pictures whose class changed."""

from __future__ import annotations

from mirabelle.report import units
from mirabelle.report.parts import runtime_name, section
from mirabelle.report.schema import Changed, Example, Report
from mirabelle.report.sections.data import picture
from mirabelle.report.svg import element, escape
from mirabelle.report.units import number


def changed(report: Report) -> str:
    """The first test pictures to which the result's network gives another class than the original,
    before → after, and how many there are; nothing for data that are no pictures.
    """
    found = report.changed
    drawn = [_figure(e) for e in found.examples]
    drawn = [d for d in drawn if d]
    if not drawn:
        return ""
    note = f"{_counted(found)} The first {len(drawn)} are shown as the network sees them."
    if not found.colors:
        note += " Black is the smallest value of a picture, white the largest."
    return section("Examples that changed class", note, element("div", *drawn, class_="examples"))


def _counted(found: Changed) -> str:
    """How many changed, and what that was worth."""
    count, n = number(found.changed), found.n
    where = f"on {runtime_name(found.runtime)} " if found.runtime else ""
    if count is None or not n:
        return ""
    text = (
        f"{units.digits(count)} of {units.digits(n)} test pictures "
        f"({units.percent(count / n)}) have another class {where}than with the original network"
    )
    gained, lost = found.gained, found.lost
    if gained is not None and lost is not None:
        text += f": {units.digits(gained)} became right, {units.digits(lost)} wrong"
        if rest := count - gained - lost:
            text += f", {units.digits(rest)} wrong both times"
    return f"{text}."


def _figure(example: Example) -> str:
    before, after = str(example.before), str(example.after)
    index, label = example.index, example.label
    name = f"test picture {units.digits(index)}" if index is not None else "test picture"
    drawn = picture(example.picture, f"{name}, {before} before, {after} after")
    if not drawn or example.before is None or example.after is None:
        return ""
    parts = [element("b", escape(f"{before} → {after}"))]
    if label is not None:
        right = "right after" if label == example.after else ""
        right = right or ("right before" if label == example.before else "wrong both times")
        parts.append(element("small", escape(f"label {label}: {right}")))
    return element("figure", drawn, element("figcaption", *parts))
