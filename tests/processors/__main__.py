"""Runs tests as on other processors than this one, for the kernels that runtimes choose by the
instructions there are:

    python -m tests.processors           every test on each kind of processor, the example's recipe
    too, and the tests on Arm python -m tests.processors --short   the tests marked `processor`, on
    the smallest networks and on AVX2 alone

Where Linux lets CPUID fault, `cpuid.c` takes instructions away, and everything runs at full speed.
Elsewhere OpenVINO is told to do without them, and ONNX Runtime runs under QEMU, which knows AVX2
and no more. The table at the end says how each kind was run, or why it could not be. Exit status 1
where a test failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mirabelle.base.errors import InputError
from mirabelle.devices import arm_setup
from mirabelle.measurement.machine import machine

SOURCE = Path(__file__).with_name("cpuid.c")
UNSUPPORTED = 77
SHORT = "sequential or kernels or one_changed"
CLIPPING = "avx2"  # the kind that differs most from the processors of today: it is in both forms


class Kind(NamedTuple):
    """needs: what of `machine()["features"]` a processor must have to be made this kind. isa: its
    name in oneDNN. clips: whether kernels add pairs in 16 bits.
    """

    needs: frozenset[str]
    isa: str
    clips: bool


KINDS = {
    "avx2": Kind(frozenset({"avx2"}), "AVX2", True),
    "avx2-vnni": Kind(frozenset({"avx2", "avx_vnni"}), "AVX2_VNNI", False),
    "avx512": Kind(frozenset({"avx2", "avx512f"}), "AVX512_CORE", True),
    "avx512-vnni": Kind(frozenset({"avx2", "avx512f", "avx512_vnni"}), "AVX512_CORE_VNNI", False),
}


class Run(NamedTuple):
    """What was found of one kind. how: the means. outcome: pytest's last line, or why there is
    none.
    """

    kind: str
    how: str
    outcome: str
    failed: bool = False


def native(features: set[str]) -> str | None:
    """The kind that this processor is, with nothing taken away; None where it is none of them, or
    has more.
    """
    more = {"amx_int8"} & features
    return None if more else next((k for k in reversed(KINDS) if KINDS[k].needs <= features), None)


def preload(folder: Path) -> tuple[Path | None, str]:
    """The library that takes instructions away, and an empty text; or None, and why it cannot be
    had.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return None, f"this is {sys.platform} on {os.uname().machine}"
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        return None, "there is no C compiler"
    library = folder / "cpuid.so"
    built = subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"],
        check=False,
        capture_output=True,
        text=True,
    )
    if built.returncode:
        return None, f"{compiler} cannot compile {SOURCE.name}"
    tried = subprocess.run(
        [sys.executable, "-S", "-c", ""],
        check=False,
        env={**os.environ, "LD_PRELOAD": str(library), "PROCESSOR": "avx2"},
    )
    return (
        (library, "") if tried.returncode == 0 else (None, "CPUID does not fault on this processor")
    )


def tests(
    kind: str,
    how: str,
    options: list[str],
    command: list[str],
    environment: dict[str, str],
    seconds: float = 3600,
) -> Run:
    """Runs pytest as on `kind`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    print(f"--- {kind}: {how}", flush=True)
    start = time.monotonic()
    try:
        ran = subprocess.run(
            [*command, "-m", "pytest", "--show-capture=no", *options],
            check=False,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Run(kind, how, f"not done after {seconds:g} s", True)
    last = next(
        (
            line
            for line in reversed(ran.stdout.splitlines())
            if re.search(r"\d+ (passed|failed|error)", line)
        ),
        "pytest gave no result",
    )
    if ran.returncode:
        print(ran.stdout, flush=True)
    return Run(
        kind,
        how,
        f"{re.sub(r' in .*', '', last.strip('= '))}, {time.monotonic() - start:.0f} s",
        ran.returncode != 0,
    )


def on_x86(short: bool, folder: Path) -> Iterator[Run]:
    features = set(machine()["features"])
    library, why = preload(folder)
    marked = ["-m", "processor", *(["-k", SHORT] if short else [])]
    for name, kind in KINDS.items():
        if name == native(features):
            yield Run(name, "this processor itself", "`make test` runs all tests on it")
        elif short and name != CLIPPING:
            yield Run(name, "left out of the short form", "`make test-processors` runs it")
        elif library and kind.needs <= features:
            everything = ["-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile"]
            given = {"LD_PRELOAD": str(library), "PROCESSOR": name}
            yield tests(
                name,
                "instructions taken away",
                [*everything, *(marked if short else [])],
                [sys.executable],
                given,
            )
            if not short:
                yield recipe(name, folder / name, given)
        else:
            lacking = (
                f"this processor lacks {', '.join(sorted(kind.needs - features))}"
                if kind.needs - features
                else why
            )
            yield from elsewhere(name, kind, features, marked, lacking)


def elsewhere(
    name: str, kind: Kind, features: set[str], marked: list[str], why: str
) -> Iterator[Run]:
    """Each runtime by means of its own."""
    if kind.needs <= features:
        some = [*marked[:2], "-k", " and ".join(["openvino", *(f"({k})" for k in marked[3:])])]
        yield tests(
            name,
            "OpenVINO alone, by ONEDNN_MAX_CPU_ISA",
            ["-n", "2", *some],
            [sys.executable],
            {"ONEDNN_MAX_CPU_ISA": kind.isa},
        )
    emulator = shutil.which("qemu-x86_64")
    if name == "avx2" and emulator:
        few = [
            *marked[:2],
            "-k",
            "onnxruntime_equals_the_reference and (residual or sequential) and not in_place",
        ]
        yield tests(
            name,
            "ONNX Runtime alone, under QEMU",
            ["-p", "no:xdist", *few],
            [emulator, "-cpu", "Haswell", sys.executable],
            {"PROCESSOR": name},
        )
    else:
        hint = (
            "; for ONNX Runtime: apt-get install qemu-user"
            if name == "avx2"
            else "; QEMU knows AVX2 and no more" * (sys.platform == "linux")
        )
        yield Run(name, "not run on ONNX Runtime", why + hint)


def recipe(name: str, folder: Path, environment: dict[str, str]) -> Run:
    """The example's whole recipe, whose limits must hold."""
    words = [
        sys.executable,
        "-m",
        "mirabelle.cli",
        "run",
        "examples/fashion.yaml",
        "--folder",
        str(folder),
    ]
    print(f"--- {name}: examples/fashion.yaml", flush=True)
    ran = subprocess.run(
        words,
        check=False,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = [
        line for line in ran.stdout.splitlines() if "times faster" in line or "limit missed" in line
    ]
    if ran.returncode:
        print(ran.stdout, flush=True)
    return Run(
        name,
        "examples/fashion.yaml",
        "; ".join(said) or f"exit status {ran.returncode}",
        ran.returncode != 0,
    )


def on_arm(short: bool) -> Run:
    try:
        if not short:
            arm_setup.set_up()
        arm_setup.find("onnxruntime")
    except InputError as error:
        return Run("arm", "not run", str(error))
    if short:
        return Run("arm", "64-bit Arm under QEMU", "`make test` runs tests/devices/test_arm64.py")
    options = ["tests/devices/test_arm64.py", "-p", "no:xdist"]
    return tests("arm", "64-bit Arm under QEMU", options, [sys.executable], {})


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.processors", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help="only the tests marked `processor`, on the smallest networks",
    )
    short = parser.parse_args().short
    with tempfile.TemporaryDirectory() as folder:
        runs = [*on_x86(short, Path(folder)), on_arm(short)]
    for run in runs:
        print(f"{run.kind:12} {run.how:40} {run.outcome}")
    return int(any(run.failed for run in runs))


if __name__ == "__main__":
    sys.exit(main())
