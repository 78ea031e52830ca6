"""The page: one self-contained HTML file, drawn from what `report.json` holds. A part that it
lacks is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mirabelle.report import comparison
from mirabelle.report.schema import Report
from mirabelle.report.sections.changed import changed
from mirabelle.report.sections.channels import channels
from mirabelle.report.sections.data import data
from mirabelle.report.sections.downloads import downloads
from mirabelle.report.sections.front import front
from mirabelle.report.sections.headline import headline
from mirabelle.report.sections.layers import layers
from mirabelle.report.sections.method import how_measured
from mirabelle.report.sections.profile import profile
from mirabelle.report.sections.quantization import quantization
from mirabelle.report.sections.recipe import recipe
from mirabelle.report.sections.sparsity import break_even, sparsity
from mirabelle.report.sections.stages import before_after, trade_off
from mirabelle.report.sections.steps import steps
from mirabelle.report.sections.training import training
from mirabelle.report.sections.verification import verification
from mirabelle.report.style import CSS, SCRIPT
from mirabelle.report.svg import element, escape


def render(found: dict) -> str:
    """The whole page. It loads nothing: no script, font, image or stylesheet from elsewhere; all
    text of the report is escaped. Its own script only sorts and searches tables: without it
    everything is there to read.

    found: what `report.json` holds.
    """
    report = Report.of(found)
    title = report.title or "a run"
    parts = [
        front(report),
        steps(report),
        before_after(report),
        trade_off(report),
        layers(report),
        channels(report.channels),
        sparsity(report.sparsity.layers, report.forms),
        break_even(report.break_even),
        quantization(report.quantization),
        verification(report.verification),
        profile(report),
        training(report.training),
        changed(report),
        data(report),
        downloads(report),
        how_measured(report),
        recipe(report.recipe, bool(report.search)),
    ]
    body = [p for p in parts if p]
    foot = "The same figures, unrounded, are in report.json beside this page."
    return page(report.mirabelle, title, [headline(report), contents(body), *body], foot)


def render_comparison(found: Sequence[tuple[str, dict]]) -> str:
    """Two or more runs side by side, on a page of the same kind.

    found: (name, report), the report as `report.json` has it.
    """
    runs = [(name, Report.of(report)) for name, report in found]
    body = comparison.sections(runs)
    title = " and ".join(name for name, _ in runs)
    parts = [comparison.opening(runs), contents(body), *body]
    return page(runs[0][1].mirabelle if runs else None, title, parts, "")


def page(written_by: str | None, title: str, parts: list[str], foot: str) -> str:
    """Everything around the parts."""
    version = escape(written_by or "")
    name = escape(title)
    written = " ".join(p for p in (f"Written by Mirabelle {version}.", foot) if p)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta '
        'name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{name} · '
        f"Mirabelle</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n<h1><b>Mirabelle</b> · {name}</h1>\n"
        + "\n".join(parts)
        + f"\n</main>\n<footer>{written}</footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def contents(sections: list[str]) -> str:
    """Links to the sections, from their own headings."""
    found = [re.match(r'<section id="([a-z0-9-]+)"><h2>(.*?)</h2>', s) for s in sections]
    links = [element("li", element("a", m[2], href=f"#{m[1]}")) for m in found if m]
    if len(links) < 2:
        return ""
    return element("nav", element("ul", *links), class_="contents", aria_label="contents")
