"""Torch's modes that a caller may have set around a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

DEVICES = ("cpu", "cuda")


@contextmanager
def usual() -> Iterator[None]:
    """Inside, gradients can be had and numbers have the precision that they say: `no_grad`,
    `inference_mode` and `autocast` of the caller come back after it. Verbs train, and sum up what
    float16 would round away.
    """
    with ExitStack() as entered:
        if torch.is_inference_mode_enabled():
            entered.enter_context(torch.inference_mode(False))
        entered.enter_context(torch.enable_grad())
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                entered.enter_context(torch.autocast(device, enabled=False))
        yield


def mixed(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Mixed precision for a pass through a network; None: none.

    Without torch's cache of converted weights, which is emptied only where the outermost autocast
    ends. Inside of one of the caller's, training would go on with the weights of its first step.
    """
    return torch.autocast(
        device.type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False
    )


def full(output: Any) -> Any:
    """A network's output with float32 in place of what mixed precision made of it: a loss of the
    user's need not know of it. Processors decide whether training takes it.
    """

    def cast(value: Any) -> Any:
        narrow = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
        return value.float() if narrow and torch.is_autocast_enabled(value.device.type) else value

    return pytree.tree_map(cast, output)
