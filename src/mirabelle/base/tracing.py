"""What `torch.export` reads wrongly, put right while it traces."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class DataAsDetached(TorchFunctionMode):
    """`x.data` is `x.detach()` inside. Both share the memory of x, so what is written to one is in
    the other; but torch.export loses sight of what is read as `.data`: it refuses such a network,
    and torch.onnx, which then tries other ways, ends the process.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach()
        return func(*args, **(kwargs or {}))
