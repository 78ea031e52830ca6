"""What all commands share: their common options, and how they say what they found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import Parameter

from mirabelle.base.errors import MEANT, InputError, did_you_mean
from mirabelle.base.options import options_of

if TYPE_CHECKING:
    from mirabelle.sources.data import Data
    from mirabelle.sources.networks import Found

LARGEST_EXAMPLE = 2**28  # elements of what --input asks for
TYPES = (
    *("float32", "float16", "float64", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
MODEL = Parameter(
    help="the trained network: module:callable, an .onnx or .pt2 file, timm:NAME, "
    "torchvision:NAME, hf:ORG/NAME"
)
DATA = Parameter(
    help="a folder of pictures (in folders of classes, or without labels), a .csv of paths and "
    "labels, .npz, .npy, a folder of Hugging Face's datasets, or module:callable"
)
LOAD = Parameter(help="a folder that mb.save or a run wrote: the pruned form of the network")
WEIGHTS = Parameter(
    help="a file of the network's weights, such as .safetensors; none for an untrained network; "
    "without it a named network's hub is asked"
)


# Kernels that take one kind of grid alone.
TARGETS = {"ncnn": "symmetric", "tensorrt": "tensorrt", "onnxruntime-tensorrt": "tensorrt"}


def target_for(runtimes: Sequence[str]) -> str | None:
    """The target that the first of these runtimes insists on; None where none does."""
    return next((TARGETS[r] for r in runtimes if r in TARGETS), None)


def _runtime(type_: Any, tokens: Any) -> Any:
    from mirabelle.runtimes import RUNTIMES

    names = [MEANT.get(value.lower(), value) for value in (str(t.value) for t in tokens)]
    for name in names:
        if name not in RUNTIMES:
            near = did_you_mean(name, RUNTIMES)
            raise ValueError(f"there is no runtime {name!r}{near}")
    return names if type_ is not str else names[0]


RUNTIME = Parameter(converter=_runtime, n_tokens=1)
RUNTIMES = Parameter(
    converter=_runtime,
    n_tokens=-1,
    consume_multiple=True,
    negative=(),
    metavar="NAME...",
    help="what files are written for, one or several; ort and tflite are understood",
)


def _flag(*names: str, text: str) -> Parameter:
    return Parameter(name=names, negative=(), show_default=False, help=text)


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """The options of every command."""

    quiet: Annotated[bool, _flag("--quiet", "-q", text="no progress and no warnings")] = False
    verbose: Annotated[
        bool, _flag("--verbose", "-v", "--debug", text="show the traceback of an error")
    ] = False
    json: Annotated[bool, _flag("--json", text="print the result as JSON")] = False


FLAG = Parameter(negative=(), show_default=False)


def described(verb: Callable, name: str, text: str = "") -> Parameter:
    """The help of an option, from its declaration; text: words to put in its place."""
    option = options_of(verb)[name]
    names = ", ".join(n for table in option.names for n in table.names)
    return Parameter(help=(text or option.doc) + (f" [choices: {names}]" if names else ""))


def default(verb: Callable, name: str) -> Any:
    """The declared default of an option."""
    return options_of(verb)[name].default


class InputSpec(NamedTuple):
    """What `--input` says of one input: name, dtype and values where they are said. values: one for
    all elements, or one for each.
    """

    name: str | None
    shape: tuple[int, ...]
    dtype: str
    values: tuple[float, ...] = ()


def input_of(text: str) -> InputSpec:
    """`1,3,224,224` or `1x3x224x224`, with a name before it and a type after it:
    `ids:1,2048:int32`. With values after an =, the shape may be left out: `sr:int64=16000` is a
    scalar, `scales:float32=1,2` has two numbers.
    """
    said, given, numbers = text.partition("=")
    parts = said.split(":")
    name = parts.pop(0) if len(parts) > 1 and not _is_shape(parts[0]) else None
    if given and name is None and not _is_shape(parts[0]) and parts[0] not in TYPES:
        name = parts.pop(0)
    dtype = parts.pop() if len(parts) > 1 or (given and parts and not _is_shape(parts[0])) else ""
    dtype = dtype or "float32"
    if (len(parts) != 1 and not (given and not parts)) or name == "" or "" in parts:
        raise ValueError(
            f"{text[:80]!r} is no input; write it like name:1,2048:int32, or sr:int64=16000"
        )
    if dtype not in TYPES:
        raise ValueError(f"{dtype[:20]!r} is no type of numbers{did_you_mean(dtype, TYPES)}")
    values = _values(numbers, dtype) if given else ()
    own = () if len(values) == 1 else (len(values),)
    return InputSpec(name, shape_of(parts[0]) if parts else own, dtype, values)


def _values(text: str, dtype: str) -> tuple[float, ...]:
    """`16000`, or several with commas between them; integers for types of integers."""
    import torch

    kind = float if getattr(torch, dtype).is_floating_point else int
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text[:50]!r} is no number of {dtype}, nor several") from None


def _is_shape(text: str) -> bool:
    return text == "scalar" or text.replace("x", ",").replace(",", "").isdigit()


def shape_of(text: str) -> tuple[int, ...]:
    """`1,3,224,224` or `1x3x224x224`."""
    if text == "scalar":
        return ()
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"{text[:50]!r} is no shape; write it like 1,3,224,224")
    if math.prod(shape) > LARGEST_EXAMPLE:
        raise ValueError(f"{text[:50]!r} has more than {LARGEST_EXAMPLE} elements")
    return shape


def _inputs(type_: Any, tokens: Any) -> tuple[InputSpec, ...]:
    return tuple(input_of(t.value) for t in tokens)


INPUT = Parameter(
    converter=_inputs,
    n_tokens=-1,
    consume_multiple=True,
    negative=(),
    metavar="SHAPE...",
    help="shape of an example input, such as 1,3,224,224, with its name and type where there are "
    "several: ids:1,128:int64 mask:1,128:int64; with values where random ones make no sense: "
    "sr:int64=16000",
)


def example(specs: tuple[InputSpec, ...] | None) -> Any:
    """Normal numbers of these shapes, always the same; zeros where they count something; the values
    that are said. By name where names are said.
    """
    import torch

    if not specs:
        return None
    generator = torch.Generator().manual_seed(0)
    made = []
    for spec in specs:
        kind = getattr(torch, spec.dtype)
        if spec.values:
            made.append(_filled(spec, kind))
            continue
        values = torch.randn(spec.shape, generator=generator) if kind.is_floating_point else None
        made.append(torch.zeros(spec.shape, dtype=kind) if values is None else values.to(kind))
    if all(s.name for s in specs):
        return {s.name: v for s, v in zip(specs, made)}
    return made[0] if len(made) == 1 else tuple(made)


def _filled(spec: InputSpec, kind: Any) -> Any:
    """The values that `--input` says, in its shape."""
    import torch

    count, wanted = len(spec.values), math.prod(spec.shape)
    if count not in (1, wanted):
        raise InputError(
            f"--input gives {count} values for {wanted} elements of {spec.name or 'an input'}; "
            "give one, or one for each"
        )
    try:
        values = torch.tensor(spec.values, dtype=kind)
    except (RuntimeError, OverflowError):
        raise InputError(f"--input gives {spec.values[0]}, too large for {spec.dtype}") from None
    return values.reshape(spec.shape) if count == wanted else values.expand(spec.shape).clone()


def example_for(network: Any, specs: tuple[InputSpec, ...] | None) -> Any:
    """The example as `network` takes it: a file's inputs have names, and a network with one input
    is called with it.
    """
    found = example(specs)
    if not isinstance(found, dict):
        return found
    names = _names(network)
    if names is None or set(found) == set(names):
        return found
    if len(found) == 1 and len(names) == 1:
        raise InputError(
            f"--input names {next(iter(found))!r}, and the input is called {names[0]!r}"
        )
    raise InputError(f"--input names {', '.join(found)}; the inputs are {', '.join(names)}")


def _names(network: Any) -> list[str] | None:
    """Of the inputs of a file; None for a network, which says itself what it lacks."""
    from mirabelle.runtimes import Artifact

    return [s.name for s in network.inputs] if isinstance(network, Artifact) else None


def as_file(network: Any, inputs: Any) -> Any:
    """Inputs as a file takes them, or a network."""
    from mirabelle.base.data import Batch
    from mirabelle.runtimes import Artifact

    if inputs is None or not isinstance(network, Artifact):
        return inputs
    batch = inputs if isinstance(inputs, Batch) else None
    tensors = batch.tensors if batch is not None else _listed(inputs)
    if isinstance(inputs, Mapping):
        return {n: t.numpy() for n, t in inputs.items()}
    arrays = tuple(t.numpy() for t in tensors)
    return arrays[0] if len(arrays) == 1 else arrays


def _listed(inputs: Any) -> list[Any]:
    if isinstance(inputs, Mapping):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]


def weighted(model: str, weights: str | None) -> str:
    """A network's name with the file of its weights after it."""
    return model if weights is None else f"{model}@{weights}"


def network_or_file(reference: str, threads: int = 1) -> tuple[Any, Found]:
    """A file of a runtime, opened, or a network; and what is known of it."""
    from mirabelle.runtimes import load, runtime_of
    from mirabelle.sources.networks import Found, find
    from mirabelle.sources.preprocessing import from_shape

    runtime = runtime_of(reference)
    if runtime is None:
        found = find(reference)
        return found.module(), found
    file = load(reference, runtime, threads)
    if reference.endswith(".onnx"):
        return file, find(reference)
    how = None
    if len(file.inputs) == 1:
        spec = file.inputs[0]
        how = from_shape(spec.shape, spec.dtype, f"{Path(reference).name}, its input")
    return file, Found(reference, how=how)


def read_data(name: str, found: Found, options: Mapping[str, Any]) -> Data:
    """The data that a command names, brought to a network; what was taken is said."""
    from mirabelle.base.progress import console
    from mirabelle.sources.data import read

    data = read(name, known=found.how, classes=found.classes or None, **options)
    if data.table is not None:
        console.print(str(data), style="dim")
    if data.how is not None:
        console.print(f"pictures: {data.how}", style="dim")
    return data


def say(found: Any, as_json: bool, text: str | None = None) -> int:
    """Prints a result: as JSON, or as text."""
    plain = found if isinstance(found, dict) else found.to_dict() if as_json else {}
    print(json.dumps(plain, indent=1) if as_json else found if text is None else text)
    return 0
