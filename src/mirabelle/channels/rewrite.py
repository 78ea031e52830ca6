"""The graph form of a pruned network: the captured graph with the sizes that are written into it
rewritten.

It takes the place of the user's own module where that has sizes written into its forward.
Parameters keep their names, layers are modules at the paths that they had (so that hooks, `train()`
and `eval()` find them), and the batch size stays open where the network allows that.
"""

from __future__ import annotations

import operator as py
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from mirabelle.base.checks import clone, tensors_of
from mirabelle.base.data import Batch
from mirabelle.channels.blocks import leave_out
from mirabelle.channels.flow import Flow
from mirabelle.channels.ids import Parameter, Value
from mirabelle.channels.masking import Cutting, compress
from mirabelle.channels.operators import PARTS
from mirabelle.channels.parameters import read_parameters
from mirabelle.channels.rules import RULES
from mirabelle.channels.sizes import mend_sizes, replace_tensors
from mirabelle.graph.capture import capture, make_concrete, operator, parameter_name, parameter_uses
from mirabelle.graph.structure import STRUCTURE, restructured, structure_of
from mirabelle.onnx_files.source import NAMES, ONNX_FORM, SOURCE, source_of

FORM = "graph_form"  # the key of a graph form's `meta` under which it says how it was made
Gone = Mapping[tuple[str, int], torch.Tensor]
LAYERS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv1d": (nn.Conv1d,),
    "conv2d": (nn.Conv2d,),
    "conv3d": (nn.Conv3d,),
    "linear": (nn.Linear,),
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "layer_norm": (nn.LayerNorm,),
    "group_norm": (nn.GroupNorm,),
    "conv_transpose1d": (nn.ConvTranspose1d,),
    "conv_transpose2d": (nn.ConvTranspose2d,),
    "conv_transpose3d": (nn.ConvTranspose3d,),
}


def graph_form(
    model: nn.Module, inputs: Batch, gone: Gone, skipped: Sequence[str] = ()
) -> fx.GraphModule:
    """`model` as a graph module without the indices `gone[parameter, dimension]` and without the
    residual blocks of these names (`blocks.py`). Raises `SurgeryError` where that cannot be
    written.
    """
    graph_module = capture(model, inputs, dynamic_batch=True)
    make_concrete(graph_module)
    if skipped:
        leave_out(graph_module, skipped)
        graph_module.delete_all_unused_submodules()
    parameters = read_parameters(graph_module, model)
    flow = Flow(graph_module, parameters, RULES)
    cutting = Cutting(flow, gone)
    for node in list(graph_module.graph.nodes):
        _rewrite(node, cutting)
    new = {}
    shapes = {p.name: p.tensor.shape for p in parameters.values()}
    for (name, dim), index in gone.items():
        if name not in shapes:  # read in training alone, which is not in the graph
            continue
        kept = torch.ones(shapes[name][dim], dtype=torch.bool)
        kept[index] = False
        new.setdefault(name, {})[dim] = kept.nonzero()[:, 0]
    own = dict(model.named_modules())
    for path, parameter in parameters.items():
        owner, _, leaf = path.rpartition(".")
        module = graph_module.get_submodule(owner)
        table: Any = module._parameters if leaf in module._parameters else module._buffers
        old = table.get(leaf)
        if old is None:  # a constant, which is an attribute of the graph
            continue
        tensor = compress(old.detach(), new.get(parameter.name, {})).clone()
        table[leaf] = (
            nn.Parameter(tensor, requires_grad=old.requires_grad)
            if isinstance(old, nn.Parameter)
            else tensor
        )
    _share(graph_module, parameters)
    _restore_layers(graph_module, own)
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()
    graph_module.train(model.training)
    if (source := source_of(model)) is not None:  # too much of the file has other sizes now
        graph_module.meta.pop(SOURCE, None)
        graph_module.meta |= {NAMES: source, ONNX_FORM: model.meta.get(ONNX_FORM)}  # type: ignore[operator]
    graph_module.meta[FORM] = cut_again(_begun(model, inputs), gone, skipped)
    return graph_module


def _begun(model: nn.Module, inputs: Batch) -> dict[str, Any]:
    """What is known of how a network came to its graph form, or how it begins one."""
    known = getattr(model, "meta", {}).get(FORM)
    if known is None:
        return _whole(model, inputs)
    since = _whole(model, inputs)
    if not any(since[STRUCTURE].values()):
        return known
    changed = {STRUCTURE: since[STRUCTURE], "sizes": since["sizes"]}
    return {**known, "cuts": [*known["cuts"], changed]}


def _whole(model: nn.Module, inputs: Batch) -> dict[str, Any]:
    """How a graph form begins: the structure and sizes of the network, and the inputs that it was
    captured with.
    """
    named = [*(("", t) for t in inputs.args), *inputs.kwargs.items()]
    return {
        STRUCTURE: structure_of(model),
        "sizes": {n: list(t.shape) for n, t in tensors_of(model).items()},
        "inputs": [[n, list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in named],
        "cuts": [],
    }


def cut_again(
    described: Mapping[str, Any], gone: Gone, skipped: Sequence[str] = ()
) -> dict[str, Any]:
    """`meta[FORM]` of a graph form after one cut more."""
    return {
        **described,
        "cuts": [
            *described["cuts"],
            {
                "channels": [[n, d, index.tolist()] for (n, d), index in gone.items()],
                "skipped": list(skipped),
            },
        ],
    }


def rebuild_graph_form(model: nn.Module, described: Mapping[str, Any]) -> nn.Module:
    """The graph form that `described` (`meta[FORM]`) tells of, from the network of the sizes that
    it had before; its weights are those of `model`, cut.
    """
    named = [
        (n, torch.zeros(shape, dtype=getattr(torch, dtype)))
        for n, shape, dtype in described["inputs"]
    ]
    inputs = Batch(tuple(t for n, t in named if not n), {n: t for n, t in named if n}, None)
    for cut in described["cuts"]:
        if STRUCTURE in cut:
            model = restructured(model, cut[STRUCTURE])
            own = tensors_of(model)
            new = {n: torch.zeros(s, dtype=own[n].dtype) for n, s in cut["sizes"].items()}
            replace_tensors(model, {n: t for n, t in new.items() if t.shape != own[n].shape})
            continue
        gone = {(n, d): torch.tensor(index) for n, d, index in cut["channels"]}
        model = graph_form(model, inputs, gone, cut["skipped"])
    return model


def _share(graph_module: fx.GraphModule, parameters: Mapping[str, Parameter]) -> None:
    """Weights that were one tensor under several names are one again."""
    first: dict[str, nn.Parameter] = {}
    for path, parameter in parameters.items():
        owner, _, leaf = path.rpartition(".")
        table = graph_module.get_submodule(owner)._parameters
        if (own := table.get(leaf)) is not None:
            table[leaf] = first.setdefault(parameter.name, own)


# --- numbers written into nodes, as they are when the channels have gone: (node, its arguments,
# labels of the first or else its own, cutting) ------------------


def _sizes(node: fx.Node, args: list[Any], source: Value, cutting: Cutting) -> None:
    result = cutting.flow.values[node]
    for dim, index in cutting.kept(result).items():
        size, new, old = args[1][dim], len(index), result.shape[dim]
        if not isinstance(
            size, int
        ):  # computed, from the batch and the heads: it keeps its proportion
            with node.graph.inserting_before(node):
                size = node.graph.call_function(
                    py.floordiv, (node.graph.call_function(py.mul, (size, new)), old)
                )
        elif size != -1:
            size = new
        args[1] = [*args[1][:dim], size, *args[1][dim + 1 :]]


def _zeros(node: fx.Node, args: list[Any], source: Value, cutting: Cutting) -> None:
    kept = cutting.kept(source)
    args[0] = [len(kept[dim]) if dim in kept else size for dim, size in enumerate(args[0])]


def _unflatten(node: fx.Node, args: list[Any], source: Value, cutting: Cutting) -> None:
    first = args[1] % len(source.shape)
    kept = cutting.kept(cutting.flow.values[node])
    args[2] = [
        len(kept[first + i]) if first + i in kept and s != -1 else s for i, s in enumerate(args[2])
    ]


def _parts(node: fx.Node, args: list[Any], source: Value, cutting: Cutting) -> None:
    given: Any = args[2] if len(args) > 2 else node.kwargs.get("dim", 0)
    dim = given % len(source.shape)
    if dim in cutting.kept(source):
        parts = cutting.flow.values[node]
        node.target = torch.ops.aten.split_with_sizes.default
        node.kwargs = {}
        args[:] = [
            args[0],
            [
                len(k[dim]) if dim in (k := cutting.kept(part)) else part.shape[dim]
                for part in parts
            ],
            dim,
        ]


def _positions(node: fx.Node, args: list[Any], source: Value, cutting: Cutting) -> None:
    """Starts, ends and single positions along channels."""
    dim = (args[1] if len(args) > 1 else 0) % len(source.shape)
    kept = cutting.kept(source).get(dim)
    if kept is None:
        return

    def moved(position: Any) -> Any:
        if not isinstance(position, int):
            return position
        return int((kept < (position + source.shape[dim] if position < 0 else position)).sum())

    name = operator(node)
    if name == "select":
        args[2] = moved(args[2])
    elif name == "narrow":
        args[2:4] = [moved(args[2]), moved(args[2] + args[3]) - moved(args[2])]
    else:
        start, end, step = (*args[2:], *[None, None, 1][len(args) - 2 :])
        if step != 1:
            _pick(node, args, dim, kept, range(source.shape[dim])[start:end:step])
            return
        args[:] = [
            args[0],
            dim,
            moved(0 if start is None else start),
            moved(source.shape[dim] if end is None else end),
        ]


def _pick(
    node: fx.Node, args: list[Any], dim: int, kept: torch.Tensor, positions: Sequence[int]
) -> None:
    """What is left of every other channel, or every third, follows no step any more."""
    place = {int(k): i for i, k in enumerate(kept)}
    owner = node.graph.owning_module
    assert owner is not None
    name = f"positions_of_{node.name}"
    while hasattr(owner, name):
        name += "_"
    index = torch.tensor([place[p] for p in positions if p in place])
    owner.register_buffer(name, index.to(kept.device), persistent=False)
    with node.graph.inserting_before(node):
        read = node.graph.get_attr(name)
    node.target = torch.ops.aten.index_select.default
    args[:] = [args[0], dim, read]


def _normalized(node: fx.Node, args: list[Any], source: Value, cutting: Cutting) -> None:
    kept, first = cutting.kept(source), len(source.shape) - len(args[1])
    args[1] = [len(kept[first + i]) if first + i in kept else s for i, s in enumerate(args[1])]


def _group_norm(node: fx.Node, args: list[Any], source: Value, cutting: Cutting) -> None:
    if args[1] == source.shape[1] and 1 in (kept := cutting.kept(source)):
        args[1] = len(kept[1])


def _depthwise(node: fx.Node, args: list[Any], source: Value, cutting: Cutting) -> None:
    dim = len(source.shape) - 1 - int(operator(node)[-2])
    if len(args) > 6 and args[6] == source.shape[dim] and dim in (kept := cutting.kept(source)):
        args[6] = len(kept[dim])


def _attention(node: fx.Node, args: list[Any], source: Value, cutting: Cutting) -> None:
    """The scale is that of the channels that there were: those that have gone were zeros in its
    sums.
    """
    if node.kwargs.get("scale") is None and len(source.shape) - 1 in cutting.kept(source):
        node.kwargs = {**node.kwargs, "scale": source.shape[-1] ** -0.5}


REWRITES: dict[str, Callable[[fx.Node, list[Any], Value, Cutting], None]] = {
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "expand"], _sizes),
    "unflatten": _unflatten,
    **dict.fromkeys(PARTS, _parts),
    **dict.fromkeys(["slice", "select", "narrow"], _positions),
    "layer_norm": _normalized,
    "rms_norm": _normalized,
    "group_norm": _group_norm,
    **dict.fromkeys(
        ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"],
        _depthwise,
    ),
    "scaled_dot_product_attention": _attention,
    "zeros": _zeros,
}


def _rewrite(node: fx.Node, cutting: Cutting) -> None:
    source = cutting.flow.values.get(
        node.args[0] if node.args and isinstance(node.args[0], fx.Node) else node
    )
    if (
        isinstance(source, (Value, Parameter))
        and (rewrite := REWRITES.get(operator(node))) is not None
    ):
        args: list[Any] = list(node.args)
        rewrite(node, args, cutting.flow.of(source), cutting)
        node.args = tuple(args)


# --- layers
# --------------------------------------------------------------------------------------------------


def _restore_layers(graph_module: fx.GraphModule, own: Mapping[str, nn.Module]) -> None:
    """Layers that are modules in the network are modules here too: functions cannot be told to
    train, nor be hooked.
    """
    uses = parameter_uses(graph_module.graph)
    dropouts = 0
    for node in list(graph_module.graph.nodes):
        name = operator(node)
        if name in ("dropout", "feature_dropout"):
            path, dropouts = f"dropout_{dropouts}", dropouts + 1
            graph_module.add_submodule(
                path, nn.Dropout(node.args[1]) if name == "dropout" else nn.Dropout2d(node.args[1])
            )
            _call(graph_module, node, path)
            continue
        place = 2 if name in ("layer_norm", "group_norm") else 1
        weight = (
            parameter_name(node.args[place]) if name in LAYERS and len(node.args) > place else None
        )
        path = weight.rpartition(".")[0] if weight else ""
        module = own.get(path)
        if (
            weight is None
            or module is None
            or uses[weight] != 1
            or type(module) not in LAYERS[name]
        ):
            continue
        here = graph_module.get_submodule(path)
        layer = clone(module)
        before = {k: tuple(p.shape) for k, p in layer._parameters.items() if p is not None}
        tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (layer._parameters, here._parameters),
            (layer._buffers, here._buffers),
        ]
        for table, other in tables:
            for key in table:
                if other.get(key) is not None:
                    table[key] = other[key]
        mend_sizes(layer, before)
        parent, _, leaf = path.rpartition(".")
        setattr(graph_module.get_submodule(parent), leaf, layer)
        _call(graph_module, node, path)


def _call(graph_module: fx.GraphModule, node: fx.Node, path: str) -> None:
    with graph_module.graph.inserting_before(node):
        called = graph_module.graph.call_module(path, (node.args[0],))
    called.meta = dict(node.meta)
    node.replace_all_uses_with(called)
    graph_module.graph.erase_node(node)
