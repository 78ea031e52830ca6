"""Sets up what `arm64.py` needs in the user's cache folder: a Python and its libraries for 64-bit
Arm, the runtimes' Arm wheels, the counting plugin.

Nothing is installed into the system and nothing needs root. `mirabelle setup-arm64` calls it;
nothing else does.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from mirabelle.base.data import cache_folder
from mirabelle.base.errors import InputError
from mirabelle.base.files import read_json, sha256, write_json
from mirabelle.base.progress import bar

EMULATOR = "qemu-aarch64"
# What Debian's Python and the wheels load. Their own dependencies come along.
DEBS = ("python3", "libstdc++6", "libgomp1")
# The packages of each runtime, the first of them in the version that is installed here; and what
# they import.
WHEELS = {
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-mobile": ("onnxruntime",),
    "openvino": ("openvino",),
    "litert": ("ai-edge-litert", "flatbuffers", "typing-extensions"),
    "ncnn": ("ncnn",),
    "mnn": ("MNN",),
}
PLATFORMS = [f"manylinux_2_{n}_aarch64" for n in (17, 24, 26, 27, 28, 31, 34, 35, 36)] + [
    "manylinux2014_aarch64",
    "any",
]
HASHES = Path(__file__).with_name("wheels.json")
PLUGIN_VERSIONS = range(1, 8)


class Setup(NamedTuple):
    """root: the Arm system. python: the interpreter in it. site: the wheels' folder. plugin: the
    library that counts.
    """

    root: Path
    python: Path
    site: Path
    plugin: Path
    emulator: str
    packages: dict[str, str]


def folder() -> Path:
    return cache_folder() / "arm64"


def find(runtime: str) -> Setup:
    """What was set up. `InputError` says which command does it where that, or this runtime, is
    missing.
    """
    if runtime not in WHEELS:
        raise InputError(
            f"{runtime} has no Arm build that runs under the emulator; those that have: "
            f"{', '.join(WHEELS)}"
        )
    path = folder() / "setup.json"
    if not path.is_file():
        raise InputError(
            f"nothing is set up for 64-bit Arm in {folder()}; `mirabelle setup-arm64` does it"
        )
    known = read_json(path)
    emulator = _tool(EMULATOR, "qemu-user")
    package = WHEELS[runtime][0]
    if package not in known["packages"]:
        raise InputError(
            f"the Arm build of {runtime} is not set up; `mirabelle setup-arm64 --runtimes "
            f"{runtime}` does it"
        )
    here = _installed(package)
    if here is not None and here != known["packages"][package]:
        raise InputError(
            f"{package} is {known['packages'][package]} for Arm and {here} here, so that the "
            "two cannot be compared; run `mirabelle setup-arm64` again"
        )
    root = folder() / "root"
    return Setup(
        root,
        root / known["python"],
        folder() / "site",
        folder() / "count.so",
        emulator,
        known["packages"],
    )


def set_up(runtimes: Sequence[str] | None = None) -> Setup:
    """Fetches and builds everything; what is there already is kept. runtimes: names of `WHEELS`; by
    default those that are installed here.

    Needs QEMU's user mode, a C compiler, apt-get and dpkg-deb (Debian, Ubuntu), pip; `InputError`
    names what is missing and its package.
    """
    chosen = [r for r in WHEELS if _installed(WHEELS[r][0])] if runtimes is None else list(runtimes)
    for name in chosen:
        if name not in WHEELS:
            raise InputError(
                f"{name!r} has no Arm build that runs under the emulator; those that have: "
                f"{', '.join(WHEELS)}"
            )
    if sys.platform != "linux":
        raise InputError(f"the emulator runs programs of Linux only, and this is {sys.platform}")
    emulator = _tool(EMULATOR, "qemu-user")
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None) or _tool(
        "cc", "gcc"
    )
    for tool in ("apt-get", "dpkg-deb"):
        _tool(tool, {"apt-get": "apt", "dpkg-deb": "dpkg"}[tool])
    folder().mkdir(parents=True, exist_ok=True)
    root = folder() / "root"
    with bar("setting up Arm", 3 + len(chosen)) as shown:
        if not (root / "complete").is_file():
            _system(root)
        shown.advance()
        python = _python(root)
        shown.advance()
        _plugin(compiler, emulator, root, python)
        shown.advance()
        version = ".".join(re.findall(r"\d+", python.name)[:2])
        packages, wheels = _wheels(chosen, version, shown.advance)
    known = {"python": str(python.relative_to(root)), "packages": packages, "wheels": wheels}
    write_json(folder() / "setup.json", known)
    return Setup(root, python, folder() / "site", folder() / "count.so", emulator, packages)


def _tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise InputError(
            f"{name} is not installed; on Debian and Ubuntu: apt-get install {package}"
        )
    return found


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _run(command: Sequence[str | Path], what: str, **options) -> str:
    ran = subprocess.run(
        [str(c) for c in command],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        **options,
    )
    if ran.returncode:
        lines = [line for line in (ran.stderr + ran.stdout).splitlines() if line.strip()]
        raise InputError(
            f"{what} failed: {lines[-1] if lines else f'exit status {ran.returncode}'}"
        )
    return ran.stdout


def _system(root: Path) -> None:
    """Python and its libraries from this system's own package sources, for the other architecture,
    unpacked beside one another.
    """
    state = folder() / "apt"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "state/status").touch()
    settings = state / "apt.conf"
    settings.write_text(
        'APT::Architecture "arm64";\nAPT::Architectures { "arm64"; };\nDebug::NoLocking '
        f'"1";\nDir::State "{state}/state";\n'
        f'Dir::State::status "{state}/state/status";\nDir::Cache "{state}/cache";\n',
        encoding="utf-8",
    )
    environment = {
        "APT_CONFIG": str(settings),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
    }
    hint = (
        "fetching Arm packages from this system's sources (Ubuntu has them on another "
        "server: add it to the sources)"
    )
    _run(["apt-get", "update"], hint, env=environment)
    _run(
        ["apt-get", "install", "--download-only", "-y", "--no-install-recommends", *DEBS],
        hint,
        env=environment,
    )
    with tempfile.TemporaryDirectory(dir=root.parent) as temporary:
        new = Path(temporary) / "root"
        for package in sorted((state / "cache/archives").glob("*.deb")):
            _run(["dpkg-deb", "-x", package, new], f"unpacking {package.name}")
        (new / "complete").touch()
        shutil.rmtree(root, ignore_errors=True)
        new.rename(root)
    shutil.rmtree(state)


def _python(root: Path) -> Path:
    found = [
        p
        for p in sorted((root / "usr/bin").glob("python3.*"))
        if re.fullmatch(r"python3\.\d+", p.name)
    ]
    if not found:
        raise InputError(
            f"{root} holds no Python; remove that folder and run `mirabelle setup-arm64` again"
        )
    return found[-1]


def _plugin(compiler: str, emulator: str, root: Path, python: Path) -> None:
    """Compiles the plugin for the version of the interface that this QEMU takes, which shows only
    when it is loaded.
    """
    target, words = folder() / "count.so", ""
    with tempfile.TemporaryDirectory() as temporary:
        for number in PLUGIN_VERSIONS:
            built, counted = Path(temporary) / "count.so", Path(temporary) / "counted"
            source = Path(__file__).with_name("count.c")
            _run(
                [
                    compiler,
                    "-shared",
                    "-fPIC",
                    "-O2",
                    f"-DPLUGIN_VERSION={number}",
                    "-o",
                    built,
                    source,
                ],
                "compiling the counting plugin",
            )
            script = (
                "import os, contextlib\nwith contextlib.suppress(OSError): os.close(0x4D495241)"
            )
            command = [
                emulator,
                "-L",
                str(root),
                "-plugin",
                f"{built},out={counted}",
                str(python),
                "-S",
                "-c",
                script,
            ]
            environment = {"PYTHONHOME": str(root / "usr")}
            ran = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                timeout=600,
            )
            if (
                ran.returncode == 0
                and counted.is_file()
                and int(counted.read_text().split()[0]) > 0
            ):
                shutil.copyfile(built, target)
                return
            words = (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
    raise InputError(
        f"{emulator} does not take the plugin that counts instructions ({words}); it needs a "
        "QEMU of at least 4.2 built with plugins"
    )


def _wheels(
    runtimes: Sequence[str], version: str, done: Callable[[], None]
) -> tuple[dict[str, str], dict[str, str]]:
    """The Arm wheels of each runtime and of NumPy, unpacked into `site`; the versions that are
    there, and the SHA-256 of each file that was fetched.
    """
    path = folder() / "setup.json"
    packages: dict[str, str] = read_json(path)["packages"] if path.is_file() else {}
    seen: dict[str, str] = read_json(path).get("wheels", {}) if path.is_file() else {}
    site = folder() / "site"
    for package in dict.fromkeys(["numpy", *(w for r in runtimes for w in WHEELS[r])]):
        wanted = _installed(package)
        if package in packages and wanted in (None, packages[package]):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary=:all:",
            ]
            command += [
                "--python-version",
                version,
                "--implementation",
                "cp",
                *(a for p in PLATFORMS for a in ("--platform", p)),
            ]
            command += ["--dest", temporary, package if wanted is None else f"{package}=={wanted}"]
            _run(command, f"fetching the Arm build of {package} for Python {version}")
            wheel = next(Path(temporary).glob("*.whl"))
            seen[wheel.name] = checked(wheel, {**seen, **read_json(HASHES)})
            with zipfile.ZipFile(wheel) as file:
                file.extractall(site)
            packages[package] = wheel.name.split("-")[1]
    for _ in runtimes:
        done()
    return packages, seen


def checked(wheel: Path, known: Mapping[str, str]) -> str:
    """The SHA-256 of a wheel. `InputError` where another one is known for a file of its name.

    Known are those of the versions that Mirabelle is tested with (`wheels.json`) and those that
    were fetched before; of others pip itself compares what came with what the index says.
    """
    found = sha256(wheel)
    if known.get(wheel.name, found) != found:
        raise InputError(
            f"{wheel.name} has SHA-256 {found}, expected {known[wheel.name]}; it is damaged or has "
            "been changed: look at the package index that pip is set to"
        )
    return found


def describe(found: Setup) -> str:
    return json.dumps(found.packages, sort_keys=True)
