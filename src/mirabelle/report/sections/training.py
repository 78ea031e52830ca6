"""The curves of each training."""

from __future__ import annotations

from mirabelle.report import units
from mirabelle.report.curves import Line, Panel, stacked
from mirabelle.report.parts import legend, pair, section
from mirabelle.report.schema import Curve, Training
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP

HELD_OUT = "held_out"  # the score that is the loss itself, on data that are held back


def training(runs: list[Training]) -> str:
    """Per training one drawing: the loss by step with that on held-back data, the score on
    validation data, and the learning rate.
    """
    blocks = [block for run in runs if (block := _training(run))]
    note = (
        "The title says how many steps a point is the mean of. Scores are those of the network as "
        "it would have been returned at that step."
    )
    return section("Training", note, pair(*blocks))


def _training(run: Training) -> str:
    curve = run.curve
    losses, scores, rates = lines(curve)
    panels = [Panel("loss", losses)]
    held = str(curve.score.name or "") == HELD_OUT
    if held:
        panels = [Panel("loss", [*losses, *scores])]
    else:
        panels.append(Panel("score", scores, _shown(scores), 90))
    panels.append(Panel("learning rate", rates, height=50))
    name = str(run.stage or "training")
    chart = stacked(panels, "step", f"{name}: {_told(losses, scores)}")
    if not chart:
        return ""
    steps, each = units.numbers(curve.step), curve.each
    facts = [f"{units.digits(steps[-1])} steps"] if steps else []
    facts += [f"{each:g} steps a point"] if each and each > 1 else []
    took = run.seconds
    facts += [units.seconds(took)] if took is not None else []
    drawn = [*losses, *scores] if len(losses) + len(scores) > 1 else []
    named = legend([(v.name, f"s{v.number % 6}", v.number if v.marks else None) for v in drawn])
    title = ": ".join(p for p in (name, ", ".join(facts)) if p)
    return element("div", element("h3", escape(title)), named if drawn else "", chart)


def lines(curve: Curve) -> tuple[list[Line], list[Line], list[Line]]:
    """Losses, scores and rates of a curve, each with the points that are numbers. Of several parts
    the sum is the first loss.
    """
    steps, columns = curve.step, curve.loss
    if len(columns) > 1:
        rows = zip(*columns.values(), strict=False)
        sums = [None if None in row else sum(v for v in row if v is not None) for row in rows]
        columns = {"sum": sums, **columns}
    losses = [Line(k, _points(steps, v), i) for i, (k, v) in enumerate(columns.items())]
    score = curve.score
    name = str(score.name or "score").replace("_", " ")
    seen = _points(score.step, score.value)
    scores = [Line(name, seen, len(losses), marks=True)] if seen else []
    rates = _points(steps, curve.lr)
    known = [v for v in losses if v.points]
    return known, scores, [Line("learning rate", rates, 5)] if rates else []


def _points(x: list[float | None], y: list[float | None]) -> list[tuple[float, float]]:
    pairs = zip(x, y, strict=False)
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _shown(scores: list[Line]):
    share = all(v.name.endswith(("top1", "top5")) for v in scores)
    return (lambda v: f"{100 * v:.4g}{NBSP}%") if share else units.digits


def _told(losses: list[Line], scores: list[Line]) -> str:
    """The ends of the curves in words, for those who do not see them."""
    ends = [
        f"{v.name} from {units.digits(v.points[0][1])} to {units.digits(v.points[-1][1])}"
        for v in [*losses, *scores]
    ]
    return ", ".join(ends)
