"""The report of a run: `report.json` is the truth, `report.html` one self-contained page drawn from
it.
"""

from __future__ import annotations

from pathlib import Path

from mirabelle.base import files
from mirabelle.report.html import render, render_comparison
from mirabelle.report.schema import Report

__all__ = ["render", "render_comparison", "write"]


def write(report: Report, folder: str | Path) -> Path:
    """Writes `report.json` and `report.html` into `folder`, each whole or not at all; returns the
    path of the page.
    """
    page = Path(folder) / "report.html"
    # In the report's own order: runtimes and recipe stand as they were asked for, here and when
    # the page is drawn again from its JSON.
    files.write_json(page.with_suffix(".json"), report.to_dict(), sort_keys=False)
    files.write_text(page, render(files.read_json(page.with_suffix(".json"))))
    return page
