"""What a network costs and what it is worth: size, MACs, latency, peak memory, accuracy with its
interval.

Importing this imports neither torch nor a runtime, so that `probe` can measure a process that has
only the runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge
from typing_extensions import Doc

from mirabelle.base.errors import InputError
from mirabelle.base.options import Expected, OneOf, declared
from mirabelle.measurement.accumulator import Accumulator
from mirabelle.measurement.elsewhere import elsewhere
from mirabelle.measurement.latency import alternate, speedup
from mirabelle.measurement.layers import LayerRow, advice, compare_layers
from mirabelle.measurement.machine import machine, versions
from mirabelle.measurement.memory import PeakMemory, peak_memory
from mirabelle.measurement.result import Measurement
from mirabelle.measurement.size import counts, name_of

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.base.data import Batch
    from mirabelle.measurement.accuracy import Score
    from mirabelle.measurement.breakeven import BreakEven
    from mirabelle.runtimes.artifact import Artifact
    from mirabelle.runtimes.sparse import Choice

DEVICES = ("here", "arm64", "adb")


def _network(model: Any) -> tuple[Artifact | nn.Module, Batch | None]:
    """The artifact of a path, or what was given if it can be measured; and an example, where a name
    knows its own.
    """
    from mirabelle.runtimes import Artifact, load, runtime_of

    if isinstance(model, (str, Path)):
        if (runtime := runtime_of(model)) is not None:
            return load(model, runtime), None
        return _named(str(model))
    if isinstance(model, Artifact):
        return model, None
    from torch import nn

    from mirabelle.base.checks import check_network, check_python

    if isinstance(model, nn.Module):
        return check_python(check_network(model)), None
    raise InputError(
        f"cannot measure a {type(model).__name__}; expected an artifact, a torch.nn.Module or "
        "the path of an exported file"
    )


def _named(name: str) -> tuple[nn.Module, Batch | None]:
    """The network of a name, and its example; `InputError` for a file that is neither one nor a
    runtime's.
    """
    from mirabelle.runtimes import RUNTIMES
    from mirabelle.sources.networks import find

    if ":" not in name and Path(name).suffix != ".pt2" and not Path(name).exists():
        known = dict.fromkeys([*(r.suffix for r in RUNTIMES.values()), ".pt2"])
        raise InputError(
            f"{name} ends in {Path(name).suffix!r}; expected one of {', '.join(known)}, "
            "module:callable or a name such as timm:resnet18"
        )
    found = find(name)
    return found.module(), found.example


def _example(
    network: Artifact | nn.Module, data: Iterable | None, inputs: Any
) -> tuple[Batch, Iterable | None, bool]:
    """The batch to time, the data (whole, even where they can be read only once) and whether they
    are labeled.
    """
    from mirabelle.base.data import batches, example_inputs
    from mirabelle.runtimes import Artifact

    if data is None:
        if (
            inputs is None
            and isinstance(network, Artifact)
            and all(spec.shape is not None for spec in network.inputs)
        ):
            inputs = tuple(_made_up(network, spec) for spec in network.inputs)
        if inputs is None:
            raise InputError("nothing to run the network on: give data= or inputs=")
        return example_inputs(inputs), None, False
    first = next(batches(data))
    if isinstance(data, Iterator):
        data = chain([first], data)
    size = (network.inputs[0].shape or (None,))[0] if isinstance(network, Artifact) else None
    example = first.head(size or 1) if inputs is None else example_inputs(inputs)
    return example._replace(target=None), data, first.target is not None


def _made_up(network: Artifact, spec: Any) -> np.ndarray:
    """One sample of the shape that a file says: normal numbers, or zeros where they count
    something. `InputError` where it leaves more open than the batch: times of other sizes would say
    nothing.
    """
    if None in spec.shape[1:]:
        from mirabelle.sources.networks import open_sizes

        raise InputError(open_sizes(network.path.name, network.inputs))
    shape = [s or 1 for s in spec.shape]
    if spec.dtype.startswith("float"):
        return np.random.default_rng(0).normal(size=shape).astype(spec.dtype)
    return np.zeros(shape, spec.dtype)


def _timed(network: Artifact | nn.Module, batch: Batch, stack: ExitStack) -> Callable[[], Any]:
    """A call to time. Of a module it is a copy around the same parameters: in eval mode, on its own
    device, without autograd and on one CPU thread until `stack` closes.
    """
    from mirabelle.runtimes import Artifact

    if isinstance(network, Artifact):
        arrays, run = network.arrays(*batch.args, **batch.kwargs), network.session.run
        network(
            *arrays
        )  # says in its own words what is wrong; the calls that are timed leave the checks out
        return lambda: run(arrays)
    import torch

    from mirabelle.base.checks import check_runs, shell
    from mirabelle.base.data import device_of

    device = device_of(network)
    batch = batch.to(device)
    check_runs(network, batch, "the example input")
    # Copies: a forward may count its calls, or write into its inputs.
    own, batch = shell(network).eval(), batch.map(torch.Tensor.clone)
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(1)
    stack.enter_context(torch.inference_mode())
    if device.type != "cuda":
        return lambda: own(*batch.args, **batch.kwargs)

    def call() -> None:
        own(*batch.args, **batch.kwargs)
        torch.cuda.synchronize(device)  # the call alone only queues the work

    return call


def _layers(
    network: Artifact | nn.Module, other: Artifact | nn.Module | None, batch: Batch
) -> list[LayerRow] | None:
    """Both networks layer by layer, where both are files of one runtime and it has a profiler."""
    from mirabelle.runtimes import Artifact

    if (
        not isinstance(network, Artifact)
        or not isinstance(other, Artifact)
        or network.runtime != other.runtime
    ):
        return None
    try:
        return compare_layers(other, network, *network.arrays(*batch.args, **batch.kwargs))
    except InputError:  # this runtime's package does not tell
        return None


def _metrics() -> Iterable[str]:
    from mirabelle.measurement.accuracy import METRICS

    return METRICS


@declared()
def measure(
    model: Artifact | nn.Module | str | Path,
    data: Iterable | None = None,
    metric: Annotated[
        str | Callable | Accumulator,
        OneOf(_metrics, plugin=True),
        Doc("what is measured on the samples of data"),
    ] = "top1",
    *,
    inputs: Annotated[
        Any, Doc("what latency and memory are measured with; else the first sample of data")
    ] = None,
    runs: Annotated[int, Ge(1), Doc("rounds of timing")] = 100,
    baseline: Annotated[Any, Doc("another network or file, timed in turn with this one")] = None,
    break_even: Annotated[
        bool | Sequence[float],
        Expected("True, or shares of zeros such as [0.5, 0.9]"),
        Doc("from what share of zeros on sparse is faster than dense, by kind of layer"),
    ] = False,
    device: Annotated[
        str, OneOf(DEVICES), Doc("here, arm64 (instructions, emulated) or adb (a phone)")
    ] = "here",
    core: Annotated[str, Doc("the core that arm64 emulates")] = "cortex-a76",
    binary: Annotated[
        str | Path | None, Doc("for adb: the runtime's own benchmark program for the phone")
    ] = None,
    serial: Annotated[str | None, Doc("for adb: which phone")] = None,
) -> Measurement:
    """Everything that Mirabelle measures of one network: size, time, memory and score.

    - model: an artifact, a network (run by torch, on one thread) or the path of an exported file.
    - data: batches, with targets for a score that needs them. The score is that of all of
      them. Their first sample is what latency and memory are measured with, unless `inputs` is
      given. A file whose shapes are known needs neither.
    - metric: a name of `METRICS`, `"package.module:function"`, a function (output, target) -> (N,)
      scores, or an accumulator with `update` and `compute`. `top1` by default.
    - inputs: an example; its batch size is timed as given.
    - runs: rounds of timing, 100 by default.
    - baseline: what `model` may be; it is timed in turn with it, so that the ratio has an
      interval.
    - break_even: True, or shares of zeros to measure (`measurement.breakeven`). Needs MNN, and a
      network or an .onnx file; takes minutes.
    - device: `here`; `arm64` counts the instructions of one inference on an emulated `core`, after
      `mirabelle setup-arm64`; `adb` times on a phone. The last two take artifacts and give no
      score and no memory.
    - core: what `arm64` emulates, a Cortex-A76 by default.
    - binary: the runtime's own benchmark program, for `adb`.
    - serial: which phone, for `adb`.

    Returns a `Measurement`: milliseconds, bytes, multiply-accumulates, score with its interval.
    Raises `InputError` where there is nothing to run on, or the network does not take it. Neither
    network is changed.

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> measured = mb.measure(model, inputs=torch.zeros(1, 4), runs=10)
        >>> measured.macs, measured.parameters, measured.latency.p50_ms > 0
        (112, 131, True)
    """
    from mirabelle.runtimes import Artifact

    network, known = _network(model)
    if break_even is not False:
        _check_break_even(network, break_even)
    other = None if baseline is None else _network(baseline)[0]
    if data is None and inputs is None:
        inputs = known
    batch, data, labeled = _example(network, data, inputs)
    is_file = isinstance(network, Artifact)
    if device != "here":
        return elsewhere(network, other, batch, device, core, binary, serial, runs)
    with ExitStack() as stack:
        calls = {"network": _timed(network, batch, stack)}
        if other is not None:
            calls["baseline"] = _timed(other, batch, stack)
        latency = alternate(calls, runs)
    size, parameters, macs, uncounted = counts(network, batch)
    layers = _layers(network, other, batch)
    faster = None if other is None else speedup(latency["baseline"], latency["network"])
    return Measurement(
        name=network.path.name if is_file else name_of(network),
        runtime=network.runtime if is_file else "torch",
        threads=network.threads if is_file else 1,
        bytes=size,
        parameters=parameters,
        macs=macs,
        uncounted=uncounted,
        inputs=[list(t.shape) for t in batch.tensors],
        latency=latency["network"],
        memory=_memory(network, batch),
        score=_score(network, data, metric) if data is not None and labeled else None,
        baseline=None if other is None else name_of(other),
        baseline_latency=latency.get("baseline"),
        speedup=faster,
        machine=machine(),
        versions=_versions(network),
        layers=layers,
        advice=[]
        if layers is None or not any(r.int8 for r in layers)
        else advice(layers, faster.value if faster else None),
        forms=_forms(network),
        break_even=None if break_even is False else _break_even(network, batch, break_even),
    )


def _score(
    network: Artifact | nn.Module, data: Iterable, metric: str | Callable | Accumulator
) -> Score:
    from mirabelle.measurement.accuracy import evaluate, predictor

    return evaluate(predictor(network), data, metric, "measuring")


def _memory(network: Artifact | nn.Module, batch: Batch) -> PeakMemory | None:
    from mirabelle.runtimes import Artifact

    if not isinstance(network, Artifact) or not _peaks_readable():
        return None
    return peak_memory(network, *network.arrays(*batch.args, **batch.kwargs))


def _versions(network: Artifact | nn.Module) -> dict[str, str | None]:
    from mirabelle.runtimes import Artifact

    if not isinstance(network, Artifact):
        return versions("mirabelle", "torch", "numpy")
    also = ["onnx"] if network.runtime == "onnxruntime" else []
    found = versions("mirabelle", network.runtime, "numpy", *also)
    # packages are not always called like their runtime
    return found | {network.runtime: network.version}


def _forms(network: Artifact | nn.Module) -> Choice | None:
    from mirabelle.runtimes import Artifact
    from mirabelle.runtimes.sparse import choice

    return (
        choice(network.path)
        if isinstance(network, Artifact) and network.runtime == "sparse"
        else None
    )


def _check_break_even(network: Artifact | nn.Module, asked: bool | Sequence[float]) -> None:
    from mirabelle.measurement.breakeven import check_sparsities
    from mirabelle.runtimes import RUNTIMES, Artifact

    RUNTIMES["mnn"].version()
    if asked is not True:
        check_sparsities(asked)
    if isinstance(network, Artifact) and network.path.suffix != ".onnx":
        raise InputError(
            f"break_even changes the weights, and {network.path.name} is no .onnx file; give "
            "the network, or its .onnx file"
        )


def _break_even(
    network: Artifact | nn.Module, batch: Batch, asked: bool | Sequence[float]
) -> BreakEven:
    from mirabelle.measurement import breakeven
    from mirabelle.onnx_files.write import onnx_proto, write_onnx
    from mirabelle.runtimes import Artifact

    points = breakeven.SPARSITIES if isinstance(asked, bool) else asked
    if isinstance(network, Artifact):
        return breakeven.break_even(
            network.path, network.arrays(*batch.args, **batch.kwargs), points, network.threads
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_onnx(onnx_proto(network, batch.map(lambda t: t.cpu())), path)
        return breakeven.break_even(path, [t.detach().cpu().numpy() for t in batch.tensors], points)


def _peaks_readable() -> bool:
    """Whether the system tells a process its peak memory; Windows does not, through Python."""
    try:
        import resource  # noqa: F401
    except ImportError:
        return False
    return True
