"""How much a module computes, and how many parameters it has."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from mirabelle.base.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def _vector_flops(counts: Callable[..., int]) -> Callable[..., int]:
    return lambda *shapes, out_shape=None, **_: 2 * counts(*shapes)


def _run_counted(
    model: nn.Module, args: tuple, kwargs: dict, tensors: dict, device: str | None
) -> int:
    """The MACs of one call."""
    return _counter(model, args, kwargs, tensors, device).get_total_flops() // 2


def _counter(model: nn.Module, args: tuple, kwargs: dict, tensors: dict, device: str | None) -> Any:
    """torch's counter after one call. Kernels that fuse a whole layer are switched off, as the
    counter cannot see into them.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    vectors = {  # missing in the counter's own table
        aten.mv: _vector_flops(lambda m, v: math.prod(m)),
        aten.addmv: _vector_flops(lambda b, m, v: math.prod(m)),
        aten.dot: _vector_flops(lambda a, b: a[0]),
    }
    with ExitStack() as stack:
        stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(setattr, torch.backends.mkldnn, "enabled", torch.backends.mkldnn.enabled)
        # its recurrent layers; `flags()` would warn of settings that are not touched here
        torch.backends.mkldnn.enabled = False
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        if device is not None:
            stack.enter_context(torch.device(device))
        counter = stack.enter_context(FlopCounterMode(display=False, custom_mapping=vectors))
        torch.func.functional_call(model, tensors, args, kwargs)
    return counter


def _on_example(model: nn.Module, x: Any, count: Callable[..., int]) -> int:
    """`count(model, args, kwargs, tensors, device)` in eval mode, per sample: without data if the
    network allows that, else in earnest.
    """
    from torch import nn

    from mirabelle.base.checks import check_runs, shell
    from mirabelle.base.data import example_inputs

    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    batch = example_inputs(x)
    try:
        meta = batch.to("meta")
        shapes = {
            k: v.detach().to("meta") for k, v in [*model.named_parameters(), *model.named_buffers()]
        }
        total = count(shell(model).eval(), meta.args, meta.kwargs, shapes, "meta")
    except Exception:
        device = next((p.device for p in model.parameters()), None)
        here = batch if device is None else batch.to(device)
        buffers = {
            k: v.clone() for k, v in model.named_buffers()
        }  # the run may write into these, not into the network's
        try:
            total = count(shell(model).eval(), here.args, here.kwargs, buffers, None)
        except Exception:
            check_runs(model, here, "the example input")  # says what is wrong
            raise
    return -(-total // batch.size)


def count_macs(model: nn.Module, x: Any) -> int:
    """Multiply-accumulates of one sample: of convolutions (transposed too), linear layers, matrix
    products and attention.

    x: an example input: a tensor, an array, a dict or a tuple of them; the count for it is divided
    by its batch size, rounded up.
    Not counted: biases, normalizations, activations, pooling, softmax, the interpolation of images.
    A grouped convolution counts what it computes. Recurrent layers count as the matrix products
    that they are. Half the FLOPs of torch's own counter (`torch.utils.flop_counter`), in eval mode;
    the network is not changed. Raises `InputError` where the network does not run on x.
    """
    return _on_example(model, x, _run_counted)


def macs_by_module(model: nn.Module, x: Any) -> dict[str, int]:
    """Multiply-accumulates of one sample by module, as `count_macs` counts them; those of what is
    inside a module are its own, too. Modules that compute none are left out.

    x: an example input. A network in graph form has no modules, and gives nothing.
    """
    found: dict[str, int] = {}

    def count(model: nn.Module, *call: Any) -> int:
        counter = _counter(model, *call)
        root = type(model).__name__
        for name, flops in counter.get_flop_counts().items():
            if name.startswith(f"{root}."):
                found[name.removeprefix(f"{root}.")] = sum(flops.values()) // 2
        return counter.get_total_flops() // 2

    from mirabelle.base.data import example_inputs

    _on_example(model, x, count)
    size = example_inputs(x).size
    return {name: -(-macs // size) for name, macs in found.items() if macs}


def fvcore_macs(model: nn.Module, x: Any) -> int:
    """`count_macs` as fvcore's counter would have it: 5 more per output element of a BatchNorm, 1
    per input element of an adaptive average pool.

    The number that papers with fvcore tables and the reference seminar print. ResNet-50,
    1x3x224x224: 4 144 854 528 against 4 089 184 256.
    """
    from torch import nn

    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    pools = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)

    def count(
        model: nn.Module, args: tuple, kwargs: dict, tensors: dict, device: str | None
    ) -> int:
        extra = 0

        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            nonlocal extra
            extra += 5 * output.numel() if isinstance(module, norms) else inputs[0].numel()

        handles = [
            m.register_forward_hook(hook)
            for m in model.modules()
            if isinstance(m, (*norms, *pools))
        ]
        try:
            return _run_counted(model, args, kwargs, tensors, device) + extra
        finally:
            for handle in handles:
                handle.remove()

    return _on_example(model, x, count)


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters, a shared one once. Buffers, such as running means, are not
    counted.
    """
    return sum(p.numel() for p in model.parameters())
