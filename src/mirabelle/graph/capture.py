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
from torch.utils import _pytree as pytree

from mirabelle.base.checks import check_network, check_runs, clone
from mirabelle.base.data import Batch
from mirabelle.base.errors import CaptureError, InputError
from mirabelle.base.quiet import muffled, uncollected


def _users_line(error: BaseException, model: nn.Module) -> str:
    """The innermost line outside torch that the error passed through: the place in the user's own
    code.
    """
    torch_root = str(Path(torch.__file__).parent)
    here = str(Path(__file__).parent)
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith((torch_root, here)) and "<" not in f.filename
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
    where the network fixes it, the graph is captured for the example's size. training: what it
    computes in training mode. The parameters are copies: `model` stays as it is.
    Raises `InputError` where the network does not run on the example, `CaptureError` with torch's
    reason and the line of the network's own code where `torch.export` refuses.
    """
    model = clone(check_network(model)).train(training)
    inputs = inputs._replace(target=None)
    if dynamic_batch:
        # Two samples trace faster than many, unless the network takes another path for these.
        for example in [inputs.head(2), inputs] if inputs.size > 2 else [inputs]:
            try:
                found = _traced(model, example, free=True)
            except (InputError, CaptureError):
                continue
            if example is inputs or _is_for(found, inputs):
                return _without_guards(found)
    return _without_guards(_traced(model, inputs, free=False))


def _traced(model: nn.Module, inputs: Batch, free: bool) -> fx.GraphModule:
    check_runs(model, inputs, "the example input")
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


def _is_for(graph_module: fx.GraphModule, inputs: Batch) -> bool:
    """Whether the network takes the same path for these inputs as for those that it was captured
    with, by what `torch.export` found that it depends on.
    """
    values = dict(
        zip(
            [n for n in graph_module.graph.nodes if n.op == "placeholder"],
            inputs_in_order(graph_module.graph, inputs),
            strict=True,
        )
    )
    try:
        for node in _guards(graph_module):
            graph_module.get_submodule(str(node.target))(*(values[n] for n in node.args))
    except AssertionError:
        return False
    return True


def _without_guards(graph_module: fx.GraphModule) -> fx.GraphModule:
    for node in _guards(graph_module):
        graph_module.graph.erase_node(node)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    for name in ("train", "eval"):  # the export's own refuse
        vars(graph_module).pop(name, None)
    return graph_module


def program(
    model: nn.Module, inputs: Batch, dynamic_shapes: Any = None
) -> torch.export.ExportedProgram:
    """The network as torch's exported program, as it stands: its mode and parameters are those of
    `model`. `CaptureError` where torch refuses.
    """
    with muffled(), uncollected():
        try:
            return torch.export.export(
                model, inputs.args, inputs.kwargs, strict=False, dynamic_shapes=dynamic_shapes
            )
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise CaptureError(
                f"torch.export refuses this network{_users_line(error, model)}: "
                f"{type(error).__name__}: {reason}; "
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
