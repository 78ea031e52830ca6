"""`mb.export`: a network as a file that a runtime loads."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import fx, nn
from torch.utils import _pytree as pytree
from typing_extensions import Doc

from mirabelle.base.checks import check_network, check_runs, clone
from mirabelle.base.data import Batch, example_inputs
from mirabelle.base.errors import InputError
from mirabelle.base.files import check_file_name
from mirabelle.base.options import Check, OneOf, declared
from mirabelle.graph.capture import program
from mirabelle.onnx_files.read import source_of
from mirabelle.onnx_files.write import fold_pads, onnx_proto, save_onnx, write_onnx
from mirabelle.quantization.forms.onnx_file import spliced
from mirabelle.quantization.forms.pt2e import to_pt2e
from mirabelle.quantization.forms.qdq import with_integers
from mirabelle.quantization.simulation.description import quantization
from mirabelle.runtimes import RUNTIMES, load
from mirabelle.runtimes.artifact import Artifact, check_threads


@declared()
def export(
    model: nn.Module | str | Path,
    folder: str | Path,
    *,
    runtime: Annotated[str, OneOf(RUNTIMES), Doc("what the file is for")] = "onnxruntime",
    inputs: Annotated[Any, Doc("example inputs; needed for networks")] = None,
    threads: Annotated[int, Ge(1), Check(check_threads), Doc("with which the file is run")] = 1,
    name: Annotated[str, Check(check_file_name), Doc("of the file, without its suffix")] = "model",
) -> Artifact:
    """Writes `model` as `folder/name.*` for `runtime` and returns it, ready to call.

    model: a network, float or quantized, or the path of an ONNX file.
    inputs: the batch size stays free where network and runtime allow it; files for LiteRT and
    ExecuTorch take that of the example.
    Raises `InputError` for an unknown runtime, missing inputs or inputs that the network does not
    take, and where the runtime cannot run what it is given (integers, ONNX files);
    `MissingRuntimeError` names what to install. Files for a GPU are written without one, and come
    back unopened.
    """
    adapter = RUNTIMES[runtime]
    adapter.version()
    folder = Path(folder)
    if isinstance(model, (str, Path)):
        if adapter.save is None:
            raise InputError(
                f"files for {runtime} are made from networks, not from ONNX files such as "
                f"{model}; give the network and inputs="
            )
        return _opened(adapter.save(Path(model), folder), runtime, threads)
    if inputs is None:
        raise InputError("export needs inputs=, an example of what the network takes")
    if quantization(model) is not None and not adapter.int8:
        raise InputError(
            f"{runtime} does not run quantised networks; export the float network, or choose "
            "another runtime"
        )
    if adapter.convert is not None:
        captured, sites = to_program(model, example_inputs(inputs))
        return _opened(
            adapter.convert(captured, sites, folder / f"{name}{adapter.suffix}"), runtime, threads
        )
    assert adapter.save is not None
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / f"{name}.onnx"
        to_onnx(model, example_inputs(inputs), source)
        return _opened(adapter.save(source, folder), runtime, threads)


def _opened(path: Path, runtime: str, threads: int) -> Artifact:
    return (
        load(path, runtime, threads)
        if RUNTIMES[runtime].absent() is None
        else Artifact(path, runtime, threads)
    )


def to_program(
    model: nn.Module, inputs: Batch, outputs: Sequence[str] = ()
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """What `Runtime.convert` takes: the network as an exported program for inputs of exactly these
    shapes, and the names of its sites.

    A quantised network is in PT2E form. outputs: sites whose values become outputs behind the
    network's own.
    """
    model = check_network(model)
    check_runs(model, inputs, "the example input")
    if (quantized := _quantized(model)) is None:
        return flat_outputs(program(clone(model).eval(), inputs), inputs), []
    network, sites = to_pt2e(quantized, outputs)
    return flat_outputs(program(network, inputs), inputs), sites


def flat_outputs(captured: torch.export.ExportedProgram, inputs: Batch) -> Any:
    """The program with its outputs as a plain tuple of tensors, in order: converters know no dicts
    and no dataclasses. One that gives a tensor, or such a tuple, is returned as it is.
    """
    form = captured.call_spec.out_spec
    assert form is not None
    plain = pytree.tree_structure((0,) * form.num_leaves)
    if (form.num_leaves == 1 and form.is_leaf()) or form == plain:
        return captured
    module = captured.module(check_guards=False)
    graph: fx.Graph = module.graph  # type: ignore[assignment]
    end = graph.output_node()
    given = [a for a in pytree.tree_leaves(end.args[0]) if isinstance(a, fx.Node)]
    end.args = (tuple(given),)
    codegen: Any = graph._codegen
    spec = pytree.tree_structure((0,) * len(given))
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    module.recompile()  # type: ignore[operator]
    return program(module, inputs)


def _quantized(model: nn.Module) -> fx.GraphModule | None:
    """The network itself where it is quantised; None where it is not."""
    is_quantized = isinstance(model, fx.GraphModule) and quantization(model) is not None
    return model if is_quantized and isinstance(model, fx.GraphModule) else None


def to_onnx(model: nn.Module, inputs: Batch, path: str | Path) -> list[str]:
    """Writes an ONNX file: float, or in Q/DQ form for a quantised network; the same network gives
    the same bytes.

    The integers of every site are the value `<site>_quantized` of the file, and as floats
    `<site>_dequantized` (outputs keep their own names). Doc strings and metadata (source paths
    among them) are left out. Returns the names of the sites in order.
    """
    model = check_network(model)
    check_runs(model, inputs, "the example input")
    quantized = _quantized(model)
    if quantized is not None and source_of(quantized) is not None:
        proto, sites = spliced(quantized)
        fold_pads(proto)
        save_onnx(proto, path)
        return sites
    network, sites = (model, []) if quantized is None else with_integers(quantized)
    write_onnx(onnx_proto(network, inputs), path)
    return sites
