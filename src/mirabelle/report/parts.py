"""What several sections share: reading the dict without trusting it, names, tables and folds."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from mirabelle.report import charts, units
from mirabelle.report.charts import marker
from mirabelle.report.schema import Report, Score
from mirabelle.report.svg import element, escape
from mirabelle.report.units import DASH

RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-mobile": "ONNX Runtime (mobile format)",
    "openvino": "OpenVINO",
    "litert": "LiteRT",
    "executorch": "ExecuTorch",
    "mnn": "MNN",
    "torch": "PyTorch",
    "tensorrt": "TensorRT",
    "onnxruntime-cuda": "ONNX Runtime (CUDA)",
    "onnxruntime-tensorrt": "ONNX Runtime (TensorRT)",
}
METRICS = {"top1": "top-1 accuracy", "top5": "top-5 accuracy"}


def texts(values: Any) -> list[str]:
    """The entries of a list as text, without those that are null."""
    return [str(v) for v in values if v is not None] if isinstance(values, (list, tuple)) else []


def runtime_name(name: Any) -> str:
    return RUNTIMES.get(str(name), str(name))


def metric_name(report: Report) -> str:
    """The metric's name for people, from the first accuracy that names one."""
    for stage in report.stages:
        for figures in stage.runtimes.values():
            if name := figures.accuracy.metric:
                return METRICS.get(str(name), str(name))
    return "accuracy"


def show_value(score: Score, value: Any) -> str:
    """A figure in the score's own kind: a percentage where samples count 0 or 1, else plain."""
    return units.digits(value, 4) if score.binary is False else units.percent(value)


def show_score(score: Score) -> tuple[str, str]:
    """A score as (figure, small print with the interval and n)."""
    places = (
        (lambda v: units.digits(v, 4)) if score.binary is False else (lambda v: f"{100 * v:.2f}")
    )
    n = f"n = {units.digits(score.n)}" if score.n is not None else ""
    return show_value(score, score.value), " ".join(
        p for p in (units.interval(score.low, score.high, places), n) if p
    )


def anchor(title: str) -> str:
    """The name under which the contents lead to a section."""
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))


def section(title: str, note: str, *body: str) -> str:
    """A titled section with an anchor, or nothing where its body is empty."""
    content = "".join(body)
    if not content:
        return ""
    return element(
        "section",
        element("h2", escape(title)),
        element("p", escape(note), class_="note") if note else "",
        content,
        id=anchor(title),
    )


def fold(title: str, note: str, body: str, is_open: bool) -> str:
    """A group that opens and closes; nothing where its body is empty."""
    if not body:
        return ""
    summary = element("summary", escape(title), " ", element("small", escape(note)))
    return element("details", summary, body, open="" if is_open else None)


Cell = tuple[str, str] | tuple[str, str, float | None]


def table(
    head: tuple[str, ...],
    rows: Sequence[Sequence[Cell]],
    mark_last: bool = False,
    words: Collection[str] = (),
    sortable: bool = False,
    name: str = "",
) -> str:
    """A table in a container that scrolls by itself; on a narrow page every row is a card. Cells
    are (figure, small print) and, where a column is sorted by number, that number; columns of
    dashes are left out.

    mark_last: tint the last row. words: the heads of columns of prose. sortable: the script of the
    page makes its heads sort and its rows searchable; without it the table is as it is. name: what
    a screen reader says of it; several tables of a page need names that differ.
    """
    kept = [i for i in range(len(head)) if i == 0 or any(r[i][0] not in ("", DASH) for r in rows)]
    if not rows:
        return ""
    titles = "".join(
        element("th", escape(head[i]), scope="col", class_="words" if head[i] in words else None)
        for i in kept
    )
    body = []
    for r, row in enumerate(rows):
        cells = "".join(_cell(head[i], row[i], head[i] in words, i == 0) for i in kept)
        body.append(
            element("tr", cells, class_="best" if mark_last and r == len(rows) - 1 else None)
        )
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", titles)),
            element("tbody", *body),
            class_="cards sortable" if sortable else "cards",
        ),
        class_="wide",
        tabindex=0,
        role="region",
        aria_label=name or f"table of each {head[0]}",
    )


def _cell(head: str, cell: Cell, words: bool, first: bool) -> str:
    """The first cell of a row names it; others carry their head, which cards show."""
    return element(
        "th" if first else "td",
        escape(cell[0]),
        element("small", escape(cell[1])) if cell[1] else "",
        class_="words" if words else None,
        scope="row" if first else None,
        data_head=None if first or not cell[0] else head,
        data_v=cell[2] if len(cell) == 3 else None,
    )


def listing(rows: list[tuple[str, str]]) -> str:
    """Names and what they stand for; nothing where there are none."""
    return (
        element("dl", *(element("dt", escape(k)) + element("dd", escape(v)) for k, v in rows))
        if rows
        else ""
    )


def legend(entries: Sequence[tuple[str, str, int | None]]) -> str:
    """Names beside their colors: (name, class, the marker's kind or None for a bar)."""

    def swatch(class_: str, kind: int | None) -> str:
        shape = (
            element("rect", x=1, y=4, width=12, height=7, class_=f"bar {class_}")
            if kind is None
            else element("g", marker(kind, 7, 7), class_=class_)
        )
        return element("svg", shape, viewBox="0 0 14 14", aria_hidden="true")

    return element(
        "ul", *(element("li", swatch(c, k) + escape(n)) for n, c, k in entries), class_="legend"
    )


MANY = 40  # a longer list of layers starts folded


def pair(*blocks: str) -> str:
    """Blocks side by side where the page is wide enough, one above the other elsewhere."""
    return element("div", *blocks, class_="pair") if any(blocks) else ""


def titled(title: str, body: str) -> str:
    return element("div", element("h3", escape(title)), body) if body else ""


def halves(rows: list[dict], label: str, title: str) -> str:
    """Bars in two columns, to one scale; folded where the list is long."""
    most = max(
        (b["value"] for r in rows for b in r["bars"] if b["value"] is not None), default=None
    )
    middle = (len(rows) + 1) // 2 if len(rows) > 5 else len(rows)
    body = pair(
        charts.bars(rows[:middle], label, most),
        charts.bars(rows[middle:], f"{label}, continued", most) if rows[middle:] else "",
    )
    return fold(title, f"{len(rows)} rows", body, False) if len(rows) > MANY else body
