"""The machine that a number was measured on, in as far as it tells."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

# Instructions that decide how fast int8 and bfloat16 are.
FEATURES = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "neon",
    "asimd",
    "asimddp",
    "i8mm",
)


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = [line.partition(":") for line in text.splitlines()]
    entries: dict[str, str] = {}
    for key, _, value in pairs:
        entries.setdefault(key.strip(), value.strip())
    return entries


def _sysctl(*names: str) -> str:
    """The values of macOS's settings, joined by spaces; empty elsewhere."""
    try:
        return " ".join(
            subprocess.run(
                ["sysctl", "-n", *names], check=False, capture_output=True, text=True, timeout=10
            ).stdout.split()
        )
    except (OSError, subprocess.SubprocessError):
        return ""


def _flags() -> str:
    if platform.system() == "Darwin":
        names = _sysctl("machdep.cpu.features", "machdep.cpu.leaf7_features").lower()
        arm = {
            "hw.optional.neon": "neon",
            "hw.optional.AdvSIMD": "asimd",
            "hw.optional.arm.FEAT_DotProd": "asimddp",
            "hw.optional.arm.FEAT_I8MM": "i8mm",
        }
        return " ".join([names, *(feature for key, feature in arm.items() if _sysctl(key) == "1")])
    entries = _cpuinfo()
    return entries.get("flags") or entries.get("Features") or ""  # x86 | Arm


def _cpu() -> str:
    entries = _cpuinfo()
    named = (
        entries.get("model name")
        or entries.get("Hardware")
        or (_sysctl("machdep.cpu.brand_string") if platform.system() == "Darwin" else "")
    )
    return named or platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


@lru_cache(maxsize=1)
def _fixed() -> tuple[str, tuple[str, ...]]:
    flags = set(_flags().split())
    return _cpu(), tuple(f for f in FEATURES if f in flags)


def machine() -> dict:
    """What a report says of this machine, ready for JSON.

    cpu: its name. features: those of `FEATURES` that it has; empty where the system hides them.
    cores: those this process may use.
    memory: bytes, or None. system, python: with versions.
    """
    cpu, features = _fixed()
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return {
        "cpu": cpu,
        "features": list(features),
        "cores": cores,
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions(*packages: str) -> dict[str, str | None]:
    """The installed version of each package; None for one that is not installed. None is
    imported.
    """
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
