"""Every translation of an operator against ONNX Runtime."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from mirabelle.base.data import Batch
from mirabelle.onnx_files.operators import OPERATORS
from mirabelle.onnx_files.read import network
from mirabelle.quantization.simulation.graph import captured
from tests.onnx_files.cases import CASES, ELSEWHERE, floats, write


def test_every_translation_has_a_case():
    assert {c[0] for c in CASES} | ELSEWHERE == set(OPERATORS)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])
def test_translations(case, tmp_path):
    kind, attributes, inputs, constants = case
    fed = {f"x{i}": np.asarray(a) for i, a in enumerate(inputs)}
    held = {f"c{i}": np.asarray(c) for i, c in enumerate(constants) if c is not None}
    names = [*fed, *("" if c is None else f"c{i}" for i, c in enumerate(constants))]
    node = helper.make_node(kind, names, ["y"], f"layer.{kind}", **attributes)
    path = write(tmp_path / "m.onnx", [node], fed, held, ["y"], 20, kind=None)
    read = network(path, Batch(tuple(torch.from_numpy(a) for a in fed.values()), {}, None))
    assert not read.meta["onnx"].outside
    other = {
        n: (a if a.dtype.kind != "f" or kind in ("Log", "Sqrt") else floats(*a.shape))
        for n, a in fed.items()
    }
    expected = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, other)[
        0
    ]
    with torch.no_grad():
        for run in (
            read,
            captured(read, Batch(tuple(torch.from_numpy(a) for a in fed.values()), {}, None)),
        ):
            found = run(*map(torch.from_numpy, other.values())).numpy()
            assert (
                found.shape == expected.shape
                and found.dtype == expected.dtype
                and np.allclose(found, expected, rtol=1e-3, atol=1e-4)
            )
