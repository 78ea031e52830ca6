"""The memory that a network needs where it is deployed: in a process with the runtime and without
torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.base.errors import InputError

TIMEOUT = 600


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of resident memory at the peak of a process that loads a network and runs it once.

    total: of the whole process. before_loading: the peak with Python, NumPy, the runtime and the
    inputs, but without the network.
    """

    total: int
    before_loading: int

    @property
    def network(self) -> int:
        """What loading and running the network added."""
        return self.total - self.before_loading

    def __str__(self) -> str:
        return f"{self.total / 1e6:.1f} MB, {self.network / 1e6:.1f} MB of it for the network"


def peak_bytes() -> int:
    """The most resident memory that this process has had so far.

    From VmHWM on Linux: it starts anew at exec, while ru_maxrss of a child begins at the peak of
    its parent. Raises `InputError` on Windows.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        raise InputError(f"the peak memory of a process cannot be read on {sys.platform}") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others KiB


def peak_memory(artifact: Any, *arrays: Any) -> PeakMemory:
    """The peak memory of an `Artifact` for these inputs (batch as given), in a fresh process that
    imports the runtime and never torch.

    Raises `InputError` with the child's own last words where it fails, and where the system tells
    no peak.
    """
    ready: Sequence[np.ndarray] = artifact.arrays(*arrays)
    with tempfile.TemporaryDirectory() as folder:
        job, inputs = Path(folder) / "job.json", Path(folder) / "inputs.npz"
        job.write_text(
            json.dumps(
                {
                    "path": str(artifact.path.resolve()),
                    "runtime": artifact.runtime,
                    "threads": artifact.threads,
                }
            ),
            encoding="utf-8",
        )
        named: dict[str, Any] = {f"input_{i}": a for i, a in enumerate(ready)}
        np.savez(inputs, **named)
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        command = [sys.executable, str(Path(__file__).with_name("probe.py")), str(job), str(inputs)]
        try:
            child = subprocess.run(
                command,
                check=False,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise InputError(
                f"{artifact.path.name} was not done after {TIMEOUT} s in a process of its own"
            ) from None
    if child.returncode:
        words = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        raise InputError(
            f"the peak memory of {artifact.path.name} could not be measured: {words[-1]}"
        )
    answer = json.loads(child.stdout.strip().splitlines()[-1])
    return PeakMemory(answer["total"], answer["before_loading"])
