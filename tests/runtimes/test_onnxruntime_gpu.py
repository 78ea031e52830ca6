"""The options of ONNX Runtime's providers for GPUs. Files are made here; that they run on a GPU is
not seen by any test without one.
"""

import json

import numpy as np
import onnxruntime as ort
import pytest
import torch

import mirabelle as mb
from mirabelle.base.errors import InputError, MissingRuntimeError
from mirabelle.quantization import quantize
from mirabelle.runtimes import load, onnxruntime_gpu
from tests.quantized_networks import batches, build

GPU = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="says what happens without one"
)
ON = {
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}


def exported(folder, runtime, quantized, target="tensorrt"):
    x = batches(count=1)[0]
    network = (
        quantize(build("residual"), batches(), target=target)
        if quantized
        else build("residual").eval()
    )
    return mb.export(network, folder, runtime=runtime, inputs=x[:1]), network, x


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("runtime", ON)
def test_options_lie_beside_the_file_and_belong_to_it(runtime, quantized, tmp_path):
    artifact, _, x = exported(tmp_path, runtime, quantized)
    assert [f.name for f in artifact.files] == ["model.onnx", "model.providers.json"]
    listed = json.loads(artifact.files[1].read_text())
    names = [name for name, _ in listed]
    assert names[0] == ON[runtime] and names[-2:] == [
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert all(isinstance(v, str) for _, chosen in listed for v in chosen.values()), (
        "as ONNX Runtime takes them"
    )
    if runtime == "onnxruntime-tensorrt":
        chosen = listed[0][1]
        assert (
            chosen["trt_int8_enable"] == str(int(quantized))
            and "trt_int8_calibration_table_name" not in chosen
        )
        channels = "x".join(map(str, x.shape[1:]))
        name = load(artifact.path, "onnxruntime").inputs[0].name
        assert [chosen[f"trt_profile_{k}_shapes"] for k in ("min", "opt", "max")] == [
            f"{name}:{n}x{channels}" for n in (1, 1, 64)
        ]


@GPU
@pytest.mark.parametrize("runtime", ON)
def test_without_the_gpu_build_nothing_runs_on_the_cpu_instead(runtime, tmp_path):
    artifact, _, x = exported(tmp_path, runtime, True)
    for use in (
        lambda: artifact(x.numpy()),
        lambda: load(artifact.path, runtime),
        lambda: mb.measure(artifact, inputs=x[:1].numpy()),
    ):
        with pytest.raises(
            MissingRuntimeError,
            match=f"{runtime} files can be made here but not run.*no {ON[runtime]}; pip install "
            "onnxruntime-gpu",
        ):
            use()


@GPU
def test_a_provider_that_does_not_start_is_not_replaced_without_a_word(tmp_path, monkeypatch):
    artifact, _, _ = exported(tmp_path, "onnxruntime-cuda", False)
    monkeypatch.setattr(onnxruntime_gpu, "_available", lambda: ["CUDAExecutionProvider"])
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(InputError, match="CUDAExecutionProvider did not start"),
    ):
        load(artifact.path, "onnxruntime-cuda")


def test_options_may_be_edited(tmp_path, monkeypatch):
    """With the CPU named instead, the file runs as there."""
    artifact, network, x = exported(tmp_path, "onnxruntime-cuda", False)
    monkeypatch.setattr(onnxruntime_gpu, "_available", lambda: ["CUDAExecutionProvider"])
    own = artifact.files[1]
    own.write_text('[["CPUExecutionProvider", {}]]')
    assert np.allclose(
        load(artifact.path, "onnxruntime-cuda")(x.numpy()), network(x).detach().numpy(), atol=1e-4
    )
    for damaged in ("", "[]", "[1]", '{"a": 1}', '[["CPUExecutionProvider", 3]]'):
        own.write_text(damaged)
        with pytest.raises(InputError, match="providers.json is damaged.*export the network again"):
            load(artifact.path, "onnxruntime-cuda")
    own.unlink()
    artifact.path.write_bytes(b"no file")
    with pytest.raises(InputError, match="cannot be opened by onnx"):
        load(artifact.path, "onnxruntime-cuda")


def test_files_that_tensorrt_would_refuse_are_not_written(tmp_path):
    with pytest.raises(InputError, match="Quantize with target='tensorrt'"):
        exported(tmp_path, "onnxruntime-tensorrt", True, target="x86-vnni")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", ON)
def test_long_work_that_needs_the_gpu_does_not_start(runtime):
    if ON[runtime] in ort.get_available_providers():
        pytest.skip("there is one")
    with pytest.raises(MissingRuntimeError, match="can be made here but not run"):
        quantize(build("residual"), batches(), placement="fastest", runtime=runtime)
    with pytest.raises(MissingRuntimeError, match="can be made here but not run"):
        mb.prune(
            build("residual"),
            torch.randn(2, *batches(count=1)[0].shape[1:]),
            latency=0.5,
            runtime=runtime,
        )
