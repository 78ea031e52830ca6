"""A network and its exported file, made once for the tests of a file."""

import pytest
import torch

from tests.measurement.files import export, small


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(network, its ONNX file with an open batch)."""
    model = small().eval()
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    export(model, torch.randn(2, 3, 12, 12), path)
    return model, path
