"""The page: one self-contained HTML file, drawn from the dict that `report.json` holds. A part that
the dict lacks is left out.
"""

from __future__ import annotations

from mirabelle.report.parts import child, items
from mirabelle.report.sections.channels import channels
from mirabelle.report.sections.headline import headline
from mirabelle.report.sections.method import how_measured
from mirabelle.report.sections.profile import profile
from mirabelle.report.sections.quantization import quantization
from mirabelle.report.sections.recipe import recipe
from mirabelle.report.sections.sparsity import break_even, sparsity
from mirabelle.report.sections.stages import before_after, trade_off
from mirabelle.report.sections.training import training
from mirabelle.report.sections.verification import verification
from mirabelle.report.style import CSS
from mirabelle.report.svg import escape


def render(report: dict) -> str:
    """The whole page. It loads nothing: no script, font, image or stylesheet from elsewhere; all
    text of `report` is escaped.
    """
    title = report.get("title") or "a run"
    parts = [
        headline(report),
        before_after(report),
        trade_off(items(report, "stages")),
        channels(items(report, "channels")),
        sparsity(items(child(report, "sparsity"), "layers"), child(report, "forms")),
        break_even(child(report, "break_even")),
        quantization(child(report, "quantization")),
        verification(items(report, "verification")),
        profile(child(report, "profile")),
        training(items(report, "training")),
        how_measured(report),
        recipe(report.get("recipe")),
    ]
    version = escape(report.get("mirabelle") or "")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta '
        'name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)} · '
        f"Mirabelle</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n<h1><b>Mirabelle</b> · {escape(title)}</h1>\n"
        + "\n".join(p for p in parts if p)
        + "\n</main>\n"
        f"<footer>Written by Mirabelle {version}. The same figures, unrounded, are in "
        "report.json beside this page.</footer>\n</body>\n</html>\n"
    )
