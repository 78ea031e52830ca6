"""From what steps record to the report."""

import json

from mirabelle.pipeline import run
from mirabelle.report.schema import (
    Check,
    Curve,
    Latency,
    Look,
    PeakMemory,
    Profile,
    Quantization,
    Speedup,
)
from tests.pipeline.runs import finished, recipe


def _lost(found, read, path=""):
    """What of a step's facts its type in the report does not hold."""
    empty = ([], {}, None)
    if isinstance(found, dict) and isinstance(read, dict):
        return [p for k, v in found.items() for p in _lost(v, read.get(k), f"{path}.{k}")]
    if isinstance(found, list) and isinstance(read, list) and len(found) == len(read):
        return [p for a, b in zip(found, read) for p in _lost(a, b, path)]
    nothing = isinstance(found, dict) and all(v in empty for v in found.values())
    same = found == read or (found in empty and read in empty) or (nothing and read in empty)
    return [] if same else [path]


def test_the_report_has_a_place_for_every_fact(tmp_path):
    run(recipe(tmp_path), folder=tmp_path / "out")
    facts, timings = {}, {}
    for folder in finished(tmp_path / "out").values():
        record = json.loads((folder / "step.json").read_text())
        facts |= record["facts"]
        timings |= record["timings"]
    given = [
        (Quantization, facts["quantization"]),
        (Curve, facts["curve"]),
        *((Look, v) for v in (facts["look"], *facts["looks"].values())),
        *((Check, v) for v in facts["verification"]),
        *((Latency, v) for v in timings["latency"].values()),
        *((Speedup, v) for v in timings["speedup"].values()),
        *((PeakMemory, v) for v in timings["memory"].values()),
        *((Profile, v) for v in timings["profile"].values()),
    ]
    for part, found in given:
        assert found and _lost(found, part.of(found).to_dict(), part.__name__) == []
