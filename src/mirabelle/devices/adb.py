"""Exported files timed on an Android phone, over `adb`, by the benchmark program of their own
runtime, which the user has built or downloaded.

Each round pushes nothing anew and calls the program once for each file in turn, so that heat and
other load hit all files alike.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mirabelle.base.errors import InputError, choose
from mirabelle.base.progress import bar
from mirabelle.devices.adb_programs import PROGRAMS, Program, Timing
from mirabelle.runtimes.artifact import Artifact

FOLDER = "/data/local/tmp"
TIMEOUT = 900
ELF_MACHINES = {183: "arm64-v8a", 40: "armeabi-v7a", 62: "x86_64", 3: "x86"}


@dataclass(frozen=True)
class Phone:
    """What a phone says of itself."""

    serial: str
    model: str
    chip: str
    abi: str
    android: str

    def __str__(self) -> str:
        return f"{self.model} ({self.chip}), Android {self.android}, {self.abi}"


class Adb:
    """`adb`, bound to one phone. `InputError` for everything that it refuses, in words that say
    what to do.
    """

    def __init__(self, serial: str | None = None):
        self.program = shutil.which("adb")
        if self.program is None:
            raise InputError(
                "adb is not installed or not on the PATH; it is in Android's platform-tools, on "
                "Debian and Ubuntu: apt-get install adb"
            )
        self.serial = serial or self._only()

    def _only(self) -> str:
        lines = self._call(["devices"]).splitlines()[1:]
        found = dict(line.split()[:2] for line in lines if len(line.split()) >= 2)
        ready = [s for s, state in found.items() if state == "device"]
        if len(ready) == 1:
            return ready[0]
        if ready:
            raise InputError(
                f"{len(ready)} phones are connected ({', '.join(ready)}); choose one with --serial"
            )
        if "unauthorized" in found.values():
            raise InputError(
                "the phone does not trust this computer yet; unlock it and confirm the question "
                "about USB debugging"
            )
        raise InputError(
            f"adb sees no phone that is ready ({found or 'none connected'}); switch USB "
            "debugging on and connect it (docs/phone.md)"
        )

    def _call(self, words: list[str], ok: tuple[int, ...] = (0,)) -> str:
        try:
            ran = subprocess.run(
                [str(self.program), *words],
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"adb {' '.join(words[:4])} was not done after {TIMEOUT} s") from None
        if ran.returncode not in ok:
            said = (ran.stderr + ran.stdout).strip().splitlines()
            raise InputError(
                f"adb {' '.join(words[:4])} failed: "
                f"{said[-1] if said else f'exit status {ran.returncode}'}"
            )
        return ran.stdout + ran.stderr

    def __call__(self, *words: str) -> str:
        return self._call(["-s", self.serial, *words])

    def shell(self, *words: str) -> str:
        """A command on the phone, its words quoted."""
        return self("shell", " ".join(shlex.quote(w) for w in words))

    def phone(self) -> Phone:
        values = {}
        for line in self.shell("getprop").splitlines():
            if match := re.match(r"\[(.*?)\]: \[(.*?)\]", line.strip()):
                values[match[1]] = match[2]
        chip = values.get("ro.soc.model") or values.get("ro.board.platform") or "chip unknown"
        return Phone(
            self.serial,
            values.get("ro.product.model", "model unknown"),
            chip,
            values.get("ro.product.cpu.abi", ""),
            values.get("ro.build.version.release", "?"),
        )


def check_binary(binary: str | Path, phone: Phone) -> Path:
    """The path of the benchmark program; `InputError` where it is not there, is no program, or is
    one for another processor.
    """
    path = Path(binary)
    if not path.is_file():
        raise InputError(
            f"{path} is not there; give the path of the runtime's benchmark program for Android "
            "(docs/phone.md says where to get it)"
        )
    head = path.read_bytes()[:20]
    if head[:4] != b"\x7fELF":
        raise InputError(f"{path} is not a program for Android (no ELF file)")
    machine = ELF_MACHINES.get(int.from_bytes(head[18:20], "little"), "another processor")
    if phone.abi and machine != phone.abi:
        raise InputError(
            f"{path} is for {machine}, the phone is {phone.abi}; build or download it for "
            f"{phone.abi}"
        )
    return path


def run(
    artifacts: Mapping[str, Artifact],
    binary: str | Path,
    *,
    serial: str | None = None,
    threads: int = 1,
    runs: int = 50,
    rounds: int = 5,
    pause: float = 0.0,
) -> tuple[dict[str, list[Timing]], Phone]:
    """Times each file on the phone: `rounds` timings of `runs` calls each, all files in turn in
    every round.

    artifacts: files of one runtime by name. binary: the path, here, of that runtime's benchmark
    program for the phone's processor.
    pause: seconds before each call, for a phone that gets hot. What was pushed is removed at the
    end, also after an error.
    """
    runtimes = sorted({a.runtime for a in artifacts.values()})
    if len(runtimes) != 1:
        raise InputError(
            "one benchmark program times files of one runtime; these are for "
            f"{' and '.join(runtimes)}"
        )
    if runs < 1 or rounds < 1 or threads < 1:
        raise InputError(
            f"runs is {runs}, rounds is {rounds} and threads is {threads}; expected at least 1"
        )
    program = choose(runtimes[0], PROGRAMS, "runtime with a benchmark program")
    adb = Adb(serial)
    phone = adb.phone()
    path = check_binary(binary, phone)
    folder = f"{FOLDER}/mirabelle-{uuid.uuid4().hex[:8]}"
    timings: dict[str, list[Timing]] = {name: [] for name in artifacts}
    with bar(f"timing on {phone.model}", rounds * len(artifacts)) as shown:
        try:
            places = {name: f"{folder}/{i}" for i, name in enumerate(artifacts)}
            adb.shell("mkdir", "-p", *places.values())
            adb("push", str(path), f"{folder}/{program.name}")
            adb.shell("chmod", "755", f"{folder}/{program.name}")
            for name, artifact in artifacts.items():
                for file in artifact.files:
                    adb("push", str(file), f"{places[name]}/{file.name}")
            for _ in range(rounds):
                for name, artifact in artifacts.items():
                    time.sleep(pause)
                    words = program.arguments(artifact.path.name, artifact, threads, runs)
                    timings[name].append(
                        _time(adb, program, f"{folder}/{program.name}", places[name], words, runs)
                    )
                    shown.advance()
        finally:
            adb.shell("rm", "-rf", folder)
    return timings, phone


def _time(
    adb: Adb, program: Program, binary: str, place: str, words: list[str], runs: int
) -> Timing:
    if program.log:
        adb("logcat", "-c")
    line = " ".join(shlex.quote(w) for w in (binary, *words))
    # Some phones' shells do not hand on the exit status.
    text = adb(
        "shell",
        f"cd {shlex.quote(place)} && LD_LIBRARY_PATH={shlex.quote(place)} {line}; echo exit "
        "status $?",
    )
    if program.log:
        text += adb("logcat", "-d", "-s", f"{program.log}:I")
    status = (re.findall(r"exit status (\d+)", text) or ["unknown"])[-1]
    timing = program.read(text, runs) if status == "0" else None
    if timing is None:
        said = [s for s in text.splitlines() if s.strip() and "exit status" not in s]
        raise InputError(
            f"{program.name} gave no timing on the phone (exit status {status}): "
            f"{said[-1] if said else 'it said nothing'}"
        )
    return timing
