"""Small ONNX files, written node by node."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

RNG = np.random.default_rng(1)


def begin() -> None:
    """Weights from here on are the same, whatever was drawn before."""
    global RNG
    RNG = np.random.default_rng(1)


def weights(*shape: int) -> np.ndarray:
    fan = int(np.prod(shape[1:])) or 1
    return (RNG.standard_normal(shape) * (2 / fan) ** 0.5).astype(np.float32)


def node(kind: str, inputs: list[str], outputs: list[str], name: str = "", **attributes):
    return helper.make_node(kind, inputs, outputs, name, **attributes)


def save(path, nodes, inputs: dict, outputs: dict, constants: dict, opset: int = 17, as_inputs=()):
    """inputs, outputs: sizes by name; text is an open one. as_inputs: constants that are named
    among the inputs too, as old files do.
    """
    value = helper.make_tensor_value_info
    given = [value(n, 1, s) for n, s in inputs.items()]
    given += [value(n, 1, constants[n].shape) for n in as_inputs]
    graph = helper.make_graph(
        nodes,
        "graph",
        given,
        [value(n, 1, s) for n, s in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8, producer_name="nobody")
    entry = model.metadata_props.add()
    entry.key, entry.value = "labels", "shirt, coat"
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def residual(path, opset: int = 17, unknown: bool = True):
    """A residual network with a depthwise layer, a size written into a Reshape, sizes of its
    values, an open batch and height, metadata, unnamed nodes, and (unknown) an operator that nobody
    knows, for a second output.
    """
    begin()
    constants = {
        "w1": weights(16, 3, 3, 3),
        "b1": weights(16, 1)[:, 0],
        "gamma": 1 + 0.1 * weights(16, 1)[:, 0],
        "beta": weights(16, 1)[:, 0],
        "mean": weights(16, 1)[:, 0],
        "variance": 0.5 + np.abs(weights(16, 1)[:, 0]),
        "wd": weights(16, 1, 3, 3),
        "w2": weights(16, 16, 1, 1),
        "w3": weights(24, 16, 3, 3),
        "w4": weights(5, 24),
        "b4": weights(5, 1)[:, 0],
        "flat": np.array([0, 24], np.int64),
        "untouched": np.float32([0.5]),
    }
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], "stem/Conv", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "gamma", "beta", "mean", "variance"], ["n"], "stem/Norm"),
        node("Relu", ["n"], ["r"]),
        node("Conv", ["r", "wd"], ["d"], "block/depthwise", pads=[1, 1, 1, 1], group=16),
        node("Relu", ["d"], ["e"]),
        node("Conv", ["e", "w2"], ["f"], "block/pointwise"),
        node("Add", ["f", "r"], ["s"], "block/Add"),
        node("Conv", ["s", "w3"], ["t"], "last/Conv", pads=[0, 0, 1, 1], strides=[2, 2]),
        node("Relu", ["t"], ["u"]),
        node("GlobalAveragePool", ["u"], ["p"]),
        node("Reshape", ["p", "flat"], ["v"], "flatten"),
        node("Gemm", ["v", "w4", "b4"], ["y"], "head", transB=1),
        node("Mul", ["x", "untouched"], ["half"]),
        node("QuickGelu", ["half"], ["image"], "unknown", domain="com.microsoft", alpha=1.5),
    ]
    outputs = {"y": ["batch", 5], "image": ["batch", 3, "height", 8]}
    if not unknown:
        nodes, outputs = nodes[:-2], {"y": ["batch", 5]}
        del constants["untouched"]
    return save(path, nodes, {"x": ["batch", 3, "height", 8]}, outputs, constants, opset)


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def run(path, **inputs) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {n: np.asarray(a) for n, a in inputs.items()})


class Residual(torch.nn.Module):
    """The network of torch that `residual` without the unknown operator holds. read: that file, as
    a network.
    """

    def __init__(self, read: torch.nn.Module):
        super().__init__()
        get = read.get_submodule
        self.stem, self.norm = get("stem.Conv"), get("stem.Norm")
        self.depthwise, self.pointwise = get("block.depthwise"), get("block.pointwise")
        self.last, self.head = get("last.Conv"), get("head")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r = torch.relu(self.norm(self.stem(x)))
        s = self.pointwise(torch.relu(self.depthwise(r))) + r
        u = torch.relu(self.last(torch.nn.functional.pad(s, (0, 1, 0, 1))))
        return self.head(u.mean((2, 3)))
