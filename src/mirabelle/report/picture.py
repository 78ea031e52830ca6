"""The picture of a threshold: what a tensor holds, and the steps that it is rounded to, before and
after clipping.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mirabelle.base import files
from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.report import histograms, units
from mirabelle.report.parts import child
from mirabelle.report.style import CSS
from mirabelle.report.svg import element, escape
from mirabelle.report.units import number


def figure(tensor: dict[str, Any]) -> str:
    """Two drawings of one activation of a report, one above the other as the page is narrow: with
    steps up to the largest value, and up to the threshold.

    tensor: what `describe_tensors` says of it, as in a report's JSON. Nothing where that does not
    say enough.
    """
    bins, whole = child(tensor, "histogram"), child(tensor, "unclipped")
    low, high, levels = (
        number(bins.get("low")),
        number(bins.get("high")),
        units.numbers(tensor.get("levels")),
    )
    if low is None or high is None or len(levels) != 2 or not isinstance(bins.get("counts"), list):
        return ""
    drawings = []
    for title, grid in (("Before clipping", whole), ("After clipping", tensor)):
        ends = units.numbers(grid.get("range"))
        if len(ends) != 2:
            return ""
        chart = histograms.clipping(
            bins["counts"],
            low,
            high,
            ends[0],
            ends[1],
            round(levels[1] - levels[0]),
            f"{tensor.get('name') or ''}, {title.lower()}",
        )
        caption = f"{title}: SQNR {units.decibels(grid.get('sqnr_db'))}"
        drawings.append(element("figure", chart, element("figcaption", escape(caption))))
    return element("div", *drawings, class_="pair") if all(drawings) else ""


def most_clipped(tensors: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The activation that clipping gained most, in dB; None where none says."""
    gains = [
        (t, number(t.get("sqnr_db")), number(child(t, "unclipped").get("sqnr_db"))) for t in tensors
    ]
    known = [
        (after - before, t)
        for t, after, before in gains
        if after is not None and before is not None
    ]
    return max(known, key=lambda k: k[0])[1] if known else None


def picture(model: Any, layer: str | None = None, path: str | Path | None = None) -> str:
    """A page with the histogram of a quantised network's activation, its threshold, and the steps
    before and after clipping; HTML with SVG inside.

    model: from `mb.quantize`, in the same process: a network that was loaded has no histograms any
    more. layer: a name as in the report, such as `layer1.0.conv1` or `input x`; None for the
    activation that clipping gained most. path: where the page is written too, if anywhere.
    Raises `InputError` where the network is not quantised, has no such layer, or has no histograms.
    """
    from mirabelle.quantization.simulation.description import quantization
    from mirabelle.quantization.simulation.tensors import (
        describe_tensors,
    )  # a report is drawn without torch

    if quantization(model) is None:
        raise InputError("a picture needs a quantised network; call mb.quantize first")
    tensors = [t for t in describe_tensors(model) if t["kind"] == "activation"]
    if not tensors:
        raise InputError(
            "this network has no histograms of its activations: they are not saved; quantise it "
            "in this process"
        )
    chosen = (
        most_clipped(tensors)
        if layer is None
        else next((t for t in tensors if t["name"] == layer), None)
    )
    if chosen is None:
        raise InputError(
            "no quantised activation is called "
            f"{layer!r}{did_you_mean(str(layer), [t['name'] for t in tensors])}"
        )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("title", escape(chosen["name"])),
        element("style", CSS),
    )
    body = element("body", element("main", element("h2", escape(chosen["name"])), figure(chosen)))
    page = "<!doctype html>" + element("html", head, body, lang="en")
    if path is not None:
        files.write_text(Path(path), page)
    return page
