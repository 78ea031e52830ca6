"""What `memory.peak_memory` runs in a process of its own: `python probe.py job.json inputs.npz`.
Prints JSON.

The package's own `__init__` imports torch, which no device has: a bare package of the same name
stands in for it here.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

if __name__ == "__main__":
    del sys.path[0]  # this file's folder
    package = types.ModuleType("mirabelle")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["mirabelle"] = package

import numpy as np

from mirabelle.measurement.memory import peak_bytes
from mirabelle.runtimes import Artifact


def main(job: str, inputs: str) -> None:
    artifact = Artifact(**json.loads(Path(job).read_text(encoding="utf-8")))
    _ = artifact.version  # imports the runtime
    with np.load(inputs) as file:
        arrays = [file[f"input_{i}"] for i in range(len(file.files))]
    before = peak_bytes()
    artifact(*arrays)
    print(
        json.dumps(
            {"total": peak_bytes(), "before_loading": before, "torch": "torch" in sys.modules}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
