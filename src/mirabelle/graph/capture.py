"""Capturing a network as a graph of ATen operators with `torch.export`, in eval mode."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.nn.utils.prune import BasePruningMethod
from torch.utils import _pytree as pytree

from mirabelle.base.checks import check_network, check_python, check_runs, clone
from mirabelle.base.data import Batch
from mirabelle.base.errors import CaptureError, InputError, first_line, warn
from mirabelle.base.graph_names import rename_nodes
from mirabelle.base.quiet import muffled, uncollected
from mirabelle.base.tracing import DataAsDetached
from mirabelle.graph.any_batch import open_batch
from mirabelle.graph.plain import leave_inputs_alone, own_constants, write_regions
from mirabelle.graph.proof import FLIPPED, difference

_HOOKS = {  # by class, what takes the hook away
    "torch.nn.utils.weight_norm.WeightNorm": (
        "call torch.nn.utils.remove_weight_norm(module) first"
    ),
    "torch.nn.utils.spectral_norm.SpectralNorm": (
        "call torch.nn.utils.remove_spectral_norm(module) first"
    ),
}
_MASKED = 'make its zeros permanent with torch.nn.utils.prune.remove(module, "weight") first'
# Modules of such names take the place of what a graph module, or any module, is made of.
_TAKEN = {"code", "graph", "meta", "recompile", "training"}
_TORCH = str(Path(torch.__file__).parent)


def _users_line(error: BaseException, model: nn.Module) -> str:
    """The innermost line outside torch that the error passed through: the place in the user's own
    code.
    """
    here = str(Path(__file__).parents[1])  # all of Mirabelle
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith((_TORCH, here)) and "<" not in f.filename
    ]
    return (
        f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"
        if frames
        else f" in {type(model).__name__}"
    )


def capture(
    model: nn.Module, inputs: Batch, dynamic_batch: bool = False, training: bool = False
) -> fx.GraphModule:
    """The network as a graph module over ATen operators; its module paths and parameter names are
    those of `model`.

    inputs: example inputs. dynamic_batch: the first dimension of every input may vary afterwards;
    where the network fixes it, the graph is captured for the example's size. Where what it computes
    depends on the number of samples, too, with a warning that names the line. training: what it
    computes in training mode. The parameters are copies: `model` stays as it is. The graph writes
    into none of its inputs.
    Raises `InputError` where the network does not run on the example, `CaptureError` with torch's
    reason and the line of the network's own code where `torch.export` refuses.
    """
    model = clone(check_capturable(check_network(model))).train(training)
    inputs = inputs._replace(target=None)
    branch = None
    if dynamic_batch:
        # Two samples trace faster than many, unless the network takes another path for these.
        for example in [inputs.head(2), inputs] if inputs.size > 2 else [inputs]:
            try:
                found = _traced(model, example, free=True)
            except (InputError, CaptureError):
                continue
            unsaid = inputs.size > 1 and not _guards(found)
            if (example is not inputs or unsaid) and not _is_for(model, found, inputs):
                continue
            branch = batch_branch(found) or _only_for_more(model, found, inputs)
            if branch is None and not _is_fixed(found):
                return _finished(found, model, inputs)
            break
        if branch is None and (opened := _opened(model, inputs)) is not None:
            return opened
    found = _finished(_traced(model, inputs, free=False), model, inputs)
    if dynamic_batch and branch is None and _departs_elsewhere(model, found, inputs):
        branch = ""
    if branch is not None:
        warn(
            f"what {type(model).__name__} computes depends on the number of samples{branch}; what "
            f"is captured is what it computes for {inputs.size}, as in the example"
        )
    return found


def check_names(model: nn.Module) -> nn.Module:
    """The network itself. `CaptureError` for a module whose name a graph needs for itself."""
    if taken := sorted(_TAKEN & {n for n, _ in model.named_children()}):
        raise CaptureError(
            f"{type(model).__name__} has a module called {taken[0]!r}, which torch's graphs need "
            "for themselves; give it another name"
        )
    return model


def check_capturable(model: nn.Module) -> nn.Module:
    """The network itself. `CaptureError` with the remedy for what can be seen to stand in the way:
    scripted modules, names that graphs need, and weights that an old hook computes before each
    forward.
    """
    if not isinstance(model, fx.GraphModule):
        check_names(model)
    for name, module in check_python(model).named_modules():
        where = name or type(model).__name__
        for hook in module._forward_pre_hooks.values():
            if remedy := _HOOKS.get(f"{type(hook).__module__}.{type(hook).__name__}") or (
                _MASKED if isinstance(hook, BasePruningMethod) else None
            ):
                raise CaptureError(f"{where} computes a weight before each forward: {remedy}")
    return model


def _is_fixed(graph_module: fx.GraphModule) -> bool:
    values = [n.meta["val"] for n in graph_module.graph.nodes if n.op == "placeholder"]
    return any(fixed_length(v) is not None for v in values if isinstance(v, torch.Tensor))


def _opened(model: nn.Module, inputs: Batch) -> fx.GraphModule | None:
    """The graph for any batch where forward holds the batch's size as an integer; None where it
    cannot be told from two sizes what depends on it, or the graph gives something else than the
    network for one of some sizes.
    """
    few = inputs.at_least_two()
    more = few.map(lambda t: torch.cat([t, t[:1]]) if t.ndim and len(t) == few.size else t)
    try:
        found, other = (_finished(_traced(model, b, free=False), model, b) for b in (few, more))
    except (InputError, CaptureError):
        return None
    if not open_batch(found.graph, other.graph, few.size):
        return None
    found.recompile()
    found._forward_pre_hooks.clear()  # the export's own, which refuses other sizes
    alike = (_difference(model, found, b) is None for b in (inputs, few.head(2), more))
    return found if all(alike) else None


def _difference(model: nn.Module, found: fx.GraphModule, inputs: Batch) -> str | None:
    """How the graph differs from the network on a batch."""
    probe = clone(model)
    try:
        expected = check_runs(probe, inputs.map(torch.clone), "the example input")
        with torch.no_grad():
            given = [t.clone() for t in inputs_in_order(found.graph, inputs)]
            return difference(expected, fx.Interpreter(found).run(*given), FLIPPED)
    except Exception as error:
        return str(error)


def _departs_elsewhere(model: nn.Module, found: fx.GraphModule, inputs: Batch) -> bool:
    """Whether a graph that was captured for the example's size runs on fewer or more samples and
    gives something else than the network. One that cannot run there says so by itself.
    """
    more = inputs.map(lambda t: torch.cat([t, t[:1]]) if t.ndim and len(t) == inputs.size else t)
    for other in (more, inputs.head(2), inputs.head(1)):
        try:
            once, again = (check_runs(clone(model), other.map(torch.clone), "it") for _ in "12")
            with torch.no_grad():
                given = [t.clone() for t in inputs_in_order(found.graph, other)]
                result = fx.Interpreter(found).run(*given)
        except Exception:  # of the network or of the graph: neither takes this many
            continue
        random = difference(once, again) is not None
        if not random and difference(once, result, FLIPPED) is not None:
            return True
    return False


def _only_for_more(model: nn.Module, found: fx.GraphModule, inputs: Batch) -> str | None:
    """That the graph is not what the network computes for a single sample, where the example is
    one: it was captured with two.
    """
    if inputs.size != 1:
        return None
    if _difference(model, _without_guards(found), inputs) is None:
        return None
    once, again = (check_runs(clone(model), inputs.map(torch.clone), "it") for _ in range(2))
    random = difference(once, again) is not None
    return None if random else " (it does something else for a single one)"


def _traced(model: nn.Module, inputs: Batch, free: bool) -> fx.GraphModule:
    check_runs(model, inputs.map(torch.clone), "the example input")
    shapes: Any = None
    if free:
        inputs = inputs.at_least_two()
        bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs).arguments
        shapes = pytree.tree_map(lambda _: {0: torch.export.Dim.AUTO}, dict(bound))
    exported = program(model, inputs, shapes)
    with muffled():
        traced: Any = exported.module()
    return traced


def _guards(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [
        n for n in graph_module.graph.nodes if n.op == "call_module" and "_guards" in str(n.target)
    ]


def _is_for(model: nn.Module, graph_module: fx.GraphModule, inputs: Batch) -> bool:
    """Whether the network takes the same path for these inputs as for those that it was captured
    with, by what `torch.export` found that it depends on; torch 2.8 does not say, so there by what
    both give.
    """
    guards = _guards(graph_module)
    if not guards:
        return _difference(model, graph_module, inputs) is None
    values = dict(
        zip(
            [n for n in graph_module.graph.nodes if n.op == "placeholder"],
            inputs_in_order(graph_module.graph, inputs),
            strict=True,
        )
    )
    try:
        for node in guards:
            graph_module.get_submodule(str(node.target))(*(values[n] for n in node.args))
    except AssertionError:
        return False
    return True


def batch_branch(graph_module: fx.GraphModule) -> str | None:
    """Where the network's own code asks how many samples there are, and goes one way for some
    numbers of them and another for others: ` at file:line: code`; None where it nowhere does.
    """
    for node in graph_module.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or not isinstance(value, torch.Tensor) or not value.ndim:
            continue
        if fixed_length(value) is not None:
            continue
        size: Any = value.shape[0]
        for guard in size.node.shape_env.guards:
            asked = guard.sloc.framework_loc
            if isinstance(asked, traceback.FrameSummary) and not asked.filename.startswith(_TORCH):
                return f" at {asked.filename}:{asked.lineno}: {asked.line}"
    return None


def _finished(graph_module: fx.GraphModule, model: nn.Module, inputs: Batch) -> fx.GraphModule:
    """Without what the export has for itself, plain, and with tensors of its own alone."""
    graph_module = _without_guards(graph_module)
    own_constants(graph_module, model)
    rename_nodes(graph_module.graph)
    write_regions(graph_module)
    leave_inputs_alone(graph_module, inputs_in_order(graph_module.graph, inputs.at_least_two()))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    for name in ("train", "eval"):  # the export's own refuse
        vars(graph_module).pop(name, None)
    # What is pickled is traced again when it is read, which the export's tracer cannot do.
    vars(graph_module)["_tracer_cls"] = vars(graph_module.graph)["_tracer_cls"] = None
    return graph_module


def _without_guards(graph_module: fx.GraphModule) -> fx.GraphModule:
    for node in _guards(graph_module):
        graph_module.graph.erase_node(node)
    return graph_module


def program(
    model: nn.Module, inputs: Batch, dynamic_shapes: Any = None
) -> torch.export.ExportedProgram:
    """The network as torch's exported program, as it stands: its mode and parameters are those of
    `model`. `CaptureError` where torch refuses.
    """
    with muffled(), uncollected(), DataAsDetached():
        try:
            return torch.export.export(
                model, inputs.args, inputs.kwargs, strict=False, dynamic_shapes=dynamic_shapes
            )
        except Exception as error:
            raise CaptureError(
                f"torch.export refuses this network{_users_line(error, model)}: "
                f"{type(error).__name__}: {first_line(error)}; "
                "change that line, or work on the part of the network that can be exported"
            ) from error


def inputs_in_order(graph: fx.Graph, batch: Batch) -> list[torch.Tensor]:
    """One tensor for every placeholder: named inputs by name, whatever order the loader's
    dict has.
    """
    names = [str(n.target) for n in graph.nodes if n.op == "placeholder"][len(batch.args) :]
    return [
        *batch.args,
        *(
            batch.kwargs[n] if n in batch.kwargs else value
            for n, value in zip(names, batch.kwargs.values(), strict=True)
        ),
    ]


def fixed_length(value: torch.Tensor) -> int | None:
    """The only size that the first dimension of an input was captured for, also where
    `torch.export` left it open at first; None where it is free.
    """
    return int(value.shape[0]) if value.ndim and is_concrete_int(value.shape[0]) else None


def of_example(value: Any) -> Any:
    """A size that `torch.export` left open, as it is in the example; anything else as it is."""
    return int(value.node.hint) if isinstance(value, torch.SymInt) else value


def sample_elements(graph: fx.Graph) -> Callable[[fx.Node], int]:
    """A function that says how many numbers of one sample the value of a node holds, whichever of
    its dimensions is the batch; 0 where it is no tensor.
    """
    inputs = [n.meta["val"] for n in graph.nodes if n.op == "placeholder"]
    samples = next((of_example(v.shape[0]) for v in inputs if v.ndim), 1)

    def elements(node: fx.Node) -> int:
        value = node.meta.get("val")
        return (
            math.prod(map(of_example, value.shape)) // samples
            if isinstance(value, torch.Tensor)
            else 0
        )

    return elements


def make_concrete(graph_module: fx.GraphModule) -> None:
    """Puts the example's own numbers where `torch.export` left a size open."""

    def concrete(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.empty(
                [of_example(s) for s in value.shape], dtype=value.dtype, device="meta"
            )
        return of_example(value)

    for node in graph_module.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map(concrete, node.meta["val"])


def operator(node: fx.Node) -> str:
    """The ATen operator of a node without its overload, such as `conv2d`; '' for anything else."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if node.op == "call_function" and packet is not None else ""


def module_path(node: fx.Node) -> str:
    """The path of the module that a node was called in: `layer1.0.conv1`; '' for the network
    itself.
    """
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()))[0] if stack else ""


def parameter_name(node: Any) -> str | None:
    """The name of the parameter or buffer that a node reads, or None where it is computed."""
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else None


def parameter_uses(graph: fx.Graph) -> dict[str, int]:
    """By name of a parameter or buffer, how many nodes read it."""
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if (name := parameter_name(node)) is not None:
            uses[name] = uses.get(name, 0) + len(node.users)
    return uses


def get_tensor(module: nn.Module, name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)
