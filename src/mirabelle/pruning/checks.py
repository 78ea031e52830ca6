"""What a cut needs of its network and its settings, before anything that takes long."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from mirabelle.base.errors import InputError
from mirabelle.channels.groups import Coupling
from mirabelle.graph.quantized import check_float
from mirabelle.onnx_files.source import source_of
from mirabelle.pruning.criteria import NEEDS_DATA, NEEDS_GRADIENTS
from mirabelle.pruning.settings import Settings
from mirabelle.runtimes import check_runs_here
from mirabelle.sparsity import masks


def check_settings(model: nn.Module, settings: Settings) -> None:
    """`InputError` for what these settings lack for this network."""
    check_float(model, "prune")
    data, criterion = settings.data, settings.criterion
    if settings.depth and (data is None or criterion != "brain_surgeon"):
        raise InputError(
            "depth=True compares blocks with channels by what the outputs lose: give data=, inputs "
            "without labels, and leave criterion= out"
        )
    if masks.blocks(model):
        raise InputError(
            "this network is sparse, and a repair after the cut would fill its zeros; prune "
            "channels first, then sparsify"
        )
    if settings.budget == "latency":
        check_runs_here(settings.runtime)
    if criterion in NEEDS_DATA and data is None:
        raise InputError(
            f"criterion={criterion!r} needs data=, a loader of "
            f"{'(inputs, targets)' if criterion in NEEDS_GRADIENTS else 'inputs'}"
        )


def check_groups(model: nn.Module, coupling: Coupling) -> None:
    """`InputError` where no channel can be pruned, with the reasons."""
    if coupling.groups:
        return
    reasons = sorted({f.reason for f in coupling.frozen})
    source = source_of(model)
    outside = list(source.outside.items())[:4] if source is not None else []
    inside = "".join(f"; of the ONNX file {n} runs outside torch ({w})" for n, w in outside)
    computed = [n for n, m in model.named_modules() if parametrize.is_parametrized(m)]
    remedy = (
        f"; the weights of {computed[0] or 'the network'} are computed: "
        "torch.nn.utils.parametrize.remove_parametrizations makes parameters of them"
        if computed
        else ""
    )
    raise InputError(
        "no channel of this network can be pruned: "
        f"{'; '.join(reasons[:4]) or 'it has no convolution or linear layer'}{inside}{remedy}"
    )
