"""Exported files on the 64-bit Arm build of their runtime: outputs, and the number of instructions,
which is the same on every machine and run.

QEMU's user mode runs the Arm build of Python and of the runtime; a plugin counts. Instructions are
not milliseconds: they know nothing of caches, memory bandwidth and how many of them a core does at
once. They rank variants of one network on one runtime.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mirabelle.base.errors import InputError, choose
from mirabelle.devices import arm_setup
from mirabelle.runtimes.artifact import Artifact

TIMEOUT = 1800
NOT_TIME = "instructions are not milliseconds"
RUNS = 5


class Core(NamedTuple):
    """An Arm core as the emulator and /proc/cpuinfo know it, which runtimes choose their kernels
    by.
    """

    part: int
    features: str


# With and without the dot product of four int8 pairs, which decides what int8 gains.
CORES = {
    "cortex-a76": Core(
        0xD0B,
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
        "dcpop asimddp",
    ),
    "cortex-a53": Core(0xD03, "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"),
}


@dataclass(frozen=True)
class Instructions:
    """One inference on Arm. count: its instructions, the median of `runs`; spread: the distance
    between their quartiles.

    difference: the largest absolute difference from this machine's outputs; largest: their largest
    absolute value.
    """

    count: int
    spread: int
    runs: int
    core: str
    difference: float
    largest: float
    runtime: str
    emulator: str

    @property
    def relative(self) -> float:
        """The difference as a share of the largest output."""
        return self.difference / self.largest if self.largest else self.difference

    def __str__(self) -> str:
        return (
            f"{self.count / 1e6:.2f} M on {self.core} ({NOT_TIME}), outputs as here to "
            f"{self.relative:.1e} of the largest"
        )


def run(
    artifact: Artifact, arrays: Sequence[np.ndarray], core: str = "cortex-a76", runs: int = RUNS
) -> tuple[Instructions, list[np.ndarray]]:
    """Runs `artifact` on Arm, one thread: what it cost, and its outputs.

    arrays: one for each input, as `Artifact.arrays` gives them. core: a name of `CORES`. Needs
    `mirabelle setup-arm64`.
    Raises `InputError` where something is not set up, or the runtime fails on Arm.
    """
    choose(core, CORES, "core")
    setup = arm_setup.find(artifact.runtime)
    here = artifact.session.run(list(arrays))  # checks the file, which nothing does over there
    with tempfile.TemporaryDirectory() as folder:
        marks, results, version = _emulated(artifact, arrays, setup, core, runs, Path(folder))
    counts, spread = _counts(marks)
    difference, largest = _apart(here, results)
    return Instructions(
        counts,
        spread,
        runs,
        core,
        difference,
        largest,
        f"{artifact.runtime} {version}",
        _version(setup.emulator),
    ), results


def _emulated(
    artifact: Artifact,
    arrays: Sequence[np.ndarray],
    setup: arm_setup.Setup,
    core: str,
    runs: int,
    folder: Path,
) -> tuple[list[int], list[np.ndarray], str]:
    """The marks of the counting plugin, the outputs, and the runtime's version on Arm."""
    job, inputs, outputs, counted = (
        folder / name for name in ("job.json", "inputs.npz", "outputs.npz", "counted")
    )
    settings = {
        "path": str(artifact.path.resolve()),
        "runtime": artifact.runtime,
        "threads": 1,
        "runs": runs,
    }
    job.write_text(json.dumps(settings), encoding="utf-8")
    np.savez(inputs, *arrays)
    prefix = _prefix(folder, setup.root, CORES[core])
    guest = Path(__file__).with_name("guest.py")
    emulator = [setup.emulator, "-L", prefix, "-cpu", core]
    plugin = ["-plugin", f"{setup.plugin},out={counted}"]
    command = [*emulator, *plugin, setup.python, guest, job, inputs, outputs]
    try:
        ran = subprocess.run(
            [str(c) for c in command],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            env=_environment(setup, folder),
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{artifact.path.name} was not done on the emulator after {TIMEOUT} s"
        ) from None
    if ran.returncode or not outputs.is_file():
        words = [line for line in ran.stderr.splitlines() if line.strip()] or [
            f"exit status {ran.returncode}"
        ]
        raise InputError(
            f"{artifact.runtime} fails on 64-bit Arm with {artifact.path.name}: {words[-1]}"
        )
    marks = [int(line) for line in counted.read_text(encoding="utf-8").split()]
    with np.load(outputs) as file:
        results = [file[f"arr_{i}"] for i in range(len(file.files))]
    return marks, results, json.loads(ran.stdout.strip().splitlines()[-1])["version"]


def _environment(setup: arm_setup.Setup, folder: Path) -> dict[str, str]:
    return {
        "PYTHONHOME": str(setup.root / "usr"),
        "PYTHONPATH": str(setup.site),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ.get("PATH", ""),
        "TMPDIR": str(folder),
    }


def _apart(here: Sequence[np.ndarray], there: Sequence[np.ndarray]) -> tuple[float, float]:
    """The largest difference between outputs, and the largest output."""
    difference = max(
        (
            float(np.abs(a.astype(np.float64) - b).max())
            for a, b in zip(here, there, strict=True)
            if a.size
        ),
        default=0.0,
    )
    return difference, max((float(np.abs(a).max()) for a in here if a.size), default=0.0)


def _counts(marks: Sequence[int]) -> tuple[int, int]:
    """The median count between each pair of marks, less that of the first pair, which encloses
    nothing; and the distance between the quartiles, as allocators do more now and then.
    """
    if len(marks) < 4 or len(marks) % 2:
        raise InputError(
            f"the counting plugin wrote {len(marks)} marks; expected pairs; run `mirabelle "
            "setup-arm64` again"
        )
    pairs = [b - a for a, b in zip(marks[::2], marks[1::2])]
    found = sorted(p - pairs[0] for p in pairs[1:])
    return found[len(found) // 2], found[3 * len(found) // 4] - found[len(found) // 4]


def _prefix(folder: Path, root: Path, core: Core) -> Path:
    """The Arm system with a /proc/cpuinfo of that core: the emulator shows this machine's, from
    which some runtimes cannot start.
    """
    prefix = folder / "root"
    (prefix / "proc").mkdir(parents=True)
    for entry in root.iterdir():
        (prefix / entry.name).symlink_to(entry)
    (prefix / "proc/cpuinfo").write_text(
        f"processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: {core.features}\nCPU implementer\t: "
        "0x41\nCPU architecture: 8\nCPU variant\t: 0x1\n"
        f"CPU part\t: {core.part:#x}\nCPU revision\t: 0\n\n",
        encoding="utf-8",
    )
    return prefix


def _version(emulator: str) -> str:
    words = subprocess.run(
        [emulator, "--version"], check=False, capture_output=True, text=True
    ).stdout.split()
    return f"qemu {words[2]}" if len(words) > 2 else "qemu"
