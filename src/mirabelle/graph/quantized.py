"""Where a network says that it is quantized, for rooms that know no more of quantization."""

from __future__ import annotations

from typing import Any

from torch import nn

DESCRIPTION = "quantization"  # the key in a network's `meta`


def description_of(model: nn.Module) -> Any:
    """What `quantization.simulation.description` wrote; None of a float network."""
    return getattr(model, "meta", {}).get(DESCRIPTION)
