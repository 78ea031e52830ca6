"""Which file of a run is the best, over all stages and runtimes; and what the figures advise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mirabelle.report.schema import Figures, Stage
from mirabelle.report.schema.run import gains

SLOWER = 0.98  # times as fast: less is slower, and no noise of the clock


def recommended(
    stages: Sequence[Stage], runtimes: Sequence[str], limits: Mapping[str, float]
) -> tuple[int, str, str]:
    """(stage's number, runtime, why): the fastest file that meets the limits, by the accuracy on
    data that may choose (`Figures.look`). Without a limit of accuracy, the fastest that loses no
    more than the last stage does. Where none meets all limits, those of accuracy count alone. The
    last stage's fastest where nothing was timed, or nothing can choose.
    """
    last = len(stages) - 1
    figures = {(i, r): s.on(r) for i, s in enumerate(stages) for r in runtimes}
    timed = {k: ms for k, f in figures.items() if (ms := f.latency.p50_ms) is not None}
    if not timed:
        return last, runtimes[0], "the last stage; nothing was timed"
    ends = {k: v for k, v in timed.items() if k[0] == last}
    drops = {k: drop for k in timed if (drop := figures[k].look.drop) is not None}
    if len(drops) < len(timed):
        i, runtime = min(ends, key=lambda k: ends[k])
        return i, runtime, "the fastest of the last stage; there are no data to choose by"
    most = limits.get("accuracy_drop", max(0.0, *(drops[k] for k in ends)))
    near = {k: v for k, v in timed.items() if drops[k] <= most}
    good = {k: v for k, v in near.items() if _meets(stages, k, limits)}
    chosen, why = (
        (good, "meet the limits") if good and limits else (near, "lose no more than the last stage")
    )
    if limits and not good:
        why = "lose little enough; none meets the other limits"
    if not chosen:
        chosen, why = ends, "are of the last stage; none loses little enough"
    # Of those that the clock does not tell apart, the smallest one.
    best = min(chosen.values()) / SLOWER
    i, runtime = min((k for k in chosen if chosen[k] <= best), key=lambda k: _bytes(figures[k]))
    look = figures[i, runtime].look
    of = f"the fastest of {len(chosen)} of {len(timed)} files that {why}"
    return i, runtime, f"{of}; chosen on {look.on} (n = {look.n})"


def _bytes(figures: Figures) -> float:
    assert figures.bytes is not None  # what was timed is a file
    return figures.bytes


def _meets(stages: Sequence[Stage], key: tuple[int, str], limits: Mapping[str, float]) -> bool:
    """All limits but that of accuracy."""
    i, runtime = key
    found = gains(stages[0], stages[i], runtime)
    for name, limit in limits.items():
        if name == "accuracy_drop":
            continue
        value = found["macs_ratio" if name == "macs" else name]
        if value is None or (value > limit if name == "macs" else value < limit):
            return False
    return True


def advice(
    stages: Sequence[Stage], runtimes: Sequence[str], quantized: str | None, best: tuple[int, str]
) -> list[str]:
    """Sentences on what came out otherwise than one would think. quantized: the stage that is, by
    name.
    """
    said = []
    names = [s.name for s in stages]
    if quantized in names[1:]:
        place = names.index(quantized)
        for runtime in runtimes:
            said += _slower(stages, place, runtime)
    i, runtime = best
    if i != len(stages) - 1:
        said.append(
            f"the best file is not of the last stage: {stages[i].label} on {runtime} is as "
            "good or better, and faster"
        )
    return said


def _slower(stages: Sequence[Stage], place: int, runtime: str) -> list[str]:
    """Whether integers are slower than the float network they were made of."""
    before, after = (stages[i].on(runtime).latency.p50_ms for i in (place - 1, place))
    if before is None or after is None:
        return []
    if after * SLOWER <= before:
        return []
    return [
        f"integers are slower than float on {runtime}: {after:.3f} ms against {before:.3f} of the "
        f"{stages[place - 1].label} network; use its file there, or quantize with "
        "placement: fastest, which leaves in float what is slower as integers"
    ]
