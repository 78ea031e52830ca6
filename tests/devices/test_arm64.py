"""Arm under the emulator: what is said where something is missing, marks, and, where it is set up,
real runs.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.base.files import read_json, sha256, write_json
from mirabelle.cli import main
from mirabelle.devices import arm64, arm_setup
from mirabelle.quantization import quantize
from mirabelle.runtimes import RUNTIMES
from mirabelle.verification import sqnr
from tests.quantized_networks import batches, build, needs
from tests.runtimes.files import conv_file


def test_marks_by_hand():
    """The first pair encloses nothing: 7 instructions are the marks' own."""
    assert arm64._counts([100, 107, 200, 1207, 1300, 2309]) == (
        1002,
        2,
    )  # of 1000 and 1002 the greater middle one; they differ by 2
    ends = [10, 1000, 9000, 1002, 1004, 998]  # of five, one that an allocator made far longer
    assert arm64._counts([m for i, n in enumerate(ends) for m in (10000 * i, 10000 * i + n)]) == (
        992,
        4,
    )
    for marks in ([], [1, 2], [1, 2, 3]):
        with pytest.raises(InputError, match="expected pairs"):
            arm64._counts(marks)


def test_nothing_is_set_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MIRABELLE_CACHE", str(tmp_path))
    net = conv_file(tmp_path / "net.onnx", batch=1)
    assert main(["measure", str(net), "--device", "arm64"]) == 1
    assert "`mirabelle setup-arm64` does it" in capsys.readouterr().err
    with pytest.raises(
        InputError,
        match="executorch has no Arm build that runs under the emulator; those that have: "
        "onnxruntime",
    ):
        arm_setup.find("executorch")
    with pytest.raises(InputError, match="did you mean 'cortex-a76'"):
        mb.measure(net, device="arm64", core="cortex-a77")


@pytest.mark.parametrize(
    ("missing", "package"),
    [("qemu-aarch64", "qemu-user"), ("cc", "gcc"), ("apt-get", "apt"), ("dpkg-deb", "dpkg")],
)
def test_tools_that_are_missing_are_named_with_their_package(
    missing, package, tmp_path, monkeypatch
):
    monkeypatch.setenv("MIRABELLE_CACHE", str(tmp_path))
    absent = {missing, *(("gcc", "clang") if missing == "cc" else ())}
    monkeypatch.setattr(
        shutil, "which", lambda name: None if name in absent else f"/usr/bin/{name}"
    )
    with pytest.raises(
        InputError,
        match=f"{missing} is not installed; on Debian and Ubuntu: apt-get install {package}",
    ):
        arm_setup.set_up(["onnxruntime"])
    assert not (tmp_path / "arm64").exists(), "found before anything is made"


def test_unsound_requests(monkeypatch):
    with pytest.raises(InputError, match="'onnx' has no Arm build"):
        arm_setup.set_up(["onnx"])
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InputError, match="programs of Linux only, and this is darwin"):
        arm_setup.set_up(["onnxruntime"])


def test_another_version_there_than_here(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRABELLE_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    write_json(
        tmp_path / "arm64/setup.json",
        {"python": "usr/bin/python3.11", "packages": {"onnxruntime": "1.0"}},
    )
    with pytest.raises(
        InputError, match="onnxruntime is 1.0 for Arm and .* here.*setup-arm64` again"
    ):
        arm_setup.find("onnxruntime")
    with pytest.raises(InputError, match="not set up; `mirabelle setup-arm64 --runtimes openvino`"):
        arm_setup.find("openvino")


def set_up(runtime: str) -> None:
    needs(runtime)
    try:
        arm_setup.find(runtime)
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("runtime", sorted(arm_setup.WHEELS.keys() & RUNTIMES.keys()))
def test_files_run_on_arm(runtime, tmp_path):
    """Outputs as here, and the same number of instructions each time; int8 within what the runtime
    declares.
    """
    set_up(runtime)
    network, data = build("depthwise"), batches(count=1)
    x = data[0][:1].numpy()
    found = mb.measure(
        mb.export(network, tmp_path / "f", runtime=runtime, inputs=x), inputs=x, device="arm64"
    )
    assert found.instructions.relative < 1e-5 and found.latency is None
    # What the allocator does differs from run to run by up to some thousand instructions, however
    # small the network is.
    assert found.instructions.spread <= 0.002 * found.instructions.count + 10_000
    assert "are not milliseconds" in str(found) and "cortex-a76" in str(found)
    if not RUNTIMES[runtime].int8:
        return
    q = quantize(network, data, target="symmetric")
    artifact = mb.export(q, tmp_path / "q", runtime=runtime, inputs=x)
    small = mb.measure(artifact, inputs=x, device="arm64", core="cortex-a53", baseline=artifact)
    assert 0.99 < small.fewer < 1.01
    # Not as on this processor, whose kernels may clip pairs of such weights.
    _, (given,) = arm64.run(artifact, [x], "cortex-a53", runs=1)
    with torch.no_grad():
        simulated = q(data[0][:1]).numpy()
    assert np.abs(given - simulated).max() < 0.05 * np.abs(simulated).max()
    assert (
        np.isfinite(small.instructions.difference)
        and small.to_dict()["instructions"]["count"] > 1000
    )


@pytest.mark.processor
@pytest.mark.parametrize("name", ["residual", "sequential", "depthwise"])
@pytest.mark.parametrize("core", arm64.CORES)
def test_files_for_arm_are_as_good_as_simulated(core, name, tmp_path):
    """On cores with and without the dot product of bytes: kernels for Arm add in 32 bits."""
    set_up("onnxruntime")
    network, x = build(name), torch.cat([3 * b.abs() for b in batches()])
    q = quantize(network, [x], target="arm")
    _, (given,) = arm64.run(mb.export(q, tmp_path, inputs=x[:1]), [x.numpy()], core, runs=3)
    with torch.no_grad():
        exact, simulated = network(x).numpy(), q(x).numpy()
    assert sqnr(exact, given) > sqnr(exact, simulated) - 0.5


def test_wheels_are_those_that_are_known(tmp_path):
    wheel = tmp_path / "numpy-2.4.6-cp313-cp313-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl"
    wheel.write_bytes(b"something else")
    known = read_json(arm_setup.HASHES)
    with pytest.raises(InputError, match=f"expected {known[wheel.name]}"):
        arm_setup.checked(wheel, known)
    assert arm_setup.checked(wheel, {}) == sha256(wheel)
    assert arm_setup.checked(wheel, {wheel.name: sha256(wheel)}) == sha256(wheel)
    assert all(len(h) == 64 and n.endswith(".whl") for n, h in known.items())


def test_runtimes_need_numpy_alone():
    """What the guest imports: other packages of this machine are not on the emulated one."""
    code = (
        "import sys, types; package = types.ModuleType('mirabelle'); "
        f"package.__path__ = [{str(Path(mb.__file__).parent)!r}]; "
        "sys.modules['mirabelle'] = package; before = set(sys.modules); import mirabelle.runtimes; "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['mirabelle', 'numpy']"
