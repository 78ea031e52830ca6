"""How many channels the kernels of a runtime compute together on this machine, found by timing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mirabelle.base.data import Batch, cache_folder
from mirabelle.base.errors import choose
from mirabelle.base.files import content_hash, read_json, write_json
from mirabelle.base.progress import bar
from mirabelle.graph.artifacts import time_in_turn, write_artifact
from mirabelle.measurement.machine import machine
from mirabelle.runtimes import RUNTIMES, Artifact

BLOCKS = (32, 16, 8, 4)  # widest first
# of what is kept in the cache; counted up where the same measurements would now give another result
FORMAT = 5
SECONDS = 3.0
Found = TypeVar("Found")
Write = Callable[[nn.Module, Batch, Path, str, int], Artifact]


def measured_before(path: Path, read: Callable[[Any], Found]) -> Found | None:
    """What `read` makes of a file of the cache; None where there is none, or it is damaged: then it
    is measured again.
    """
    if not path.is_file():
        return None
    try:
        return read(read_json(path))
    except (ValueError, KeyError, TypeError):
        return None


def kernel_block(
    runtime: str = "onnxruntime",
    threads: int = 1,
    form: str = "float",
    write: Write = write_artifact,
) -> int:
    """How many channels the kernels of `runtime` write together on this machine, of `BLOCKS`: found
    by timing a small network, or read from the cache. form, write: as of `latency_model`; kernels
    of integers have blocks of their own.
    """
    adapter = choose(runtime, RUNTIMES, "runtime")
    known = {
        "format": FORMAT,
        "runtime": runtime,
        "form": form,
        "version": adapter.version(),
        "threads": threads,
        "blocks": BLOCKS,
        "machine": machine()["cpu"],
    }
    path = cache_folder() / "latency" / f"block-{content_hash(known)}.json"
    if (
        found := measured_before(path, lambda kept: BLOCKS[BLOCKS.index(kept["block"])])
    ) is not None:
        return found
    draw = torch.Generator().manual_seed(0)
    inputs = Batch((torch.randn(1, 16, 28, 28, generator=draw),), {}, None)
    widths = sorted({w for b in BLOCKS[:-1] for w in _probed(b)})
    with tempfile.TemporaryDirectory() as folder, bar("timing kernels", len(widths)) as shown:
        files = {}
        for width in widths:
            # Nothing sums over the width: what is read need not fill blocks where what is written
            # does.
            network = nn.Sequential(
                nn.Conv2d(16, 64, 1),
                nn.ReLU(),
                nn.Conv2d(64, width, 3, padding=1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
            ).eval()
            files[str(width)] = write(network, inputs, Path(folder) / str(width), runtime, threads)
            shown.advance()
        times = time_in_turn(files, inputs, SECONDS)
    block = widest_block({w: times[str(w)].p50_ms for w in widths})
    write_json(path, {"block": block})
    return block


def _probed(block: int) -> tuple[int, int, int]:
    """One block, one and a half, and two: the second takes as long as the third where kernels have
    blocks of this width, and is half way where they are narrower.
    """
    return block, block + block // 2, 2 * block


def widest_block(milliseconds: Mapping[int, float]) -> int:
    """The widest of `BLOCKS` of which a part takes as long as the whole. milliseconds: by width, of
    all that `_probed` gives.
    """
    for block in BLOCKS[:-1]:
        one, more, two = (milliseconds[width] for width in _probed(block))
        if more - one > (1 + 1 / 2) / 2 * (two - one) > 0:
            return block
    return BLOCKS[-1]
