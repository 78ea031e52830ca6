"""A network made ready once, captured and folded, and calibrated as often as is asked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import fx, nn

from mirabelle.base.data import Batch, pieces
from mirabelle.base.errors import InputError
from mirabelle.channels.rewrite import FORM
from mirabelle.quantization.calibration.observation import observe
from mirabelle.quantization.calibration.pair_sums import channel_axes
from mirabelle.quantization.repairs.table import BEFORE, REPAIRS
from mirabelle.quantization.simulation.calibrated import Calibrated
from mirabelle.quantization.simulation.description import Quantization
from mirabelle.quantization.simulation.graph import captured, takes_any_batch
from mirabelle.quantization.simulation.placement import check_keep, contractions, place
from mirabelle.quantization.targets import Target
from mirabelle.sparsity import masks

REPAIR_NUMBERS = 2**25
# Numbers of a batch on a CPU: what layers make of these stays in its cache, which halves the time
# for images of 224 x 224.
PIECE = 2**19


@dataclass(frozen=True)
class Grids:
    """What is asked of grids: the options of `quantize` that calibration needs, resolved.

    choose, weight_threshold: the rules for thresholds; threshold: what the first is called.
    """

    target: Target
    bits: int
    weight_bits: int
    threshold: str
    choose: Callable
    weight_threshold: str | Callable
    symmetric: bool
    per_channel: bool
    weight_symmetric: bool
    keep: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A float network, captured and folded. Calibrating leaves it as it is.

    model: what it was captured from. first: the batch that it was captured with.
    """

    model: nn.Module
    network: fx.GraphModule
    first: Batch
    grids: Grids

    def calibrated(
        self, batches: Iterable[Batch], samples: int, repairs: Sequence[str], some: bool
    ) -> tuple[Calibrated, list[Batch]]:
        """Calibrated on the first `samples` of the batches, after the repairs that come before.

        Also the batches for the other repairs; none where there are no repairs and `some` is false.
        """
        grids = self.grids
        network = copy.deepcopy(self.network) if set(repairs) & set(BEFORE) else self.network
        stream = self._pieces(batches)
        few = _enough(stream, self.first.numbers) if repairs or some else []
        for name in repairs:
            if name in BEFORE:
                REPAIRS[name](network, network, few)
        layers = contractions(network.graph, grids.keep)
        axes = channel_axes(layers) if grids.target.pairs and grids.bits <= 8 else {}
        sites = place(network.graph, grids.keep, grids.target)
        histograms, seen = observe(network, sites, chain(few, stream), samples, axes)
        form = getattr(self.model, "meta", {}).get(FORM)
        sizes = {n: list(t.shape) for n, t in self.model.state_dict().items()}
        return Calibrated(
            network,
            histograms,
            self._description(seen, repairs),
            grids.choose,
            grids.weight_threshold,
            {"histograms": histograms, FORM: form, "float_sizes": sizes},
            masks.blocks(self.model),
        ), few

    def quantized(
        self, batches: Iterable[Batch], samples: int, repairs: Sequence[str]
    ) -> fx.GraphModule:
        """Quantized with these repairs, all layers."""
        calibrated, few = self.calibrated(batches, samples, repairs, False)
        return repaired(calibrated.quantized(), calibrated.network, few, repairs)

    def _pieces(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Without labels, which nothing here reads and which may be anything."""
        stream = (b._replace(target=None) for b in batches)
        on_cpu = all(t.device.type == "cpu" for t in self.network.state_dict().values())
        return pieces(stream, PIECE) if on_cpu and takes_any_batch(self.network) else stream

    def _description(self, seen: int, repairs: Sequence[str]) -> Quantization:
        grids = self.grids
        # Targets of 8 bits say how many of these a weight may use; finer grids are no runtime's.
        weight_bits = min(grids.weight_bits, grids.target.weight_bits if grids.bits <= 8 else 16)
        named = [*(("", t) for t in self.first.args), *self.first.kwargs.items()]
        inputs = ((n, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in named)
        return Quantization(
            grids.target.name,
            grids.bits,
            weight_bits,
            grids.threshold,
            seen,
            tuple(inputs),
            (),
            {},
            grids.symmetric,
            grids.per_channel,
            grids.weight_symmetric,
            grids.keep,
            tuple(repairs),
        )


def prepared(model: nn.Module, first: Batch, grids: Grids) -> Prepared:
    """Captures and folds the network. `InputError` where it has nothing to quantize."""
    network = captured(model, first)
    check_keep(network.graph, grids.keep)
    if not contractions(network.graph, grids.keep):
        inside = "; its If and Loop nodes may hold some, which stay as they are"
        raise InputError(
            "this network has no convolution or linear layer with a weight of its own; there "
            f"is nothing to quantise{inside if network.meta.get('onnx') else ''}"
        )
    return Prepared(model, network, first, grids)


def repaired(
    network: fx.GraphModule, reference: fx.GraphModule, data: list[Batch], repairs: Sequence[str]
) -> fx.GraphModule:
    """After the repairs of quantized networks, in place. reference: its float network."""
    for name in repairs:
        if name not in BEFORE:
            REPAIRS[name](network, reference, data)
    return network


def _enough(stream: Iterator[Batch], numbers: int) -> list[Batch]:
    """Batches for repairs, taken from the stream: those of its samples that together hold
    REPAIR_NUMBERS, but no fewer than 32. numbers: of a sample.
    """
    few: list[Batch] = []
    enough = max(32, REPAIR_NUMBERS // max(1, numbers))
    while sum(b.size for b in few) < enough and (batch := next(stream, None)) is not None:
        few.append(batch)
    return few
