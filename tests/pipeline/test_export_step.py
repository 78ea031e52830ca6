"""The export step: what several runtimes share."""

import mirabelle as mb
from mirabelle import exporter
from mirabelle.quantization import quantize
from tests.quantized_networks import batches, build


def test_a_network_for_several_runtimes_is_written_once(tmp_path, monkeypatch):
    """And its files are those of exports one by one; LiteRT and MNN get what they read."""
    q, x = quantize(build("residual"), batches("residual", 1)), batches("residual", 1)[0][:1]
    calls = []

    def counted(model, inputs, path, true=exporter.to_onnx):
        calls.append(path)
        return true(model, inputs, path)

    monkeypatch.setattr(exporter, "to_onnx", counted)
    files = exporter.OnnxFiles(tmp_path / "onnx")
    for runtime in ("onnxruntime", "openvino"):
        shared = mb.export(files.source(q, runtime, x), tmp_path / runtime, runtime=runtime)
        alone = mb.export(q, tmp_path / f"{runtime}-alone", runtime=runtime, inputs=x)
        for a, b in zip(shared.files, alone.files, strict=True):
            assert a.name == b.name and a.read_bytes() == b.read_bytes()
    assert len(calls) == 1 + 2
    assert files.source(q, "litert", x) is q and files.source(q, "mnn", x) is q
    given = tmp_path / "other.onnx"
    assert files.source(given, "openvino", x) is given and len(calls) == 3
