"""The benchmark programs of runtimes on Android: how each is called and what it reports."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from mirabelle.runtimes.artifact import Artifact


class Timing(NamedTuple):
    """What a program says of its calls, in milliseconds; None for what it does not say. mean: of
    `runs` calls.
    """

    mean: float
    runs: int
    median: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def typical(self) -> float:
        """The median, or the mean where the program tells no median."""
        return self.mean if self.median is None else self.median


class Program(NamedTuple):
    """How a runtime's benchmark program is called and read.

    arguments(file, artifact, threads, runs): the words behind its name. read(text, runs): its
    timing, or None where there is none in the text.
    log: the tag of Android's log that it writes to instead of its output.
    """

    name: str
    arguments: Callable[[str, Artifact, int, int], list[str]]
    read: Callable[[str, int], Timing | None]
    log: str | None = None


def _number(pattern: str, text: str) -> float | None:
    found = re.findall(pattern, text)
    return float(found[-1]) if found else None


def _read_litert(text: str, runs: int) -> Timing | None:
    """`count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450 p5=.. median=..
    p95=..`, microseconds; the last one is not the warm-up's.
    """
    lines = [line for line in text.splitlines() if re.search(r"\bcount=\d+ ", line)]
    if not lines or "Inference timings in us" not in text:
        return None
    found = {k: float(v) for k, v in re.findall(r"(\w+)=([\d.e+]+)", lines[-1])}
    mean = found.get("avg", found["curr"])  # a count of equal values has `curr` alone
    each = {k: found[k] / 1e3 for k in ("median", "min", "max") if k in found}
    return Timing(
        mean / 1e3, int(found["count"]), each.get("median"), each.get("min"), each.get("max")
    )


def _read_onnxruntime(text: str, runs: int) -> Timing | None:
    mean = _number(r"Average inference time cost(?: total)?: ([\d.e+-]+) ms", text)
    if mean is None:
        return None
    seconds = [
        _number(rf"{name} Latency(?: is|:) ([\d.e+-]+) s", text) for name in ("P50", "Min", "Max")
    ]
    median, low, high = (None if s is None else 1e3 * s for s in seconds)
    return Timing(
        mean, int(_number(r"Total inference requests: (\d+)", text) or runs), median, low, high
    )


def _read_executorch(text: str, runs: int) -> Timing | None:
    total = re.findall(r"Model executed successfully (\d+) time\(s\) in ([\d.]+) ms", text)
    if not total:
        return None
    each = sorted(float(v) for v in re.findall(r"Iteration \d+ of \d+: ([\d.]+) ms", text))
    count, milliseconds = int(total[-1][0]), float(total[-1][1])
    return Timing(
        milliseconds / count, count, *((each[len(each) // 2], each[0], each[-1]) if each else ())
    )


def _read_ncnn(text: str, runs: int) -> Timing | None:
    found = re.findall(r"min = +([\d.]+) +max = +([\d.]+) +avg = +([\d.]+)", text)
    return (
        Timing(float(found[-1][2]), runs, None, float(found[-1][0]), float(found[-1][1]))
        if found
        else None
    )


def _read_mnn(text: str, runs: int) -> Timing | None:
    found = re.findall(r"max = +([\d.]+) ms +min = +([\d.]+) ms +avg = +([\d.]+) ms", text)
    return (
        Timing(float(found[-1][2]), runs, None, float(found[-1][1]), float(found[-1][0]))
        if found
        else None
    )


def _read_openvino(text: str, runs: int) -> Timing | None:
    values = {
        name: _number(rf"{name}: +([\d.]+) ms", text)
        for name in ("Median", "Average", "Min", "Max")
    }
    mean = values["Average"] if values["Average"] is not None else values["Median"]
    return (
        None
        if mean is None
        else Timing(
            mean,
            int(_number(r"Count: +(\d+)", text) or runs),
            values["Median"],
            values["Min"],
            values["Max"],
        )
    )


def _ncnn_shape(artifact: Artifact) -> str:
    """Width, height, channels, as ncnn names sizes."""
    return ",".join(
        "[" + ",".join(str(s) for s in reversed((spec.shape or ())[1:])) + "]"
        for spec in artifact.inputs
    )


# Warm-up: 10 calls, or as many as a program makes by itself.
PROGRAMS: dict[str, Program] = {
    "litert": Program(
        "benchmark_model",
        lambda f, a, t, n: [
            f"--graph={f}",
            f"--num_threads={t}",
            f"--num_runs={n}",
            "--warmup_runs=10",
            "--max_secs=600",
            "--use_xnnpack=true",
        ],
        _read_litert,
    ),
    "onnxruntime": Program(
        "onnxruntime_perf_test",
        lambda f, a, t, n: ["-I", "-m", "times", "-r", str(n), "-x", str(t), "-y", "1", "-s", f],
        _read_onnxruntime,
    ),
    "executorch": Program(
        "executor_runner",
        lambda f, a, t, n: [
            f"--model_path={f}",
            f"--cpu_threads={t}",
            f"--num_executions={n}",
            "--print_output=none",
        ],
        _read_executorch,
        log="ExecuTorch",
    ),
    "ncnn": Program(
        "benchncnn",
        lambda f, a, t, n: [
            str(n),
            str(t),
            "0",
            "-1",
            "0",
            f"param={f}",
            f"shape={_ncnn_shape(a)}",
        ],
        _read_ncnn,
    ),
    "mnn": Program(
        "benchmark.out", lambda f, a, t, n: [".", str(n), "10", "0", str(t), "1"], _read_mnn
    ),
    "openvino": Program(
        "benchmark_app",
        lambda f, a, t, n: [
            "-m",
            f,
            "-d",
            "CPU",
            "-api",
            "sync",
            "-niter",
            str(n),
            "-nthreads",
            str(t),
            "-hint",
            "none",
        ],
        _read_openvino,
    ),
}
PROGRAMS["onnxruntime-mobile"] = PROGRAMS["onnxruntime"]
