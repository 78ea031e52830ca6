"""Factorized layers: `mb.factorize`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt
from torch import fx, nn
from typing_extensions import Doc

from mirabelle.base.checks import check_network
from mirabelle.base.data import Batch, First, example_inputs
from mirabelle.base.declarations import KeepOption, SamplesOption
from mirabelle.base.errors import InputError
from mirabelle.base.keep import check_keep
from mirabelle.base.options import declared
from mirabelle.fitting.batchnorm import reestimate_where_better
from mirabelle.graph.quantized import check_float
from mirabelle.measurement.macs import count_macs, count_parameters
from mirabelle.onnx_files.source import NAMES, SOURCE, source_of
from mirabelle.pruning.low_rank import Candidate, Table, candidates, factorized, table
from mirabelle.sources.networks import with_example
from mirabelle.sparsity import masks

BUDGETS = ("rank", "macs", "params")


def _together(options: Mapping[str, Any]) -> None:
    given = [n for n in BUDGETS if options[n] is not None]
    if len(given) != 1:
        raise InputError(
            f"give exactly one of rank=, macs= and params=; got {', '.join(given) or 'none'}"
        )


@declared(_together)
def factorize(
    model: nn.Module | str | Path,
    inputs: Any = None,
    *,
    rank: Annotated[
        int | None, Ge(1), Doc("of every layer that is cheaper so, whatever it loses")
    ] = None,
    macs: Annotated[
        float | None, Gt(0), Lt(1), Doc("the fraction of multiply-accumulates that is kept")
    ] = None,
    params: Annotated[
        float | None, Gt(0), Lt(1), Doc("the fraction of parameters that is kept")
    ] = None,
    data: Annotated[Iterable | None, Doc("batches that ranks and factors are fitted to")] = None,
    samples: SamplesOption = 512,
    align: Annotated[int, Ge(1), Doc("ranks are multiples of it, or of less in small layers")] = 8,
    keep: KeepOption = (),
) -> nn.Module:
    """A copy of `model` in which linear layers and convolutions of low rank are two thinner ones.

    - model: the network, which stays as it is, or a name of one (`sources.networks`). Of an ONNX
      file `export` then writes the result anew, with the file's names.
    - inputs: an example. Without it a name takes the first batch of `data`, or what it knows
      itself.
    - rank: that of every layer which is cheaper so, whatever it loses. Exactly one of rank, macs
      and params is given.
    - macs, params: the fraction that is kept. A knapsack chooses the rank of each layer so that all
      together lose least; a layer may also stay as it is.
    - data: inputs without labels. Factors are then those that lose least of the network's outputs,
      biases make up for the mean of what is lost, and BatchNorm's statistics are estimated anew
      where that helps. Without data each weight is approximated for itself.
    - samples: how many of data are read, 512 by default.
    - align: ranks are multiples of it, 8 by default, or of less in small layers.
    - keep: modules or parameters, by path, that are left alone.

    A layer at the path `fc` becomes a `LowRank` there, with the layers `fc.0` and `fc.1`. The first
    keeps kernel, stride and padding, and gives `rank` channels; the second is linear, or 1 x 1.
    Grouped convolutions, layers that share their weights and those with hooks are left alone.
    Raises `InputError` for sparse and quantized networks, where no layer can be factorized, and for
    a fraction that cannot be reached; `SurgeryError` where forward reads a layer's attributes.
    Source: Eckart & Young 1936, in the norms of inputs and outputs; `pruning/low_rank.py`.

    Example:

        >>> import mirabelle as mb, torch
        >>> layer = torch.nn.Linear(16, 16)
        >>> layer.weight.data = torch.randn(16, 2) @ torch.randn(2, 16)
        >>> small = mb.factorize(torch.nn.Sequential(layer), torch.zeros(1, 16), rank=2)
        >>> small[0].rank
        2
    """
    network, example = with_example(model, inputs, data)
    network, batch = _checked(network), example_inputs(example)
    layers = _layers(network, batch, keep)
    seen = None
    if data is not None:
        seen = [b._replace(target=None) for b in First(data, samples)]
    found = table(network, layers, seen, align)
    if rank is not None:
        ranks = {c.path: rank for c in layers if rank in range(1, c.ranks(1)[-1] + 1)}
        if not ranks:
            raise InputError(
                f"rank={rank} makes no layer cheaper; the largest that does is "
                f"{max(c.ranks(1)[-1] for c in layers)}"
            )
    else:
        ranks = _within(found, network, example, macs, params)
    result = factorized(found, ranks, batch)
    if isinstance(result, fx.GraphModule) and (source := source_of(result)) is not None:
        result.meta.pop(SOURCE)  # the file has one node where there are two layers now
        result.meta[NAMES] = source
    return result if seen is None else reestimate_where_better(result, network, seen)


def _checked(model: nn.Module) -> nn.Module:
    """The network itself, which is neither sparse nor quantized."""
    model = check_network(model)
    if masks.blocks(model):
        raise InputError(
            "this network is sparse, and its zeros would not stay in factors; factorize first, "
            "then sparsify"
        )
    check_float(model, "factorize")
    return model


def _layers(network: nn.Module, inputs: Batch, keep: str | Iterable[str]) -> list[Candidate]:
    """The layers that may be factorized; `InputError` where there are none, or for an unknown name
    in `keep`.
    """
    layers, refused = candidates(network, inputs, check_keep(network, keep))
    if not layers:
        reasons = "; ".join(f"{n}: {why}" for n, why in list(refused.items())[:4])
        raise InputError(
            "no layer of this network can be factorized: "
            f"{reasons or 'it has no linear layer and no convolution'}"
        )
    return layers


def _within(
    found: Table, network: nn.Module, x: Any, macs: float | None, params: float | None
) -> dict[str, int]:
    """The ranks for a fraction of the multiply-accumulates or the parameters."""
    name, fraction = ("macs", macs) if macs is not None else ("params", params)
    assert fraction is not None
    by_params = macs is None
    whole = float(count_parameters(network) if by_params else count_macs(network, x))
    least = 1 - found.most(by_params) / whole
    if fraction < least:
        raise InputError(
            f"{name}={fraction:g} cannot be reached by ranks alone: at the lowest ones "
            f"{least:.3g} of the {name} stay; ask for more, or prune channels as well"
        )
    return found.chosen(whole * (1 - fraction), by_params)
