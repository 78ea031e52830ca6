"""Nothing that a runtime's package does behind the user's back happens through us: no package
manager is started, no socket of the internet is opened.
"""

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mirabelle.runtimes import RUNTIMES
from tests.quantized_networks import needs

# The converters that runtimes' own packages are: programs of theirs, and of torch, that write files
# and nothing else.
OWN = {"pnnx", "flatc", "lscpu", "ldconfig", "gcc", "cc", "c++", "g++", "uname", "file"}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the watch is a filter of Linux",
)


def watched(*arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    command = [sys.executable, str(Path(__file__).with_name("watched.py")), *arguments]
    environment = {
        k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")
    }  # in which ONNX Runtime is silent by itself
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def test_the_watch_kills_what_opens_a_socket():
    assert watched("socket", "").returncode == -signal.SIGSYS


QUICK = ("onnxruntime", "openvino", "litert")  # those that users have most


@pytest.mark.parametrize(
    "runtime",
    [pytest.param(r, marks=() if r in QUICK else pytest.mark.slow) for r in sorted(RUNTIMES)],
)
def test_a_runtime_installs_nothing_and_tells_nobody(runtime, tmp_path):
    needs(runtime)
    ran = watched(runtime, str(tmp_path))
    assert ran.returncode != -signal.SIGSYS, f"{runtime} opened a socket of the internet"
    assert ran.returncode == 0, ran.stderr[-2000:]
    started = json.loads(ran.stdout.strip().splitlines()[-1])
    programs = {Path(words[0]).name for words in started}
    assert programs <= OWN, started


@pytest.mark.slow
def test_onnxruntime_tells_nobody_later(tmp_path):
    """It would eight seconds after the first session."""
    ran = watched("onnxruntime", str(tmp_path), "15")
    assert ran.returncode == 0, f"{ran.returncode} {ran.stderr[-2000:]}"
