"""A network made ready once, captured and folded, and calibrated as often as is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from torch import fx, nn

from mirabelle.base.checks import clone, tensors_of
from mirabelle.base.data import Batch, pieces
from mirabelle.base.errors import InputError
from mirabelle.channels.rewrite import FORM
from mirabelle.graph.structure import STRUCTURE, structure_of
from mirabelle.onnx_files.source import ONNX_FORM
from mirabelle.quantization.calibration.histograms import Histogram
from mirabelle.quantization.calibration.made_up import correct, give_room
from mirabelle.quantization.calibration.observation import (
    activation_quantizer,
    histograms_for,
    observe,
)
from mirabelle.quantization.calibration.pair_sums import channel_axes
from mirabelle.quantization.calibration.thresholds import rules_for
from mirabelle.quantization.repairs.table import BEFORE, REPAIRS
from mirabelle.quantization.search.rules import RULES, SIGNED, held_out, rules_of
from mirabelle.quantization.simulation.calibrated import Calibrated
from mirabelle.quantization.simulation.description import Quantization
from mirabelle.quantization.simulation.graph import captured, takes_any_batch
from mirabelle.quantization.simulation.placement import Site, check_layers_kept, contractions, place
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer
from mirabelle.quantization.simulation.smoothing import smoothed
from mirabelle.quantization.targets import Target
from mirabelle.sparsity import masks

REPAIR_NUMBERS = 2**25
LIVE = 4  # times as many numbers as in its inputs a network holds for a sample, or so
# Numbers of a batch on a CPU: what layers make of these stays in its cache, which halves the time
# for images of 224 x 224.
PIECE = 2**19


@dataclass(frozen=True)
class Grids:
    """What is asked of grids: the options of `quantize` that calibration needs, resolved.

    choose, weight_threshold: the rules for thresholds; threshold: what the first is called. None
    chooses among `rules` for each tensor.
    """

    target: Target
    bits: int
    weight_bits: int
    threshold: str
    choose: Callable | None
    weight_threshold: str | Callable
    symmetric: bool
    per_channel: bool
    weight_symmetric: bool
    keep: tuple[str, ...]

    @property
    def rules(self) -> Mapping[str, Callable]:
        """The table that names of rules are of."""
        return rules_for(self.symmetric)


@dataclass(frozen=True)
class Prepared:
    """A float network, captured and folded. Calibrating leaves it as it is.

    model: what it was captured from. first: the batch that it was captured with. made_up: whether
    it is calibrated on pictures that were made up, and its notes say how they are corrected.
    """

    model: nn.Module
    network: fx.GraphModule
    first: Batch
    grids: Grids
    made_up: bool = False

    def calibrated(
        self, batches: Iterable[Batch], samples: int, repairs: Sequence[str]
    ) -> tuple[Calibrated, list[Batch]]:
        """Calibrated on the first `samples` of the batches, after the repairs that come before.

        Also the batches for the other repairs.
        """
        grids = self.grids
        network = clone(self.network) if set(repairs) & set(BEFORE) else self.network
        stream = self._pieces(batches)
        few = _enough(stream, self.first.numbers)
        held, shown = held_out(few)
        for name in repairs:
            if name in BEFORE:
                REPAIRS[name](network, network, shown)
        layers = contractions(network.graph, grids.keep)
        sites = place(network.graph, grids.keep, grids.target)
        histograms = histograms_for(network, sites, channel_axes(layers))
        left = sum(b.size for b in few) - sum(b.size for b in shown)
        seen = observe(network, sites, chain(shown, stream), samples - left, histograms)
        rules = {} if grids.choose is not None else self._rules(network, sites, histograms, held)
        if left:  # what rules were chosen by counts for thresholds as well
            seen += observe(network, sites, held, left, histograms)
        if self.made_up:
            own = {s.node for s in sites if s.source is None}
            roomy = give_room(network.graph, histograms, own)
            rules |= roomy if grids.choose is None else {}
        meta: Mapping = getattr(self.model, "meta", {})
        sizes = {n: list(t.shape) for n, t in tensors_of(self.model).items()}
        return Calibrated(
            network,
            histograms,
            self._description(seen, repairs, rules, smoothed(network.graph)),
            grids.choose or grids.rules[RULES[0]],
            grids.weight_threshold,
            {
                "histograms": histograms,
                STRUCTURE: structure_of(self.model),
                FORM: meta.get(FORM),
                ONNX_FORM: meta.get(ONNX_FORM),
                "float_sizes": sizes,
            },
            masks.blocks(self.model),
        ), few

    def corrected(self, pictures: Iterable[Batch]) -> Prepared:
        """For calibration on these pictures, which were made up, and no others."""
        network = clone(self.network)
        correct(network, _enough(self._pieces(pictures), LIVE * self.first.numbers))
        return replace(self, network=network, made_up=True)

    def quantized(
        self, batches: Iterable[Batch], samples: int, repairs: Sequence[str]
    ) -> fx.GraphModule:
        """Quantized with these repairs, all layers."""
        calibrated, few = self.calibrated(batches, samples, repairs)
        return repaired(calibrated.quantized(), calibrated.network, few, repairs)

    def _pieces(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Without labels, which nothing here reads and which may be anything."""
        stream = (b._replace(target=None) for b in batches)
        on_cpu = all(t.device.type == "cpu" for t in tensors_of(self.network).values())
        return pieces(stream, PIECE) if on_cpu and takes_any_batch(self.network) else stream

    def _rules(
        self,
        network: fx.GraphModule,
        sites: Sequence[Site],
        histograms: Mapping[str, Histogram],
        held: Sequence[Batch],
    ) -> dict[str, str]:
        """The rule for each site that has a grid of its own."""
        g = self.grids

        def grid(site: str, rule: str) -> ActivationQuantizer:
            choose = g.rules[rule]
            return activation_quantizer(histograms[site], choose, g.bits, g.target, g.symmetric)

        names = {
            s.node: SIGNED if histograms[s.node].signed and not g.symmetric else RULES
            for s in sites
            if s.source is None
        }
        return rules_of(network, names, grid, held)

    def _description(
        self,
        seen: int,
        repairs: Sequence[str],
        rules: Mapping[str, str],
        multiplied: tuple[str, ...],
    ) -> Quantization:
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
            rules=dict(rules),
            smoothed=multiplied,
        )


def prepared(model: nn.Module, first: Batch, grids: Grids) -> Prepared:
    """Captures and folds the network. `InputError` where it has nothing to quantize."""
    network = captured(model, first)
    check_layers_kept(network.graph, grids.keep)
    if not contractions(network.graph, grids.keep):
        inside = "; its If and Loop nodes may hold some, which stay as they are"
        raise InputError(
            "this network has no convolution or linear layer with a weight of its own; there "
            f"is nothing to quantize{inside if network.meta.get('onnx') else ''}"
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
