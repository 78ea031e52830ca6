"""The machine and the versions that go with each number."""

import json
import sys
from pathlib import Path

import numpy as np

from mirabelle.measurement.machine import machine, versions


def test_machine_and_versions(monkeypatch):
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert (
        found["cpu"]
        and found["cores"] >= 1
        and found["memory"] > 1e8
        and found["python"].startswith("3.")
    )
    if "avx2" in (
        flags := cpuinfo.read_text() if (cpuinfo := Path("/proc/cpuinfo")).exists() else ""
    ):
        assert "avx2" in found["features"]
    assert versions("numpy", "no-such-package") == {
        "numpy": np.__version__,
        "no-such-package": None,
    }
    module = sys.modules["mirabelle.measurement.machine"]
    for flags, features in (
        ("fpu avx2 avx_vnni", ["avx2", "avx_vnni"]),
        ("asimd asimddp", ["asimd", "asimddp"]),
        ("", []),
    ):
        module._fixed.cache_clear()
        monkeypatch.setattr(module, "_flags", lambda flags=flags: flags)
        assert machine()["features"] == features
    module._fixed.cache_clear()
