"""Test pictures whose class changed."""

from __future__ import annotations

from mirabelle.report import units
from mirabelle.report.parts import child, items, runtime_name, section
from mirabelle.report.sections.data import picture
from mirabelle.report.svg import element, escape
from mirabelle.report.units import number


def changed(report: dict) -> str:
    """The first test pictures to which the result's network gives another class than the original,
    before → after, and how many there are; nothing for data that are no pictures.
    """
    found = child(report, "changed")
    drawn = [_figure(e) for e in items(found, "examples")]
    drawn = [d for d in drawn if d]
    if not drawn:
        return ""
    note = f"{_counted(found)} The first {len(drawn)} are shown as the network sees them."
    if not found.get("colors"):
        note += " Black is the smallest value of a picture, white the largest."
    return section("Examples that changed class", note, element("div", *drawn, class_="examples"))


def _counted(found: dict) -> str:
    """How many changed, and what that was worth."""
    count, n = number(found.get("changed")), number(found.get("n"))
    where = f"on {runtime_name(found['runtime'])} " if found.get("runtime") else ""
    if count is None or not n:
        return ""
    text = (
        f"{units.digits(count)} of {units.digits(n)} test pictures "
        f"({units.percent(count / n)}) have another class {where}than with the original network"
    )
    gained, lost = number(found.get("gained")), number(found.get("lost"))
    if gained is not None and lost is not None:
        text += f": {units.digits(gained)} became right, {units.digits(lost)} wrong"
        if rest := count - gained - lost:
            text += f", {units.digits(rest)} wrong both times"
    return f"{text}."


def _figure(example: dict) -> str:
    before, after = (str(example.get(k)) for k in ("before", "after"))
    index, label = number(example.get("index")), example.get("label")
    name = f"test picture {units.digits(index)}" if index is not None else "test picture"
    drawn = picture(example.get("picture"), f"{name}, {before} before, {after} after")
    if not drawn or example.get("before") is None or example.get("after") is None:
        return ""
    parts = [element("b", escape(f"{before} → {after}"))]
    if label is not None:
        right = "right after" if label == example.get("after") else ""
        right = right or ("right before" if label == example.get("before") else "wrong both times")
        parts.append(element("small", escape(f"label {label}: {right}")))
    return element("figure", drawn, element("figcaption", *parts))
