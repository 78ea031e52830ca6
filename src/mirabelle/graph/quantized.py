"""Where a network says that it is quantized, for rooms that know no more of quantization."""

from __future__ import annotations

from typing import Any

from torch import nn

from mirabelle.base.errors import InputError

DESCRIPTION = "quantization"  # the key in a network's `meta`


def description_of(model: nn.Module) -> Any:
    """What `quantization.simulation.description` wrote; None of a float network."""
    return getattr(model, "meta", {}).get(DESCRIPTION)


def check_float(model: nn.Module, verb: str) -> None:
    """`InputError` for a quantized network: its scales were chosen for the weights that it has."""
    if description_of(model) is not None:
        raise InputError(f"this network is quantized; {verb} the float network, then quantize")
