"""What runs inside the emulator: `python guest.py job.json inputs.npz outputs.npz`, one network on
the Arm build of its runtime.

As in `measurement/probe.py`, a bare package stands in for Mirabelle's own, which imports torch. The
plugin that counts instructions takes each `close` of a number that is no file as a mark.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

if __name__ == "__main__":
    del sys.path[0]  # this file's folder
    package = types.ModuleType("mirabelle")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["mirabelle"] = package

import numpy as np

from mirabelle.runtimes import RUNTIMES

MARK = 0x4D495241
WARM_UP = 2


def mark() -> None:
    try:
        os.close(MARK)
    except OSError:
        pass


def main(job: str, inputs: str, outputs: str) -> None:
    settings = json.loads(Path(job).read_text(encoding="utf-8"))
    runs = settings.pop("runs")
    runtime = RUNTIMES[settings["runtime"]]
    # Not through an `Artifact`, which checks its file first: that was done on the machine that sent
    # it, and here are the packages of the runtime alone.
    run = runtime.open(Path(settings["path"]), settings["threads"]).run
    with np.load(inputs) as file:
        arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
    results = [run(arrays) for _ in range(WARM_UP)][-1]
    mark()
    mark()  # nothing between these two: what the marks themselves cost
    for _ in range(runs):
        mark()
        results = run(arrays)
        mark()
    np.savez(outputs, *results)
    print(
        json.dumps(
            {
                "version": runtime.version(),
                "machine": os.uname().machine,
                "torch": "torch" in sys.modules,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
