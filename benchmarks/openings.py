"""Networks timed as files of a runtime, in turn, each file opened several times: a file's time
varies more between openings than within one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TypeVar

from torch import nn

from mirabelle.base.data import Batch
from mirabelle.graph.artifacts import time_in_turn, write_artifact

OPENINGS = 5
SECONDS = 4.0  # for each file, each time that it is opened

Name = TypeVar("Name")


def milliseconds(
    networks: Mapping[Name, nn.Module], inputs: Batch, runtime: str
) -> dict[Name, list[float]]:
    """The median time of a call with one sample on one thread, for each opening: those of the same
    place in the lists were measured in turn.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: write_artifact(network, inputs, Path(folder) / str(i), runtime)
            for i, (name, network) in enumerate(networks.items())
        }
        opened = [
            time_in_turn({n: replace(f) for n, f in files.items()}, inputs, SECONDS * len(files))
            for _ in range(OPENINGS)
        ]
    return {name: [times[name].p50_ms for times in opened] for name in networks}


def share_of(whole: list[float], small: list[float]) -> tuple[float, float, float]:
    """What `small` takes of the time of `whole`: the median, the least and the most of all
    openings.
    """
    found = [s / w for s, w in zip(small, whole, strict=True)]
    return median(found), min(found), max(found)
