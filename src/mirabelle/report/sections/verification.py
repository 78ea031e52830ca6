"""How each runtime's integers agree with the integer reference."""

from __future__ import annotations

from typing import Any

from mirabelle.report import units
from mirabelle.report.parts import MANY, fold, runtime_name, section, show_score, table
from mirabelle.report.schema import Check
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP, number


def verification(checks: list[Check]) -> str:
    """Per runtime: how its answers and its integers agree with the reference, layer by layer."""
    blocks = []
    for check in checks:
        score = check.agreement
        facts = []
        if number(score.value) is not None:
            figure, small = show_score(score)
            facts.append(f"Same answer on {figure} of the samples {small}".strip())
        elif check.samples is not None:
            facts.append(f"{units.digits(check.samples)} samples")
        if check.sqnr_db is not None:
            facts.append(f"output SQNR {units.decibels(check.sqnr_db)}")
        if check.note:
            facts.append(str(check.note))
        clips = saturation(check.saturated)
        loud = departed(check)
        rows = [
            [
                (str(layer.layer or ""), str(layer.operator or "")),
                (units.digits(layer.max_off_by), ""),
                (exact_share(layer.exact), ""),
                (units.decibels(layer.sqnr_db), ""),
                (str(layer.note or ""), ""),
            ]
            for layer in check.layers
        ]
        head = ("layer", "off by", "exact", "SQNR", "note")
        worst = max((layer.max_off_by or 0.0 for layer in check.layers), default=0.0)
        body = fold(
            "Every layer",
            f"{len(rows)} layers, off by at most {units.digits(worst)}",
            table(head, rows, words=("note",), name=f"layers compared on {check.runtime or ''}"),
            worst > tolerance(check) and len(rows) <= MANY,
        )
        blocks.append(
            element("h3", escape(runtime_name(check.runtime or "")))
            + (element("p", escape("; ".join(facts))) if facts else "")
            + (element("p", escape(clips)) if clips else "")
            + loud
            + body
        )
    note = (
        "The integers of each runtime against Mirabelle's own integer arithmetic on the same "
        "inputs. "
        "Off by: the largest difference, in quantization steps. Exact: the share of values that "
        "are equal."
    )
    return section("Does the runtime compute the same?", note, *blocks)


def tolerance(check: Check) -> float:
    """By how many steps the runtime declares that its integers may be off."""
    declared = check.tolerance
    return 1.0 if declared is None else declared


def departed(check: Check) -> str:
    """Whether the integers are as the runtime declares, and the first layer where they are not.

    Green: no layer is off by more than the declared tolerance, and every sample has the same class.
    Red: a layer is off by more. Between: every layer is within, and some samples differ.
    """
    layers, most = check.layers, tolerance(check)
    if not layers and not check.first_departure:
        return ""
    name = runtime_name(check.runtime or "")
    beyond = [c for c in layers if (c.max_off_by or 0.0) > most]
    first = check.first_departure
    steps = f"{units.digits(most)} step{'s' * (most != 1)}"
    if beyond or (first and not layers):
        at = beyond[0] if beyond else first
        note = at.note or (first.why if at.layer == first.layer else "")
        where = f" at {at.layer or 'an unnamed layer'}{f': {note}' if note else ''}"
        bold, class_ = "First departure", "departure"
        text = f"{where}. It is off by more than the {steps} that {name} declares."
    elif number(check.agreement.value) in (1.0, None):
        bold, class_ = "✓ As declared", "agrees"
        text = f": no layer is off by more than the {steps} that {name} declares."
    else:
        bold, class_ = "Within the tolerance", "near"
        text = (
            f": no layer is off by more than the {steps} that {name} declares. {differing(check)}"
        )
    return element("p", element("b", escape(bold)), escape(text), class_=class_)


def differing(check: Check) -> str:
    """How many samples got another class, and how many of these are ties."""
    score = check.agreement
    n, same = score.n, number(score.value)
    if n is None or same is None:
        return ""
    other, ties = round(n * (1 - same)), check.ties
    tied = "" if ties is None else f"; {ties:.0f} of them tie within one step"
    return f"{other} of {units.digits(n)} samples get another class{tied}."


def saturation(shares: dict[str, float | None]) -> str:
    """What the kernels of the processor clip, from the share of sums that each layer lost; nothing
    where they clip nothing.
    """
    known = {layer: n for layer, v in shares.items() if (n := number(v))}
    if not known:
        return ""
    most = max(known, key=known.__getitem__)
    return (
        f"This processor's kernels clip pairs of products in {len(known)} "
        f"layer{'s' * (len(known) > 1)}, most in {most} "
        f"({units.digits(100 * known[most])}{NBSP}% of its sums)."
    )


def exact_share(value: Any) -> str:
    """A share that reads 100 % only where it is 1: 0.99996 is `> 99.99 %`."""
    n = number(value)
    return f">{NBSP}99.99{NBSP}%" if n is not None and 0.99995 <= n < 1 else units.percent(n)
