"""Builds the wheel, installs it in an environment of its own, and uses it outside the tree:

    python -m tests.wheel

The tree is not on the path of what is run, so a file that the wheel lacks is missed. Exit status 1
where something failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRIAL = Path(__file__).with_name("trial.py")
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def main() -> None:
    started = time.perf_counter()
    # Setuptools packs what an earlier build left here.
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheel = built(work)
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        call(work, python, *PIP, "install", "-c", ROOT / "constraints.txt", wheel)
        call(work, python.with_name("mirabelle"), "--version")
        # Read from standard input, the trial has the folder on its path and nothing of the tree.
        call(work, python, "-", input=TRIAL.read_text(encoding="utf-8"))
    print(f"{wheel.name} works outside the tree ({time.perf_counter() - started:.0f} s)")


def built(work: Path) -> Path:
    call(ROOT, sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", work, ROOT)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    (wheel,) = work.glob("*.whl")
    return wheel


def call(folder: Path, *command: object, input: str | None = None) -> None:
    away = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=folder, env=away, input=input, text=True)
    if done.returncode:
        sys.exit(f"exit status {done.returncode} of {' '.join(map(str, command))}")


if __name__ == "__main__":
    main()
