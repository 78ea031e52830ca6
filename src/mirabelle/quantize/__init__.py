"""Quantisation: `mb.quantize`."""

# torch.fx types an argument of a node as the union of all that it may be; which of them it is depends on the operator.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportUnhashable=false, reportReturnType=false
# pyright: reportIndexIssue=false, reportOptionalSubscript=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
# pyright: reportOptionalIterable=false, reportAssignmentType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import fx, nn

from mirabelle.checks import check_network
from mirabelle.data import Batch, samples
from mirabelle.errors import InputError
from mirabelle.graph.capture import capture, get_tensor, parameter_name
from mirabelle.graph.rewrite import FORM
from mirabelle.plugins import resolve
from mirabelle.progress import bar
from mirabelle.quantize.fake import ActivationQuantizer, WeightQuantizer
from mirabelle.quantize.fold import drop_unused_tensors, fold_batchnorm
from mirabelle.quantize.observe import Histogram
from mirabelle.quantize.place import Site, float_operators, is_contraction, place
from mirabelle.quantize.targets import TARGETS, Target, resolve_target
from mirabelle.quantize.thresholds import THRESHOLDS
from mirabelle.sparsify import masks


@dataclass(frozen=True)
class Quantization:
    """How a network was quantised: all that is needed to build its structure again, but the numbers, which are its state.

    inputs: name ('' for a positional one), shape and dtype of each part of the example that it was captured with.
    float_operators: what stays in float, with the number of calls.
    """

    target: str
    bits: int
    weight_bits: int
    threshold: str
    samples: int
    inputs: tuple
    sites: tuple[Site, ...]
    float_operators: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def quantization(model: object) -> Quantization | None:
    """The description of a quantised network; None for any other."""
    found = getattr(model, "meta", {}).get("quantization") if isinstance(model, fx.GraphModule) else None
    return found if isinstance(found, Quantization) else None


def quantize(
    model: nn.Module,
    data: Iterable,
    *,
    threshold: str | Callable[[Histogram, int], float] = "mse",
    weight_threshold: str = "absmax",
    bits: int = 8,
    samples: int = 512,
    target: str = "auto",
) -> fx.GraphModule:
    """A network that computes with integers of `bits` bits, simulated in float: symmetric, weights per output channel, activations per tensor.

    data: the calibration set, inputs with or without targets; `samples` of them are used, in one pass whose memory does not grow with their number.
    threshold: a name of `THRESHOLDS`, `"package.module:function"` or a callable (histogram, levels) -> threshold, for activations.
    bits: of weights and activations, 2 to 8; files for runtimes need 8. target: a name of `TARGETS`; `auto` is this machine's (see `targets.py`).
    BatchNorm is folded. The result is an `nn.Module` on the same parameter paths, can be trained (`mb.fit`), exported and saved.

    Scales follow ONNX: x ≈ (q - zero_point) * scale. The seminar's S is 1 / scale.
    Raises `InputError` for an empty or unsound calibration set, and where the network has nothing to quantise.
    """
    if not 2 <= bits <= 8:
        raise InputError(f"bits must be between 2 and 8, got {bits!r}")
    if samples < 1:
        raise InputError(f"samples must be at least 1, got {samples!r}")
    if quantization(model) is not None:
        raise InputError("this network is quantised already; quantise the float network it came from")
    choose_threshold = resolve(threshold, THRESHOLDS, "threshold")
    choose_weight_threshold = resolve(weight_threshold, THRESHOLDS, "weight threshold")
    goal = resolve_target(target)
    stream = _calibration(data, samples)
    first = next(stream)
    network = _captured(model, first)
    sites = place(network.graph)
    if not any(is_contraction(n) for n in network.graph.nodes):
        raise InputError("this network has no convolution or linear layer with a weight of its own; there is nothing to quantise")
    histograms, seen = observe(network, sites, chain([first], stream), samples)
    weight_bits = min(bits, goal.weight_bits)
    activation_quantizers = {s.node: _activation_quantizer(histograms[s.node], choose_threshold, bits, goal) for s in sites if s.source is None}
    weight_quantizers = {}
    for node in network.graph.nodes:
        if is_contraction(node):
            name = str(parameter_name(node.args[1]))
            quantizer = _weight_quantizer(get_tensor(network, name), choose_weight_threshold, weight_bits, name)
            weight_quantizers[name] = _bias_fits(network, node, sites, activation_quantizers, weight_quantizers.get(name, quantizer))
    named = [*(("", t) for t in first.args), *first.kwargs.items()]
    described = Quantization(
        goal.name, bits, weight_bits, threshold if isinstance(threshold, str) else getattr(threshold, "__name__", "custom"), seen,
        tuple((name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in named), tuple(sites), float_operators(network.graph, sites),
    )  # fmt: skip
    result = _insert(network, activation_quantizers, weight_quantizers, described)
    result.meta["histograms"] = histograms
    result.meta[FORM] = getattr(model, "meta", {}).get(FORM)
    result.meta["float_sizes"] = {n: list(t.shape) for n, t in model.state_dict().items()}
    own = dict(result.named_parameters())
    masks.mark(result, {n: block for n, block in masks.blocks(model).items() if n in own})  # a zero is the integer 0
    return result


def _calibration(data: Iterable, count: int) -> Iterator[Batch]:
    return samples(data, count, "the calibration set")


def _captured(model: nn.Module, first: Batch) -> fx.GraphModule:
    """Captured for any batch size, BatchNorm folded, rebuilt so that train() and eval() work and the first batch is not kept alive."""
    captured = capture(check_network(model), first, dynamic_batch=True)
    network = fx.GraphModule(captured, captured.graph)
    _plain_signature(network)
    fold_batchnorm(network)
    return network.eval()


def _plain_signature(network: fx.GraphModule) -> None:
    """Inputs and outputs without torch's descriptions of nested containers, which warn whenever they are copied; nested outputs keep theirs."""
    output = network.graph.output_node()
    spec = network.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    if spec.is_leaf():
        output.args = (output.args[0][0],)  # type: ignore[index]
    elif spec.type is not tuple or not all(child.is_leaf() for child in spec.children()):
        return
    network.graph.set_codegen(fx.graph.CodeGen())
    network.recompile()


def observe(network: fx.GraphModule, sites: list[Site], data: Iterable[Batch], count: int) -> tuple[dict[str, Histogram], int]:
    """A histogram for every site, and how many samples there were; `count` of them are expected."""
    histograms = {s.node: Histogram() for s in sites}
    layers = {s.node: s.layer for s in sites}

    class Observer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in histograms:
                histograms[n.name].add(value, layers[n.name])
            return value

    seen = 0
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with torch.no_grad(), bar("calibrating", count) as shown:
        for batch in data:
            observer = Observer(network, garbage_collect_values=True)
            observer.extra_traceback = False
            try:
                observer.run(*inputs_in_order(network.graph, batch.map(lambda t: t.to(device))))
            except InputError:
                raise
            except Exception as error:
                shapes = ", ".join(str(tuple(t.shape)) for t in batch.tensors)
                raise InputError(
                    f"the network does not run on a calibration batch of shape {shapes}: {str(error).strip().splitlines()[0]}"
                ) from error
            seen += batch.size
            shown.advance(batch.size)
    return histograms, seen


def inputs_in_order(graph: fx.Graph, batch: Batch) -> list[torch.Tensor]:
    """One tensor for every placeholder: named inputs by name, whatever order the loader's dict has."""
    names = [str(n.target) for n in graph.nodes if n.op == "placeholder"][len(batch.args) :]
    return [*batch.args, *(batch.kwargs[n] if n in batch.kwargs else value for n, value in zip(names, batch.kwargs.values(), strict=True))]


def _activation_quantizer(histogram: Histogram, choose: Callable, bits: int, target: Target) -> ActivationQuantizer:
    rectified = target.unsigned and not histogram.signed
    levels = 2**bits - 1 if rectified else 2 ** (bits - 1) - 1
    threshold = float(choose(histogram, levels))
    if not 0 <= threshold < float("inf"):
        raise InputError(f"the threshold rule gave {threshold!r}; expected a number in (0, {histogram.maximum:g}]")
    low = 0 if target.activations == "uint8" else -(2 ** (bits - 1))
    zero_point = low if rectified else low + 2 ** (bits - 1)
    return ActivationQuantizer(threshold / levels if threshold > 0 else 1.0, zero_point, low, low + 2**bits - 1)


def _weight_quantizer(weight: torch.Tensor, choose: Callable, bits: int, name: str) -> WeightQuantizer:
    levels = 2 ** (bits - 1) - 1
    rows = weight.detach().reshape(len(weight), -1)
    if choose is THRESHOLDS["absmax"]:
        thresholds = rows.abs().amax(1)
    else:
        found = []
        for row in rows:
            histogram = Histogram()
            histogram.add(row, name)
            found.append(choose(histogram, levels))
        thresholds = torch.tensor(found)
    # A filter of zeros has no scale of its own: a small one, which its bias is stored in units of (see `_bias_fits`).
    return WeightQuantizer(torch.where(thresholds > 0, thresholds / levels, 2.0**-40), 0, levels)


def _bias_fits(network: fx.GraphModule, node: fx.Node, sites: list[Site], activations: dict, quantizer: WeightQuantizer) -> WeightQuantizer:
    """Widens the scales of filters so small that their bias, in units of input scale times weight scale, would not fit 31 bits.

    Filters of zeros get a scale at which their bias takes 20 bits: fine steps, with room for training.
    """
    bias = node.args[2] if len(node.args) > 2 else None
    if bias is None or parameter_name(bias) is None:
        return quantizer
    site = next(s for s in sites if s.node == node.args[0].name)
    weight = get_tensor(network, str(parameter_name(node.args[1]))).detach()
    units = torch.where(weight.flatten(1).any(1), 2.0**30, 2.0**20)
    smallest = get_tensor(network, str(bias.target)).detach().abs() / (float(activations[site.source or site.node].scale.detach()) * units)
    with torch.no_grad():
        quantizer.scale.copy_(torch.maximum(quantizer.scale, smallest.to(quantizer.scale)))
    return quantizer


def _insert(network: fx.GraphModule, activations: dict, weights: dict, described: Quantization) -> fx.GraphModule:
    """Puts the quantisers into the graph: behind each site, and between each weight and its layer."""
    by_name = {n.name: n for n in network.graph.nodes}
    # Names of nodes are unique in the graph, which parameter paths with their dots replaced are not.
    keys: dict[str, str] = {}
    for node in network.graph.nodes:
        if node.op == "get_attr" and str(node.target) in weights:
            keys.setdefault(str(node.target), node.name)
    for name, quantizer in [*activations.items(), *((keys[n], q) for n, q in weights.items())]:
        if hasattr(getattr(network, "quantizers", None), name) or not isinstance(getattr(network, "quantizers", network), nn.Module):
            raise InputError(f"the network has something called 'quantizers' of its own, where quantizers.{name} would go; rename it")
        network.add_submodule(f"quantizers.{name}", quantizer)
    for site in described.sites:
        _call_after(network, by_name[site.node], f"quantizers.{site.source or site.node}")
    for node in list(network.graph.nodes):
        if node.op == "get_attr" and str(node.target) in weights:
            readers = [u for u in node.users if is_contraction(u) and u.args[1] is node]
            _call_after(network, node, f"quantizers.{keys[str(node.target)]}", readers)
    drop_unused_tensors(network)
    result = fx.GraphModule(network, network.graph)
    result.meta["quantization"] = described
    return result.eval()


def _call_after(network: fx.GraphModule, node: fx.Node, target: str, readers: list[fx.Node] | None = None) -> None:
    with network.graph.inserting_after(node):
        call = network.graph.call_module(target, (node,))
    call.meta = {k: node.meta[k] for k in ("val", "nn_module_stack") if k in node.meta}
    for user in list(node.users) if readers is None else readers:
        if user is not call:
            user.replace_input_with(node, call)


def rebuild(model: nn.Module, described: dict[str, Any]) -> fx.GraphModule:
    """The structure of a quantised network, from its float network (of the pruned sizes) and `Quantization.to_dict()`.

    The numbers come with its state.
    """
    sites = tuple(Site(**s) for s in described["sites"])
    inputs = tuple((name, tuple(shape), dtype) for name, shape, dtype in described["inputs"])
    fields = {**described, "sites": sites, "inputs": inputs}
    zeros = [(name, torch.zeros(shape, dtype=getattr(torch, dtype))) for name, shape, dtype in inputs]
    network = _captured(model, Batch(tuple(t for name, t in zeros if not name), {name: t for name, t in zeros if name}, None))
    if [s.node for s in place(network.graph)] != [s.node for s in sites]:
        raise InputError("this network has other layers than the one that was quantised; build the same one")
    goal, bits = TARGETS[described["target"]], described["bits"]
    levels = 2 ** (described["weight_bits"] - 1) - 1
    low = 0 if goal.activations == "uint8" else -(2 ** (bits - 1))
    activations = {s.node: ActivationQuantizer(1.0, 0, low, low + 2**bits - 1) for s in sites if s.source is None}
    weights = {}
    for node in network.graph.nodes:
        if is_contraction(node):
            name = str(parameter_name(node.args[1]))
            weights[name] = WeightQuantizer(torch.ones(get_tensor(network, name).shape[0]), 0, levels)
    return _insert(network, activations, weights, Quantization(**fields))


__all__ = ["TARGETS", "THRESHOLDS", "Quantization", "quantization", "quantize", "rebuild"]
