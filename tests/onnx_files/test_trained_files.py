"""Verbs that take the path of an ONNX file, and train what is in it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import mirabelle as mb
from mirabelle.base.data import example_inputs
from mirabelle.base.errors import InputError
from mirabelle.onnx_files.read import network
from mirabelle.quantization import quantization
from tests.onnx_files.files import Residual, images, node, residual, run, save, weights


def labeled(path, count: int = 4) -> list:
    """Images, and the classes that the file gives them."""
    batches = [images(32, seed) for seed in range(count)]
    return [(x, torch.from_numpy(run(path, x=x)[0]).argmax(1)) for x in batches]


def tensors(path) -> dict:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_distillation_by_the_original_file_is_that_of_pytorch(tmp_path):
    """The same cut, trained on what the whole file says, in both forms from the same start: closer
    to the file than before, and to one another.
    """
    path = residual(tmp_path / "net.onnx", unknown=False)
    data, unseen = [x for x, _ in labeled(path)], images(64, 9)
    whole = network(path, example_inputs(data[0]), fold=False)
    start = mb.prune(path, data[0], macs=0.5, align=1, repair=None)
    plain = Residual(start).eval()
    options: dict = {"losses": {"mse": 1.0}, "epochs": 6, "lr": 3e-3, "optimizer": "adamw"}
    trained = mb.distill(start, path, data, **options)
    theirs = mb.distill(plain, Residual(whole).eval(), data, **options)
    file = mb.export(trained, tmp_path / "out", inputs=unseen).path
    expected = run(path, x=unseen)[0]
    with torch.no_grad():
        before, after, other = (
            float(np.square(y - expected).sum())
            for y in (start(unseen).numpy(), run(file, x=unseen)[0], theirs(unseen).numpy())
        )
    assert after < 0.5 * before
    assert abs(after - other) < 0.05 * other
    assert [e.value for e in onnx.load(file).metadata_props] == ["shirt, coat"]


def test_a_file_is_trained_and_its_batch_norm_stays_one(tmp_path):
    path = residual(tmp_path / "net.onnx", unknown=False)
    data = [(x, (y + 1) % 5) for x, y in labeled(path)]
    trained = mb.fit(path, data, "cross_entropy", epochs=3, lr=1e-2)
    file = mb.export(trained, tmp_path / "out", name="trained").path
    assert file.name == "trained.onnx"
    old, new = tensors(path), tensors(file)
    assert old.keys() == new.keys() and not np.array_equal(old["mean"], new["mean"])
    assert np.array_equal(old["flat"], new["flat"])

    def right(which) -> float:
        return float(np.mean([(run(which, x=x)[0].argmax(1) == y.numpy()).mean() for x, y in data]))

    assert right(path) < 0.2 and right(file) > right(path) + 0.15


def test_quantization_aware_training_of_a_file(tmp_path):
    path = residual(tmp_path / "net.onnx", unknown=False)
    data = labeled(path)
    q = mb.quantize(path, [x for x, _ in data], bits=3)
    trained = mb.fit(q, data, epochs=4, lr=3e-3)

    def agreement(model) -> float:
        with torch.no_grad():
            return float(np.mean([(model(x).argmax(1) == y).float().mean() for x, y in data]))

    assert agreement(trained) > agreement(q) + 0.05
    eight = mb.fit(mb.quantize(path, [x for x, _ in data]), data, steps=4, lr=1e-4)
    artifact = mb.export(eight, tmp_path / "out", inputs=data[0][0])
    assert quantization(eight) is not None
    with torch.no_grad():
        expected = eight(data[0][0]).numpy()
    assert np.abs(artifact(data[0][0].numpy()) - expected).max() < 0.02 * np.abs(expected).max()
    assert [v.name for v in onnx.load(artifact.path).graph.output] == ["y"]


def test_sparse_weights_of_a_file_stay_so(tmp_path):
    path = residual(tmp_path / "net.onnx", unknown=False)
    data = labeled(path, 2)
    sparse = mb.sparsify(path, sparsity=0.7, data=[x for x, _ in data], keep=["head"])
    trained = mb.fit(sparse, data, steps=3, lr=1e-3)
    new = tensors(mb.export(trained, tmp_path / "out", inputs=data[0][0]).path)
    held = np.concatenate([new[n].ravel() for n in ("w1", "w2", "w3")])
    assert abs((held == 0).mean() - 0.7) < 0.01 and (new["w4"] != 0).all()


def through_unknown(path, last: bool):
    """Two layers with an operator between them, or behind them, that runs outside torch."""
    constants = {"w": weights(6, 3, 1, 1), "v": weights(4, 6, 1, 1)}
    nodes = [node("Conv", ["x", "w"], ["a"], "first")]
    middle = "a" if last else "b"
    if not last:
        nodes.append(node("QuickGelu", ["a"], ["b"], "unknown", domain="com.microsoft"))
    nodes.append(node("Conv", [middle, "v"], ["c"], "second"))
    if last:
        nodes.append(node("QuickGelu", ["c"], ["d"], "unknown", domain="com.microsoft"))
    nodes.append(node("GlobalAveragePool", ["d" if last else "c"], ["p"], "pool"))
    nodes.append(node("Flatten", ["p"], ["y"], "flat"))
    return save(path, nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 4]}, constants)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_stop_where_a_node_runs_outside_torch(tmp_path, precision):
    path = through_unknown(tmp_path / "net.onnx", False)
    data = [(images(8), torch.arange(8) % 4)]
    with pytest.warns(UserWarning, match=r"unknown \(QuickGelu: no translation\).*Gradients stop"):
        options = {"steps": 5, "lr": 1e-2, "weight_decay": 0.0, "precision": precision}
        trained = mb.fit(path, data, **options)
    new = tensors(mb.export(trained, tmp_path / "out", inputs=data[0][0]).path)
    old = tensors(path)
    assert np.array_equal(old["w"], new["w"]) and not np.array_equal(old["v"], new["v"])
    with pytest.warns(UserWarning, match="outside torch"):
        text = str(mb.explain(path, data[0][0]))
    assert "unknown" in text and "onnx_node" in text


@pytest.mark.filterwarnings("ignore:.*run outside torch")
def test_a_loss_that_reaches_no_weight_is_refused(tmp_path):
    path = through_unknown(tmp_path / "net.onnx", True)
    with pytest.raises(InputError, match=r"no gradient .* ONNX file.*unknown.*quantize the file"):
        mb.fit(path, [(images(8), torch.arange(8) % 4)], steps=2, lr=1e-2)
    student = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())  # a teacher needs no gradients
    assert mb.distill(student, path, [images(8)], losses={"mse": 1.0}, steps=1, lr=1e-3)


def test_what_is_wrong_with_a_file_is_said_with_its_remedy(tmp_path):
    path = residual(tmp_path / "net.onnx", unknown=False)
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    onnx.save(proto, tmp_path / "open.onnx")
    wanted = r"open.onnx leaves .* open: x .*\?x3x\?x\? float32.*inputs="
    for verb in (mb.explain, lambda p: mb.prune(p, macs=0.5)):
        with pytest.raises(InputError, match=wanted):
            verb(tmp_path / "open.onnx")
    with pytest.raises(InputError, match="give inputs"):
        mb.prune(nn.Conv2d(3, 4, 1), macs=0.5)
    with pytest.raises(InputError, match=r"no network .*net.txt"):
        mb.distill(str(tmp_path / "net.txt"), path, [images()])
    with pytest.raises(InputError, match="is not there"):
        mb.prune(tmp_path / "none.onnx", images(), macs=0.5)
    with pytest.raises(InputError, match="does not run on x"):
        mb.prune(path, images()[:, :2], macs=0.5)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8
    proto.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 8
    onnx.save(proto, tmp_path / "fixed.onnx")
    assert "stem.Conv" in str(mb.explain(tmp_path / "fixed.onnx"))
    old = network(
        residual(tmp_path / "old.onnx", 11, unknown=False), example_inputs(images()), fold=False
    )
    with pytest.raises(InputError, match=r"ONNX file of opset 11, .*needs 13; export it"):
        mb.quantize(old, [images()])


def test_a_file_is_exported_under_another_name(tmp_path):
    path = residual(tmp_path / "net.onnx", unknown=False)
    named = mb.export(path, tmp_path / "out", name="other").path
    assert named.name == "other.onnx" and named.read_bytes() == path.read_bytes()
    assert mb.export(path, tmp_path / "out").path.name == "net.onnx"
    proto = onnx.load(path)  # with its weights beside it
    onnx.save(proto, tmp_path / "big.onnx", save_as_external_data=True, size_threshold=200)
    moved = mb.export(tmp_path / "big.onnx", tmp_path / "out", name="third")
    x = images()
    assert np.array_equal(moved(x.numpy()), run(path, x=x)[0])


def test_a_network_that_was_read_is_quantized_as_well_as_its_path(tmp_path):
    """A recipe reads the file once for all its steps: batch norms are folded by quantization. Over
    three calibration sets, since one alone differs by a sixth either way.
    """
    path = residual(tmp_path / "net.onnx", unknown=False)
    unseen, errors = images(64, 2), [0.0, 0.0]
    expected = run(path, x=unseen)[0]
    for seed in (1, 3, 4):
        data = [images(32, seed)]
        read = network(path, example_inputs(data[0]), fold=False)
        for i, model in enumerate((path, read)):
            file = mb.export(mb.quantize(model, data), tmp_path / "out", inputs=data[0]).path
            kinds = [n.op_type for n in onnx.load(file).graph.node]
            assert "BatchNormalization" not in kinds and kinds.count("QuantizeLinear") > 5
            errors[i] += float(np.square(run(file, x=unseen)[0] - expected).sum())
    assert errors[1] < 1.2 * errors[0] < 3 * 0.05 * float(np.square(expected).sum())
