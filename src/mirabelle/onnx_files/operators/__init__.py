"""ONNX operators in terms of torch: `OPERATORS[op_type](attributes, *inputs)`. What is not here, or
raises `UnsupportedError`, runs as it is (`outside.py`).

Inputs are tensors, `Host`s (numbers known while the graph is captured) or None for those left out.
Versions before opset 13 differ where axes were attributes; both are read.
"""

from mirabelle.onnx_files.operators import elementwise, layers, movement, windows
from mirabelle.onnx_files.operators.table import OPERATORS, UnsupportedError

__all__ = ["OPERATORS", "UnsupportedError", "elementwise", "layers", "movement", "windows"]
