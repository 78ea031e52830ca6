"""What came of the run in one sentence, three figures and its limits."""

from __future__ import annotations

from typing import Any

from mirabelle.report import units
from mirabelle.report.parts import child, items, metric_name, runtime_name, texts
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


def loss(report: dict, result: dict) -> tuple[str, str, str, str] | None:
    """The accuracy lost, or gained: (a clause, the bare figure, its interval, which of the two);
    None where unknown. Of a metric where less is better a rise is a loss.
    """
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
    if drop < 0 and show(abs(drop)) != show(0):
        ends = (None, None) if low is None or high is None else (-high, -low)
        return clause, show(-drop), units.interval(*ends, show), "gained"
    return clause, show(drop), units.interval(low, high, show), "lost"


def headline(report: dict) -> str:
    """A sentence for anyone, the three figures it rests on, and each limit as met or missed."""
    result = child(report, "result")
    fast, small = (
        factor(result.get("speedup"), "faster", "slower"),
        factor(result.get("size_ratio"), "smaller", "larger"),
    )
    lost = loss(report, result)
    changes = " and ".join(c for c in (fast, small) if c)
    network = f"the {result['label']} network" if result.get("label") else "the network"
    where = (
        f"On {runtime_name(result['runtime'])} {network}"
        if result.get("runtime")
        else network[0].upper() + network[1:]
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
                f"{unit}{metric_name(report)} {lost[3]}",
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
        + "".join(element("p", escape(s), class_="note") for s in remarks(report))
    )


def remarks(report: dict) -> list[str]:
    """Which file it is and why, what is slower than one would think, and what went wrong."""
    result = child(report, "result")
    said = []
    if result.get("file") and result.get("why"):
        said.append(f"The file is {result['file']}: {result['why']}.")
    said += [f"{text[0].upper()}{text[1:]}." for text in texts(report.get("advice")) if text]
    if report.get("stopped"):
        said.append(f"The run stopped before its last step: {report['stopped']}.")
    said += [f"{runtime_name(r)} has no file: {w}" for r, w in child(report, "failed").items()]
    return said


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
