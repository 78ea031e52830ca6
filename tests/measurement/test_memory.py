"""Peak memory is that of a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from mirabelle.base.errors import InputError
from mirabelle.measurement import latency, memory, peak_memory
from mirabelle.runtimes import RUNTIMES, load
from tests.measurement.files import PATH, save
from tests.quantized_networks import needs


@pytest.fixture(
    params=sorted(
        n for n, r in RUNTIMES.items() if r.save is not None and r.free_batch and n != "sparse"
    )
)
def wide(request, tmp_path):
    """A file of 64 MB of weights, so that loading it cannot be overlooked."""
    needs(request.param)
    constants = {"w": np.ones((4096, 4096), "float32")}
    node, f = helper.make_node("MatMul", ["x", "w"], ["y"]), TensorProto.FLOAT
    path = save(
        tmp_path / "wide.onnx", [node], [("x", f, ["n", 4096])], [("y", f, ["n", 4096])], constants
    )
    return load(RUNTIMES[request.param].save(path, tmp_path / "out"), request.param)


def test_peak_memory_is_that_of_a_fresh_process(wide):
    ballast = np.ones(
        150_000_000, "float64"
    )  # 1.2 GB in this process: a child that inherits its peak would show it
    assert memory.peak_bytes() > ballast.nbytes
    peak = peak_memory(wide, np.ones((1, 4096), "float32"))
    del ballast
    assert 64e6 < peak.network < 400e6
    assert 20e6 < peak.before_loading < peak.total < 1.0e9
    assert f"{peak.total / 1e6:.1f} MB" in str(peak)


def test_the_probe_does_not_import_torch(wide, tmp_path):
    (tmp_path / "job.json").write_text(
        json.dumps({"path": str(wide.path), "runtime": wide.runtime, "threads": 1})
    )
    np.savez(tmp_path / "inputs.npz", input_0=np.ones((1, 4096), "float32"))
    probe = Path(latency.__file__).with_name("probe.py")
    done = subprocess.run(
        [sys.executable, probe, tmp_path / "job.json", tmp_path / "inputs.npz"],
        env=PATH,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["torch"] is False


def test_peak_memory_says_why_it_failed(wide, monkeypatch):
    with pytest.raises(InputError, match="expected"):
        peak_memory(wide, np.ones((1, 3), "float32"))
    x = np.ones((1, 4096), "float32")
    _ = wide.session
    wide.path.unlink()
    with pytest.raises(InputError, match="could not be measured.*not there"):
        peak_memory(wide, x)
