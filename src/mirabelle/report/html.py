"""The page: one self-contained HTML file, drawn from the dict that `report.json` holds. A part that
the dict lacks is left out.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mirabelle.report import sections, units
from mirabelle.report.parts import (
    child,
    items,
    listing,
    metric_name,
    runtime_name,
    section,
    show_score,
    table,
    texts,
)
from mirabelle.report.style import CSS
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP, number

AT_LEAST = (
    "speedup",
    "size_ratio",
    "accuracy",
    "agreement",
    "sqnr_db",
)  # limits that a larger value meets
NAMES = {
    "accuracy_drop": "the loss of accuracy",
    "speedup": "the speed-up",
    "size_ratio": "the size ratio",
}


def render(report: dict) -> str:
    """The whole page. It loads nothing: no script, font, image or stylesheet from elsewhere; all
    text of `report` is escaped.
    """
    title = report.get("title") or "a run"
    parts = [
        headline(report),
        before_after(report),
        sections.trade_off(items(report, "stages")),
        sections.channels(items(report, "channels")),
        sections.sparsity(items(child(report, "sparsity"), "layers"), child(report, "forms")),
        sections.break_even(child(report, "break_even")),
        sections.quantization(child(report, "quantization")),
        sections.verification(items(report, "verification")),
        sections.profile(child(report, "profile")),
        sections.training(items(report, "training")),
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


def is_share(report: dict) -> bool:
    """Whether the accuracy is a share of samples, so that differences are points of a hundred. True
    where nothing says otherwise.
    """
    for stage in items(report, "stages"):
        for figures in child(stage, "runtimes").values():
            score = child(figures, "accuracy")
            if "binary" in score:
                return bool(score["binary"])
    return True


def factor(value: Any, better: str, worse: str) -> str | None:
    """`4.2× faster` or `1.25× slower`; None where unknown."""
    n = number(value)
    if n is None or n <= 0:
        return None
    return f"{units.times(n)} {better}" if n >= 1 else f"{units.times(1 / n)} {worse}"


def loss(report: dict, result: dict) -> tuple[str, str, str] | None:
    """The accuracy lost: (a clause, the bare figure, its interval); None where unknown."""
    drop = number(result.get("accuracy_drop"))
    if drop is None:
        return None
    show, unit = (units.points, "points of ") if is_share(report) else (units.digits, "")
    ends = result.get("accuracy_drop_interval")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    what = f"{unit}{metric_name(report)}"
    if show(abs(drop)) == show(0):
        clause = f"and loses no {metric_name(report)}"
    else:
        clause = f"and {'loses' if drop > 0 else 'gains'} {show(abs(drop))} {what}"
        if low is not None and high is not None and low <= 0 <= high:
            clause += ", a difference within the noise of the test"
    return clause, show(drop), units.interval(low, high, show)


def headline(report: dict) -> str:
    """A sentence for anyone, the three figures it rests on, and each limit as met or missed."""
    result = child(report, "result")
    fast, small = (
        factor(result.get("speedup"), "faster", "slower"),
        factor(result.get("size_ratio"), "smaller", "larger"),
    )
    lost = loss(report, result)
    changes = " and ".join(c for c in (fast, small) if c)
    where = (
        f"On {runtime_name(result['runtime'])} the network"
        if result.get("runtime")
        else "The network"
    )
    if changes:
        sentence = f"{where} is {changes}{', ' + lost[0] if lost else ''}."
    else:
        sentence = f"{where} {lost[0].removeprefix('and ')}." if lost else ""
    cards = []
    for text in (fast, small):
        if text:
            figure, words = text.split(" ", 1)
            cards.append(
                (
                    figure,
                    words,
                    "than the original, one forward pass"
                    if text is fast
                    else "on disk than the original",
                )
            )
    if lost:
        unit = "points of " if is_share(report) else ""
        cards.append(
            (
                lost[1],
                f"{unit}{metric_name(report)} lost",
                f"95{NBSP}% interval {lost[2]}" if lost[2] else "interval unknown",
            )
        )
    big = "".join(
        element(
            "div", element("b", escape(a)), element("span", escape(b)), element("small", escape(c))
        )
        for a, b, c in cards
    )
    limits = "".join(limit(row, is_share(report)) for row in items(report, "limits"))
    return (
        (element("p", escape(sentence), class_="headline") if sentence else "")
        + (element("div", big, class_="big") if big else "")
        + (element("ul", limits, class_="limits") if limits else "")
    )


def limit(row: dict, share: bool) -> str:
    """One limit: met, missed and by how much, or not measured."""
    name, bound, value = (
        str(row.get("name") or "limit"),
        number(row.get("limit")),
        number(row.get("value")),
    )
    show = limit_format(name, share)
    words = escape(NAMES.get(name, name.replace("_", " "))) + (
        f" on {escape(runtime_name(row['runtime']))}" if row.get("runtime") else ""
    )
    if bound is None or value is None or row.get("met") is None:
        return element(
            "li",
            f"<b>Not measured</b>: {words}, asked "
            f"{escape(show(bound)) if bound is not None else 'nothing'}",
        )
    met = bool(row["met"])
    upper = name not in AT_LEAST if value == bound else met == (value < bound)
    asked = f"{'at most' if upper else 'at least'} {escape(show(bound))}"
    if met:
        return element(
            "li", f"<b>✓ Met</b>: {words} is {escape(show(value))}, asked {asked}", class_="met"
        )
    return element(
        "li",
        f"<b>✗ Missed</b> by {escape(show(abs(value - bound)))}: {words} is "
        f"{escape(show(value))}, asked {asked}",
        class_="missed",
    )


def limit_format(name: str, share: bool):
    """How a limit's figures are shown, from its name: to four digits where the third may hide a
    near miss.
    """
    if name == "accuracy_drop":
        return (lambda v: f"{units.digits(100 * v, 4)} points") if share else units.digits
    if name == "accuracy" or name == "agreement":
        return units.percent if share else units.digits
    if name.endswith(("ratio", "speedup")):
        return lambda v: f"{units.digits(v, 4)}×"
    if name.endswith(("_ms", "latency")):
        return units.milliseconds
    if "bytes" in name or "size" in name or "memory" in name:
        return units.size
    return units.count if name in ("macs", "parameters", "params") else units.digits


def before_after(report: dict) -> str:
    """One table per runtime: a row per stage, a column per figure; the columns that nothing fills
    are left out.
    """
    stages = items(report, "stages")
    runtimes = list(dict.fromkeys(r for s in stages for r in child(s, "runtimes")))
    best = child(report, "result").get("runtime")
    tables = "".join(
        element("h3", escape(runtime_name(r)))
        + table(
            HEAD,
            [stage_row(s, child(child(s, "runtimes"), r)) for s in stages],
            mark_last=r == best,
        )
        for r in runtimes
    )
    if not tables and stages:
        tables = table(HEAD, [stage_row(s, {}) for s in stages])
    return section("Before and after", NOTE, tables)


NOTE = (
    "In brackets: 95 % intervals. n is the number of samples measured. Speed-ups are against "
    "the original on the same runtime. "
    "MACs are the multiply-adds of one forward pass. p50 is the median, p95 what 95 of 100 runs "
    "stay under."
)
HEAD = (
    "stage",
    "accuracy",
    "file size",
    "latency p50",
    "latency p95",
    "speed-up",
    "MACs",
    "parameters",
    "peak memory",
)


def stage_row(stage: dict, figures: dict) -> list[tuple[str, str]]:
    """The cells of one stage on one runtime, each (figure, small print); None of them for what was
    not measured.
    """
    latency, speed, memory = (
        child(figures, "latency"),
        child(figures, "speedup"),
        child(figures, "peak_memory"),
    )
    total, before = number(memory.get("total")), number(memory.get("before_loading"))
    runs = (
        f"{units.digits(latency['runs'])} runs" if number(latency.get("runs")) is not None else ""
    )
    return [
        (str(stage.get("label") or stage.get("name") or ""), ""),
        show_score(child(figures, "accuracy")),
        (units.size(figures.get("bytes")), ""),
        (units.milliseconds(latency.get("p50_ms")), runs),
        (units.milliseconds(latency.get("p95_ms")), ""),
        (
            units.times(speed.get("value")),
            units.interval(speed.get("low"), speed.get("high"), units.digits)
            if speed.get("low") != speed.get("high")
            else "",
        ),
        (units.count(stage.get("macs")), ""),
        (units.count(stage.get("parameters")), ""),
        (
            units.size(total),
            f"{units.size(total - before)} for the network"
            if total is not None and before is not None
            else "",
        ),
    ]


def how_measured(report: dict) -> str:
    """The machine, the versions, the seed, how many samples and runs, how long each step took, and
    what the intervals are.
    """
    machine, versions, network = (
        child(report, "machine"),
        child(report, "versions"),
        child(report, "network"),
    )
    settings = [
        f"{runtime_name(r)}: {', '.join(timing(child(f, 'latency')))}"
        for s in items(report, "stages")[-1:]
        for r, f in child(s, "runtimes").items()
        if child(f, "latency")
    ]
    samples = sorted(
        {
            int(n)
            for s in items(report, "stages")
            for f in child(s, "runtimes").values()
            if (n := number(child(f, "accuracy").get("n")))
        }
    )
    seeds = sorted({str(v) for v in found(report.get("recipe"), "seed")})
    inputs = []
    for i in items(network, "inputs"):
        shape = " × ".join(texts(i.get("shape")))
        inputs.append(f"{i.get('name') or 'input'}: {shape} {i.get('dtype') or ''}".strip())
    cores = number(machine.get("cores"))
    rows = [
        ("network", network.get("name")),
        ("inputs", "; ".join(inputs)),
        (
            "processor",
            ", ".join(texts((machine.get("cpu"), f"{cores:g} cores" if cores else None))),
        ),
        ("instructions", " ".join(texts(machine.get("features")))),
        ("memory", units.size(machine["memory"]) if number(machine.get("memory")) else None),
        (
            "system",
            ", ".join(
                texts(
                    (
                        machine.get("system"),
                        f"Python {machine['python']}" if machine.get("python") else None,
                    )
                )
            ),
        ),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v is not None)),
        ("latency", "; ".join(settings)),
        ("samples", ", ".join(units.digits(n) for n in samples)),
        ("seed", ", ".join(seeds)),
        (
            "time taken",
            ", ".join(f"{k} {units.seconds(v)}" for k, v in child(report, "timings").items()),
        ),
    ]
    intervals = [
        (
            "accuracy interval",
            "95 %: Wilson's score interval where a sample counts 0 or 1, the normal interval of "
            "the mean elsewhere",
        ),
        (
            "drop interval",
            "95 %, paired: both networks answered the same samples, so only the samples on "
            "which they differ add to it",
        ),
        ("speed-up interval", "95 %, bootstrap over the timed runs"),
    ]
    return section(
        "How it was measured",
        "",
        listing(
            [(k, str(v)) for k, v in rows + (intervals if items(report, "stages") else []) if v]
        ),
    )


def timing(latency: dict) -> list[str]:
    """Threads, batch and runs of a latency measurement, in words."""
    threads, batch, runs = (number(latency.get(k)) for k in ("threads", "batch", "runs"))
    words = (
        f"{threads:g} thread{'' if threads == 1 else 's'}" if threads else "",
        f"batch of {batch:g}" if batch else "",
        f"{runs:g} runs" if runs else "",
    )
    return [w for w in words if w]


def found(value: Any, key: str) -> list[Any]:
    """Every number that stands under `key` anywhere inside a nest of dicts and lists."""
    if isinstance(value, dict):
        return [v for k, v in value.items() if k == key and number(v) is not None] + [
            f for v in value.values() for f in found(v, key)
        ]
    return [f for v in value for f in found(v, key)] if isinstance(value, list) else []


PLAIN = re.compile(r"[A-Za-z_][\w./:-]*(?<!:)")
WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def as_yaml(value: Any, indent: str = "") -> str:
    """JSON-like data as YAML that reads back to the same value: dicts as blocks, lists of dicts as
    dashes, the rest in a line.
    """

    def leaf(v: Any) -> str:
        if isinstance(v, str) and PLAIN.fullmatch(v) and v.lower() not in WORDS:
            return v
        return json.dumps(v, ensure_ascii=False)

    if isinstance(value, dict) and value:
        lines = []
        for k, v in value.items():
            nested = (isinstance(v, dict) and v) or (
                isinstance(v, list) and any(isinstance(e, dict) for e in v)
            )
            lines.append(
                f"{indent}{leaf(str(k))}:"
                + (f"\n{as_yaml(v, indent + '  ')}" if nested else f" {leaf(v)}")
            )
        return "\n".join(lines)
    if isinstance(value, list) and any(isinstance(e, dict) for e in value):
        return "\n".join(f"{indent}- {as_yaml(e, indent + '  ').lstrip()}" for e in value)
    return indent + leaf(value)


def recipe(value: Any) -> str:
    return (
        section("The recipe", "What was asked for.", element("pre", escape(as_yaml(value))))
        if value
        else ""
    )
