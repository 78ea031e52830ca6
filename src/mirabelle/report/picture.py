"""The picture of a threshold: what a tensor holds, and the steps that it is rounded to, before and
after clipping.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mirabelle.base import files
from mirabelle.base.errors import InputError, choose, did_you_mean
from mirabelle.report import histograms, units
from mirabelle.report.schema import QuantizedTensor
from mirabelle.report.style import CSS
from mirabelle.report.svg import element, escape


def figure(tensor: QuantizedTensor) -> str:
    """Two drawings of one activation of a report, one above the other as the page is narrow: with
    steps up to the largest value, and up to the threshold.

    Nothing where the report does not say enough of it.
    """
    drawn = [
        element("figure", chart, element("figcaption", escape(caption)))
        for chart, caption in _drawings(tensor)
    ]
    return element("div", *drawn, class_="pair") if drawn else ""


def _drawings(tensor: QuantizedTensor) -> list[tuple[str, str]]:
    """Before and after clipping: the drawing and its caption; empty where the tensor does not say
    enough.
    """
    bins, whole = tensor.histogram, tensor.unclipped
    low, high, levels = (bins.low, bins.high, units.numbers(tensor.levels))
    if low is None or high is None or len(levels) != 2 or not isinstance(bins.counts, list):
        return []
    drawings = []
    for title, grid in (("Before clipping", whole), ("After clipping", tensor)):
        ends = units.numbers(grid.range)
        if len(ends) != 2:
            return []
        chart = histograms.clipping(
            bins.counts,
            low,
            high,
            ends[0],
            ends[1],
            round(levels[1] - levels[0]),
            f"{tensor.name or ''}, {title.lower()}",
        )
        drawings.append((chart, f"{title}: SQNR {units.decibels(grid.sqnr_db)}"))
    return drawings if all(chart for chart, _ in drawings) else []


def as_page(tensor: QuantizedTensor) -> str:
    """The picture as a page of its own."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("title", escape(tensor.name)),
        element("style", CSS),
    )
    body = element("body", element("main", element("h2", escape(tensor.name)), figure(tensor)))
    return "<!doctype html>" + element("html", head, body, lang="en")


WIDTH, ROW = 360, 226  # of the SVG, and of each of its drawings


def as_svg(tensor: QuantizedTensor) -> str:
    """The picture as one SVG file, which papers and slides take; light or dark as its reader is."""
    rows = _drawings(tensor)
    parts = [element("rect", width="100%", height="100%", class_="paper")]
    parts.append(element("text", escape(tensor.name), x=6, y=18, class_="row"))
    for i, (chart, caption) in enumerate(rows):
        top = 26 + i * ROW
        inside = chart.replace("<svg", f'<svg y="{top}" width="{WIDTH}" height="190"', 1)
        parts.append(inside.replace('class="plot clipping"', 'class="clipping"', 1))
        parts.append(element("text", escape(caption), x=6, y=top + 206))
    height = 26 + len(rows) * ROW
    drawn = element(
        "svg",
        element("style", escape(CSS + ".paper { fill: var(--paper); }")),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        width=WIDTH,
        height=height,
    )
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + drawn + "\n"


FORMS = {".html": as_page, ".svg": as_svg}


def most_clipped(tensors: list[QuantizedTensor]) -> QuantizedTensor | None:
    """The activation that clipping gained most, in dB; None where none says."""
    gains = [(t, t.sqnr_db, t.unclipped.sqnr_db) for t in tensors]
    known = [
        (after - before, t)
        for t, after, before in gains
        if after is not None and before is not None
    ]
    return max(known, key=lambda k: k[0])[1] if known else None


def picture(model: Any, layer: str | None = None, path: str | Path | None = None) -> str:
    """The histogram of an activation, its threshold, and the steps before and after clipping.

    - model: from `mb.quantize`, in the same process. A network that was loaded has no histograms.
    - layer: a name as in the report, such as `layer1.0.conv1` or `input x`. None is the activation
      that clipping gained most.
    - path: where the picture is written too. An SVG file where it ends in .svg, a page where in
      .html; None writes nothing.

    Returns what was written, as text.
    Raises `InputError` where the network is not quantized, has no such layer or has no histograms,
    and where the ending is neither .html nor .svg.

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> q = mb.quantize(model, [torch.randn(64, 4)])
        >>> mb.picture(q, path="threshold.svg").startswith("<?xml")
        True
    """
    form = choose(Path(path or "picture.html").suffix.lower(), FORMS, "ending of a picture")
    from mirabelle.quantization.simulation.description import quantization
    from mirabelle.quantization.simulation.tensors import (
        describe_tensors,
    )  # a report is drawn without torch

    if quantization(model) is None:
        raise InputError("a picture needs a quantized network; call mb.quantize first")
    described = map(QuantizedTensor.of, describe_tensors(model))
    tensors = [t for t in described if t.kind == "activation"]
    if not tensors:
        raise InputError(
            "this network has no histograms of its activations: they are not saved; quantize it "
            "in this process"
        )
    chosen = (
        most_clipped(tensors)
        if layer is None
        else next((t for t in tensors if t.name == layer), None)
    )
    if chosen is None:
        raise InputError(
            "no quantized activation is called "
            f"{layer!r}{did_you_mean(str(layer), [str(t.name) for t in tensors])}"
        )
    page = form(chosen)
    if path is not None:
        files.write_text(Path(path), page)
    return page
