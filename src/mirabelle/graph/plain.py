"""Makes a captured graph plain: regions that torch.export leaves as graphs of their own are written
into it, and nothing in it writes to its inputs.
"""

from __future__ import annotations

import operator as py
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from mirabelle.base.quiet import muffled
from mirabelle.graph.nodes import optional_argument

AUTOCAST = "autocast"  # the key in the `meta` of a conversion that autocast made
REGIONS = {  # by operator, how many of its arguments stand before the graph and its inputs
    "wrap_with_autocast": 4,
    "wrap_with_set_grad_enabled": 1,
}


def write_regions(graph_module: fx.GraphModule) -> None:
    """Writes what is computed under `torch.autocast` or `torch.no_grad` into the graph around it,
    with the conversions that autocast makes, and cut off from gradients as `no_grad` does it.
    """
    graph = graph_module.graph
    while found := [n for n in graph.nodes if getattr(n.target, "_name", "") in REGIONS]:
        for node in found:
            _write(graph_module, node)
    for node in list(graph.nodes):
        if str(node.target).startswith("aten._assert_tensor_metadata"):
            graph.erase_node(node)
    graph_module.delete_all_unused_submodules()


def _write(graph_module: fx.GraphModule, node: fx.Node) -> None:
    target: Any = node.target
    first = REGIONS[target._name]
    options, inner, given = node.args[:first], node.args[first], node.args[first + 1 :]
    assert isinstance(inner, fx.Node)
    region = graph_module.get_submodule(str(inner.target))
    assert isinstance(region, fx.GraphModule)
    device = options[0] if target._name == "wrap_with_autocast" and options[2] else None
    detached = target._name == "wrap_with_set_grad_enabled" and not options[0]
    inputs, known = iter(given), {}
    results: Any = ()
    with graph_module.graph.inserting_before(node):
        for n in region.graph.nodes:
            if n.op == "placeholder":
                known[n] = next(inputs)
            elif n.op == "output":
                results = fx.map_arg(n.args[0], known.__getitem__)
            else:
                known[n] = graph_module.graph.node_copy(n, known.__getitem__)
                if n.op == "get_attr":
                    known[n].target = _adopted(graph_module, region, str(n.target))
                elif device is not None:
                    _convert(known[n], str(device))
        if detached:
            results = fx.map_arg(results, lambda n: _after(n, torch.ops.aten.detach.default))
    for user in list(node.users):
        assert user.target is py.getitem
        user.replace_all_uses_with(results[user.args[1]])
        graph_module.graph.erase_node(user)
    graph_module.graph.erase_node(node)
    if not inner.users:
        graph_module.graph.erase_node(inner)


def _adopted(graph_module: fx.GraphModule, region: fx.GraphModule, name: str) -> str:
    """The name under which what a region reads stands in the graph around it."""
    path = new = f"{name.replace('.', '_')}_of_region"
    count = 1
    while hasattr(graph_module, new):
        new, count = f"{path}_{count}", count + 1
    owner, _, leaf = name.rpartition(".")
    setattr(graph_module, new, getattr(region.get_submodule(owner), leaf))
    return new


def _after(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    made = node.graph.call_function(target, (node, *args))
    made.meta = dict(node.meta)
    return made


def _convert(node: fx.Node, device: str) -> None:
    """Gives an operator its operands in the type in which autocast computed it: operators that
    autocast knows have one type, others only where all their operands had another.
    """
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    schema: Any = getattr(node.target, "_schema", None)
    if schema is None or not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return
    key = f"Autocast{device.upper()}"
    found = {n: n.meta["val"] for n in node.all_input_nodes if _is_float(n)}
    known = torch._C._dispatch_has_kernel_for_dispatch_key(node.target.name(), key)  # type: ignore
    moves = any(a.name == "dtype" for a in schema.arguments) or "to" == schema.name[6:]
    if not known and (moves or not found or value.dtype in {v.dtype for v in found.values()}):
        return
    for operand, own in found.items():
        if own.dtype != value.dtype:
            with node.graph.inserting_before(node):
                made = _after(operand, torch.ops.aten.to.dtype, value.dtype)
            with torch.no_grad():
                made.meta["val"] = own.to(value.dtype)
            made.meta[AUTOCAST] = True
            node.replace_input_with(operand, made)


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def without_autocast(graph_module: fx.GraphModule) -> None:
    """Leaves out the conversions that autocast made: everything in the type of its weights."""
    for node in list(graph_module.graph.nodes):
        if node.meta.get(AUTOCAST):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)


def compute_once(graph_module: fx.GraphModule) -> None:
    """What forward computes twice from the same values is computed once, as exporters write it.
    Graphs in which operators write into values stay as they are.
    """
    graph, seen = graph_module.graph, {}
    if any(_writes(n) for n in graph.nodes):
        return
    for node in list(graph.nodes):
        if node.op != "get_attr" and not _repeats(node.target):
            continue
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        given = tuple(v if isinstance(v, fx.Node) else (type(v), repr(v)) for v in leaves)
        first = seen.setdefault((node.op, node.target, str(spec), given), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _repeats(target: Any) -> bool:
    """Whether an operator gives the same for the same."""
    if isinstance(target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded not in target.tags
    return target is py.getitem


def leave_inputs_alone(graph_module: fx.GraphModule, inputs: list[torch.Tensor]) -> None:
    """Operators that write into the graph's inputs, or into views of them, write into copies.

    inputs: an example of them; they are only looked at.
    """
    if not any(_writes(n) for n in graph_module.graph.nodes):
        return
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    for node, written in zip(placeholders, _written(graph_module, inputs), strict=True):
        if not written:
            continue
        with graph_module.graph.inserting_after(placeholders[-1]):
            copied = graph_module.graph.call_function(torch.ops.aten.clone.default, (node,))
        copied.meta = dict(node.meta)
        node.replace_all_uses_with(copied, delete_user_cb=lambda user, own=copied: user is not own)


def own_constants(graph_module: fx.GraphModule, model: nn.Module) -> None:
    """Copies what forward reads from outside the network (globals, tensors of a closure), which is
    the user's own.
    """
    owned = {_storage(t) for t in (*model.parameters(), *model.buffers())}
    for name in {str(n.target) for n in graph_module.graph.nodes if n.op == "get_attr"}:
        path, _, leaf = name.rpartition(".")
        owner = graph_module.get_submodule(path)
        found = getattr(owner, leaf)
        if isinstance(found, torch.Tensor) and _storage(found) not in owned:
            copied = found.detach().clone()
            is_parameter = isinstance(found, nn.Parameter)
            setattr(
                owner, leaf, nn.Parameter(copied, found.requires_grad) if is_parameter else copied
            )


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _writes(node: fx.Node) -> bool:
    schema: Any = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def written_parts(graph: fx.Graph) -> set[fx.Node]:
    """The values that an operator writes into, or into a view of which, before others read them:
    whoever runs the graph on values of another kind has to keep their memory, too. Views end where
    values are made, by a layer, a quantizer or the like.
    """
    place = {n: i for i, n in enumerate(graph.nodes)}
    found: set[fx.Node] = set()
    for node in filter(_writes, graph.nodes):
        chain = [optional_argument(node, 0)]
        while (last := chain[-1]) is not None:
            chain.append(optional_argument(last, 0) if _gives_view(last) else None)
        parts = {n for n in chain if n is not None}
        if any(place[user] > place[node] for n in parts for user in n.users):
            found |= parts
    return found


def _gives_view(node: fx.Node) -> bool:
    schema: Any = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def _written(graph_module: fx.GraphModule, inputs: list[torch.Tensor]) -> list[bool]:
    """Which inputs the graph writes into, by the counters that torch keeps of writes; all where it
    does not run without numbers.

    Which operator gives a view depends on its arguments: dropout in eval mode gives its input.
    """
    try:
        with muffled(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [mode.from_tensor(t) for t in inputs]
            before = [t._version for t in fakes]
            fx.Interpreter(graph_module).run(*fakes)
            return [t._version != v for t, v in zip(fakes, before, strict=True)]
    except Exception:
        return [True] * len(inputs)
