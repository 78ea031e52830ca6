"""`mb.export`: a network as a file that a runtime loads."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from typing_extensions import Doc

from mirabelle.base.checks import check_network, check_runs, clone
from mirabelle.base.data import Batch, example_inputs
from mirabelle.base.errors import InputError, MirabelleError
from mirabelle.base.files import as_path, check_file_name, check_folder
from mirabelle.base.options import Check, declared
from mirabelle.graph.capture import check_names, program
from mirabelle.graph.proof import tensors
from mirabelle.onnx_files.source import NAMES, source_of
from mirabelle.onnx_files.write import (
    OPSET,
    fold_pads,
    onnx_proto,
    output_names,
    save_onnx,
    write_onnx,
)
from mirabelle.onnx_files.write_back import written
from mirabelle.quantization.forms.onnx_file import spliced
from mirabelle.quantization.forms.pt2e import to_pt2e
from mirabelle.quantization.forms.qdq import with_integers
from mirabelle.quantization.simulation.description import quantization
from mirabelle.runtimes import RUNTIMES, load
from mirabelle.runtimes.artifact import Artifact
from mirabelle.runtimes.declarations import RuntimeOption, ThreadsOption
from mirabelle.runtimes.onnx_model import data_files, read_model
from mirabelle.sources.networks import find

# How far a file may be from the network that it was written from: of the largest value, and of
# SMALL where that is smaller, as the Sigmoid of ONNX Runtime is exact to 1e-7.
DIFFERENCE, SMALL = 1e-3, 1e-3


@declared()
def export(
    model: nn.Module | str | Path,
    folder: str | Path,
    *,
    runtime: RuntimeOption = "onnxruntime",
    inputs: Annotated[
        Any, Doc("example inputs; needed for networks that do not say their own")
    ] = None,
    threads: ThreadsOption = 1,
    name: Annotated[
        str | None,
        Check(check_file_name),
        Doc("of the file, without its suffix; None is model, or that of the ONNX file given"),
    ] = None,
) -> Artifact:
    """Writes `model` as `folder/name.*` for `runtime` and returns it, ready to call.

    - model: a network, float or quantized, or a name of one (`sources.networks`). An ONNX file is
      handed to the runtime as it is, where that reads such files. A network that was read from an
      ONNX file (`mb.prune("net.onnx", ...)`) is written as that file, with its own weights in it.
      Names, opset, open sizes, metadata and unknown operators stay; it is then compared on
      `inputs`.
    - folder: where files go. It is made where it is missing; files of the same name are replaced.
    - runtime: a name of `mirabelle.runtimes.RUNTIMES`, `onnxruntime` by default.
    - inputs: an example. The batch size stays free where network and runtime allow it. Files for
      LiteRT and ExecuTorch take that of the example.
    - threads: those with which the returned file is run, 1 by default.
    - name: of the file without its suffix, `model` by default.

    Files for a GPU are written without one, and come back unopened.
    Raises `InputError` for an unknown runtime, missing inputs or inputs that the network does not
    take, and where the runtime cannot run what it is given (integers, ONNX files).
    `MissingRuntimeError` names what to install.

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
        >>> file = mb.export(model, "out", inputs=torch.zeros(1, 4))
        >>> file.path.name, file(torch.zeros(5, 4)).shape
        ('model.onnx', (5, 3))
    """
    adapter = RUNTIMES[runtime]
    adapter.version()
    folder = as_path(folder)
    check_folder(folder)
    if isinstance(model, (str, Path)):
        found = find(model)
        if found.file is not None and adapter.save is not None:
            with _called(found.file, name) as file:
                return _opened(adapter.save(file, folder), runtime, threads)
        inputs = found.example if inputs is None else inputs
        model = found.module(inputs)
    name = name or "model"
    if inputs is None and source_of(model) is None:
        raise InputError("export needs inputs=, an example of what the network takes")
    if quantization(model) is not None and not adapter.int8:
        raise InputError(
            f"{runtime} does not run quantized networks; export the float network, or choose "
            "another runtime"
        )
    example = None if inputs is None else example_inputs(inputs)
    if adapter.convert is not None:
        _check_convertible(model, example, runtime)
        captured, sites = to_program(model, example)  # type: ignore[arg-type]
        return _opened(
            adapter.convert(captured, sites, folder / f"{name}{adapter.suffix}"), runtime, threads
        )
    assert adapter.save is not None
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / f"{name}.onnx"
        to_onnx(model, example, source)
        return _opened(adapter.save(source, folder), runtime, threads)


class OnnxFiles:
    """ONNX files of networks that go to several runtimes, each written once, below `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._written: dict[int, tuple[nn.Module, Path]] = {}

    def source(self, model: nn.Module | Path, runtime: str, inputs: Any) -> nn.Module | Path:
        """What `export` is given for this runtime: the ONNX file of the network where the runtime
        reads such files, else the network.
        """
        adapter = RUNTIMES[runtime]
        if isinstance(model, Path) or adapter.save is None:
            return model
        if quantization(model) is not None and not adapter.int8:
            return model  # which `export` refuses
        if id(model) not in self._written:
            path = self.folder / str(len(self._written)) / "model.onnx"
            path.parent.mkdir(parents=True)
            to_onnx(model, example_inputs(inputs), path)
            self._written[id(model)] = model, path
        return self._written[id(model)][1]


@contextmanager
def _called(file: Path, name: str | None) -> Iterator[Path]:
    """An ONNX file under another name, with the data beside it."""
    if name is None or name == file.stem:
        yield file
        return
    with tempfile.TemporaryDirectory() as temporary:
        held = Path(temporary) / f"{name}.onnx"
        for data in data_files(read_model(file, weights=False), file):
            copy = held.parent / data.relative_to(file.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data, copy)
        shutil.copyfile(file, held)
        yield held


def _check_convertible(model: nn.Module, example: Batch | None, runtime: str) -> None:
    """`InputError` for networks of ONNX files that a converter of torch's graphs cannot take."""
    if example is None:
        raise InputError(
            f"files for {runtime} are made for inputs of one size, which this network of an ONNX "
            "file does not say; give inputs=, an example of what it takes"
        )
    source = source_of(model)
    if source is not None and source.outside:
        names = [f"{name} ({why})" for name, why in list(source.outside.items())[:4]]
        raise InputError(
            f"files for {runtime} are made from torch's operators, and {len(source.outside)} nodes "
            f"of the ONNX file have none: {'; '.join(names)}; export it for a runtime that reads "
            "ONNX, such as onnxruntime or openvino"
        )


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

    A quantized network is in PT2E form. outputs: sites whose values become outputs behind the
    network's own.
    """
    model = check_network(model)
    check_runs(model, inputs, "the example input")
    if (quantized := _quantized(model)) is None:
        return flat_outputs(program(clone(model).eval().requires_grad_(False), inputs), inputs), []
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
    graph: fx.Graph = module.graph
    end = graph.output_node()
    given = [a for a in pytree.tree_leaves(end.args[0]) if isinstance(a, fx.Node)]
    end.args = (tuple(given),)
    codegen: Any = graph._codegen
    spec = pytree.tree_structure((0,) * len(given))
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    module.recompile()
    return program(module, inputs)


def _quantized(model: nn.Module) -> fx.GraphModule | None:
    """The network itself where it is quantized; None where it is not."""
    is_quantized = isinstance(model, fx.GraphModule) and quantization(model) is not None
    return model if is_quantized and isinstance(model, fx.GraphModule) else None


def to_onnx(model: nn.Module, inputs: Batch | None, path: str | Path) -> list[str]:
    """Writes an ONNX file: float, or in Q/DQ form for a quantized network; the same network gives
    the same bytes.

    The integers of every site are the value `<site>_quantized` of the file, and as floats
    `<site>_dequantized` (outputs keep their own names). Doc strings and metadata (source paths
    among them) are left out. Returns the names of the sites in order.
    """
    model = check_names(check_network(model))
    given = None if inputs is None else check_runs(model, inputs, "the example input")
    quantized = _quantized(model)
    if quantized is not None and source_of(quantized) is not None:
        proto, sites = spliced(quantized)
        fold_pads(proto)
        save_onnx(proto, path)
        return sites
    if isinstance(model, fx.GraphModule) and source_of(model) is not None:
        save_onnx(written(model), path)
        if inputs is not None:
            _check_same(model, inputs, Path(path))
        return []
    assert inputs is not None
    network, sites = (model, []) if quantized is None else with_integers(quantized)
    names = getattr(model, "meta", {}).get(NAMES)
    if names is not None:
        warnings.warn(
            "this network has other layers than its ONNX file, or other sizes in places that are "
            f"computed there, so that the file is written anew: of opset {OPSET}, with the names "
            "of its inputs and outputs and its metadata, but other nodes",
            stacklevel=3,
        )
    write_onnx(onnx_proto(network, inputs), path, output_names(given, inputs.names), names)
    return sites


def _check_same(model: nn.Module, inputs: Batch, path: Path) -> None:
    """`MirabelleError` where an ONNX file that was given other weights is not the network."""
    expected = tensors(check_runs(model, inputs, "the example input"))
    found = load(path, "onnxruntime", torch.get_num_threads()).predict(inputs)
    for i, (value, other) in enumerate(
        zip(expected, found if isinstance(found, tuple) else (found,), strict=True)
    ):
        scale = max(float(value.abs().max()) if value.numel() else 0.0, SMALL)
        away = torch.as_tensor(other) - value.cpu()
        if away.numel() and float(away.abs().max()) > DIFFERENCE * scale:
            raise MirabelleError(
                f"output {i} of the ONNX file that was written differs from the network's by "
                f"{float(away.abs().max()):.3g}, and its values reach {scale:.3g}; report this file"
            )
