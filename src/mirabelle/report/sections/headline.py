"""What came of the run in one sentence, three figures and its limits."""

from __future__ import annotations

import re
from typing import Any

from mirabelle.report import units
from mirabelle.report.parts import metric_name, runtime_name, texts
from mirabelle.report.schema import NO_FIGURES, Figures, Limit, Report, Result
from mirabelle.report.svg import element, escape
from mirabelle.report.units import NBSP, number

AT_LEAST = (
    "speedup",
    "size_ratio",
    "accuracy",
    "agreement",
    "sqnr_db",
)  # limits that a larger value meets
DISTURBED = 0.15  # so far apart are medians and ratios of calls where something else runs
NAMES = {
    "accuracy_drop": "the loss of accuracy",
    "speedup": "the speed-up",
    "size_ratio": "the size ratio",
}


def is_share(report: Report) -> bool:
    """Whether the accuracy is a share of samples, so that differences are points of a hundred. True
    where nothing says otherwise.
    """
    for stage in report.stages:
        for figures in stage.runtimes.values():
            score = figures.accuracy
            if score.binary is not None:
                return bool(score.binary)
    return True


def factor(value: Any, better: str, worse: str) -> str | None:
    """`4.2× faster` or `1.25× slower`; None where unknown."""
    n = number(value)
    if n is None or n <= 0:
        return None
    return f"{units.times(n)} {better}" if n >= 1 else f"{units.times(1 / n)} {worse}"


def loss(report: Report, result: Result) -> tuple[str, str, str, str] | None:
    """The accuracy lost, or gained: (a clause, the bare figure, its interval, which of the two);
    None where unknown. Of a metric where less is better a rise is a loss.
    """
    drop = result.accuracy_drop
    if drop is None:
        return None
    show, unit = (units.points, "points of ") if is_share(report) else (units.digits, "")
    ends = result.accuracy_drop_interval
    low, high = ends if len(ends) == 2 else (None, None)
    what = f"{unit}{metric_name(report)}"
    if show(abs(drop)) == show(0):
        clause = f"and loses no {metric_name(report)}"
    else:
        clause = f"and {'loses' if drop > 0 else 'gains'} {show(abs(drop))} {what}"
        if low is not None and high is not None and low <= 0 <= high:
            clause += ", a difference within the noise of the test"
    if drop < 0 and show(abs(drop)) != show(0):
        ends = (None, None) if low is None or high is None else (-high, -low)
        return clause, show(-drop), units.interval(*ends, show), "gained"
    return clause, show(drop), units.interval(low, high, show), "lost"


def processor(report: Report) -> str | None:
    """The machine in words: `an AMD EPYC core`, `4 threads of an Intel Xeon`."""
    name = str(report.machine.cpu or "")
    name = " ".join(re.sub(r"\((R|TM|C)\)|\bCPU\b|@.*", " ", name, flags=re.IGNORECASE).split())
    if not name:
        return None
    article = "an" if name[0].upper() in "AEIOU" else "a"
    latency = figures(report, -1).latency
    threads = latency.threads
    return f"{article} {name} core" if threads in (1, None) else f"{threads:g} threads of {name}"


def figures(report: Report, stage: int) -> Figures:
    """What a stage gave on the runtime of the result; empty where there is none."""
    stages, result = report.stages, report.result
    named = [s for s in stages if s.name == result.stage]
    chosen = named if named and stage == -1 else stages
    return chosen[stage].on(str(result.runtime)) if stages else NO_FIGURES


def absolutes(report: Report) -> tuple[str, str]:
    """The figures behind the two ratios: (`1.32 → 0.41 ms`, `2.42 MB → 364 kB`); empty where one
    is unknown.
    """
    ends = [figures(report, i) for i in (0, -1)]
    ms = [f.latency.p50_ms for f in ends]
    sizes = [f.bytes for f in ends]
    time = "" if None in ms else f"{units.digits(ms[0])} → {units.milliseconds(ms[1])}"
    ratio, speedup = (ms[0] or 0) / (ms[1] or 1), number(report.result.speedup)
    if time and speedup and abs(ratio / speedup - 1) > DISTURBED:
        time += ", medians on a busy machine"  # the speed-up is of calls taken in turn
    return time, "" if None in sizes else f"{units.size(sizes[0])} → {units.size(sizes[1])}"


def sentence(report: Report) -> str:
    """What came of the run, for anyone; empty where nothing is known."""
    ratios, lost = changes(report), loss(report, report.result)
    known = " and ".join(f"{c} ({figure})" if figure else c for c, figure in ratios if c)
    where = place(report, timed=ratios[0][0] is not None)
    if known:
        return f"{where} is {known}{', ' + lost[0] if lost else ''}."
    return f"{where} {lost[0].removeprefix('and ')}." if lost else ""


def changes(report: Report) -> list[tuple[str | None, str]]:
    """The two ratios in words, each with the figures behind it."""
    result = report.result
    ratios = (
        factor(result.speedup, "faster", "slower"),
        factor(result.size_ratio, "smaller", "larger"),
    )
    return list(zip(ratios, absolutes(report), strict=True))


def place(report: Report, timed: bool) -> str:
    """`On ONNX Runtime, on an AMD EPYC core, not a phone, the quantized network`. timed: the
    sentence says how fast it is, so that the machine matters.
    """
    result = report.result
    places = [runtime_name(result.runtime)] if result.runtime else []
    if timed and (machine := processor(report)):
        places.append(f"{'on ' if places else ''}{machine}, not a phone,")
    network = f"the {result.label} network" if result.label else "the network"
    return f"On {', '.join(places)} {network}" if places else network[0].upper() + network[1:]


def headline(report: Report) -> str:
    """A sentence for anyone, the three figures it rests on, and each limit as met or missed."""
    text = sentence(report)
    limits = "".join(limit(row, is_share(report)) for row in report.limits)
    big = cards(report, changes(report), loss(report, report.result))
    return (
        (element("p", escape(text), class_="headline") if text else "")
        + (element("div", big, class_="big") if big else "")
        + (element("ul", limits, class_="limits") if limits else "")
        + "".join(element("p", escape(s), class_="note") for s in remarks(report))
    )


def remarks(report: Report) -> list[str]:
    """Which file it is and why, what is slower than one would think, and what went wrong."""
    result, made_up = report.result, report.data.made_up
    said = [f"{made_up[0].upper()}{made_up[1:]}."] if made_up else []
    if result.file and result.why:
        said.append(f"The file is {result.file}: {result.why}.")
    said += [f"{text[0].upper()}{text[1:]}." for text in texts(report.advice) if text]
    if report.stopped:
        said.append(f"The run stopped before its last step: {report.stopped}.")
    said += [f"{runtime_name(r)} has no file: {w}" for r, w in report.failed.items()]
    return said


def cards(report: Report, pairs: list[tuple], lost: tuple[str, str, str, str] | None) -> str:
    """The figures of the first screen: ratios with their absolutes, and the loss."""
    found = []
    for (text, known), otherwise in zip(
        pairs, ("than the original, one forward pass", "on disk than the original"), strict=True
    ):
        if text:
            found.append((*text.split(" ", 1), known or otherwise))
    if lost:
        unit = "points of " if is_share(report) else ""
        interval = f"95{NBSP}% interval {lost[2]}" if lost[2] else "interval unknown"
        found.append((lost[1], f"{unit}{metric_name(report)} {lost[3]}", interval))
    return "".join(
        element(
            "div", element("b", escape(a)), element("span", escape(b)), element("small", escape(c))
        )
        for a, b, c in found
    )


def limit(row: Limit, share: bool) -> str:
    """One limit: met, missed and by how much, or not measured."""
    name, bound, value = (str(row.name or "limit"), row.limit, number(row.value))
    show = limit_format(name, share)
    words = escape(NAMES.get(name, name.replace("_", " "))) + (
        f" on {escape(runtime_name(row.runtime))}" if row.runtime else ""
    )
    if bound is None or value is None or row.met is None:
        return element(
            "li",
            f"<b>Not measured</b>: {words}, asked "
            f"{escape(show(bound)) if bound is not None else 'nothing'}",
        )
    met = bool(row.met)
    upper = name not in AT_LEAST if value == bound else met == (value < bound)
    asked = f"{'at most' if upper else 'at least'} {escape(show(bound))}"
    if met:
        spare = escape(show(abs(value - bound)))
        margin = "exactly" if value == bound else f"with {spare} to spare"
        return element(
            "li",
            f"<b>✓ Met</b> {margin}: {words} is {escape(show(value))}, asked {asked}",
            class_="met",
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
