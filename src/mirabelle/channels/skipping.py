"""Residual blocks skipped, in a copy of the user's own module or in graph form, with the proof."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from mirabelle.base.checks import check_runs, clone
from mirabelle.base.data import Batch
from mirabelle.base.errors import CaptureError, InputError, SurgeryError
from mirabelle.channels.blocks import chosen, leave_out, without
from mirabelle.channels.rewrite import FORM, graph_form
from mirabelle.graph.capture import capture, operator
from mirabelle.graph.proof import check_comparable, difference, random_like
from mirabelle.graph.structure import ACTIVATIONS, STRUCTURE, Skipped, replace_module, structure_of


def skip(model: nn.Module, inputs: Batch, names: Sequence[str]) -> nn.Module:
    """A copy of `model` without these residual blocks (`blocks`), which costs nothing for them.

    The module around a block becomes a `Skipped` where that is all that it does; else the captured
    graph takes the network's place, as for channels (`channels/rewrite.py`). Raises `InputError`
    for names of no block, `SurgeryError` where the network does not compute what it does with zeros
    for the branches.
    """
    few = inputs.head(2)
    graph_module = capture(model, few)
    chosen(graph_module.graph, names)
    drawn = random_like(few)
    expected = [(few, without(graph_module, names, few))]
    check_comparable(expected[0][1])
    try:
        expected.append((drawn, without(graph_module, names, drawn)))
    except Exception:  # the example's own values are the only ones that it takes
        pass
    problems = []
    for make in (_in_place, _in_graph_form):
        try:
            small = make(model, few, names)
            pairs = (
                (y, check_runs(small, batch.map(torch.clone), "the example input without blocks"))
                for batch, y in expected
            )
            problem = next(filter(None, (difference(*pair) for pair in pairs)), None)
        except (InputError, CaptureError, SurgeryError) as error:
            problem = str(error)
        else:
            if problem is None:
                return small
        problems.append(problem)
    raise SurgeryError(
        f"the network without {', '.join(names)} is not the original with zeros for these branches "
        f"({problems[0]}; as a graph: {problems[1]})"
    )


def skipped_blocks(model: nn.Module) -> tuple[str, ...]:
    """The blocks that a network has lost: the modules around them, or in graph form their names."""
    structures, names = [structure_of(model)], []
    form = getattr(model, "meta", {}).get(FORM)
    if form is not None:
        structures = [form[STRUCTURE], *(c[STRUCTURE] for c in form["cuts"] if STRUCTURE in c)]
        names = [n for c in form["cuts"] for n in c.get("skipped", ())]
    return tuple(dict.fromkeys([*(n for s in structures for n in s["skipped"]), *names]))


def _in_graph_form(model: nn.Module, inputs: Batch, names: Sequence[str]) -> nn.Module:
    return graph_form(model, inputs, {}, names)


def _in_place(model: nn.Module, inputs: Batch, names: Sequence[str]) -> nn.Module:
    """A copy of the network itself, in which the modules around the blocks are `Skipped`."""
    graph_module = capture(model, inputs)
    around = {b.name: _stack(b.add) for b in chosen(graph_module.graph, names)}
    leave_out(graph_module, names)
    small = clone(model)
    done: set[str] = set()
    for name, stack in around.items():
        left = {path: _what_is_left(graph_module.graph, path) for path in stack}
        path = next((p for p in reversed(stack) if left[p] is not None), None)
        if path is None or not _is_plain(model, path, inputs):
            raise SurgeryError(f"no module holds {name} and nothing more")
        if path not in done:
            replace_module(small, path, Skipped.of(left[path] or []))
            done.add(path)
    return small


def _stack(node: fx.Node) -> list[str]:
    """The paths of the modules in which a node was called, from the outside in, but for the network
    itself.
    """
    return [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]


def _what_is_left(graph: fx.Graph, path: str) -> list[str] | None:
    """The activations that a module is; None where it is something else."""
    own = [n for n in graph.nodes if path in _stack(n) and n.op == "call_function"]
    names = [operator(n).removesuffix("_") for n in own]
    if any(n not in ACTIVATIONS for n in names):
        return None
    chain = all(b.all_input_nodes == [a] for a, b in pairwise(own))
    return names if chain and all(len(n.all_input_nodes) == 1 for n in own) else None


def _is_plain(model: nn.Module, path: str, inputs: Batch) -> bool:
    """Whether a module is called once, with one tensor, and gives one of the same shape."""
    probe, calls = clone(model), []

    def seen(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        one = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
        calls.append(one and isinstance(output, torch.Tensor) and output.shape == args[0].shape)

    handle = probe.get_submodule(path).register_forward_hook(seen, with_kwargs=True)
    check_runs(probe, inputs.map(torch.clone), "the example input")
    handle.remove()
    return calls == [True]
