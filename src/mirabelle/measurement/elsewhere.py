"""`mb.measure` away from this machine: on the emulated Arm, or on a phone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mirabelle.base.errors import InputError
from mirabelle.measurement.latency import Latency, speedup
from mirabelle.measurement.machine import machine, versions
from mirabelle.measurement.result import Measurement
from mirabelle.measurement.size import counts, name_of

if TYPE_CHECKING:
    from mirabelle.base.data import Batch


def elsewhere(
    network: Any,
    other: Any,
    batch: Batch,
    device: str,
    core: str,
    binary: Any,
    serial: str | None,
    runs: int,
) -> Measurement:
    """`measure` on the emulated Arm or on a phone: size, MACs, and the cost there."""
    from mirabelle.runtimes import Artifact

    if not isinstance(network, Artifact) or not (other is None or isinstance(other, Artifact)):
        raise InputError(
            f"device={device!r} measures exported files; export the network first (mb.export)"
        )
    networks = [network] if other is None else [network, other]
    if batch.kwargs:
        arrays = [n.arrays(**batch.kwargs) for n in networks]
    else:
        arrays = [n.arrays(*batch.args) for n in networks]
    instructions: list[Any] = [None, None]
    latencies: list[Any] = [None, None]
    if device == "arm64":
        instructions, where = _emulated(networks, arrays, core)
    else:
        latencies, where = _on_phone(networks, binary, serial, runs)
    size, parameters, macs, uncounted = counts(network, batch)
    return Measurement(
        name=network.path.name,
        runtime=network.runtime,
        threads=1 if device == "arm64" else network.threads,
        bytes=size,
        parameters=parameters,
        macs=macs,
        uncounted=uncounted,
        inputs=[list(t.shape) for t in batch.tensors],
        latency=latencies[0],
        memory=None,
        score=None,
        baseline=None if other is None else name_of(other),
        baseline_latency=latencies[1],
        speedup=speedup(latencies[1], latencies[0]) if latencies[1] is not None else None,
        machine=machine(),
        versions=versions("mirabelle", "numpy") | {network.runtime: network.version},
        device=where,
        instructions=instructions[0],
        baseline_instructions=instructions[1],
    )


def _emulated(networks: list[Any], arrays: list[Any], core: str) -> tuple[list[Any], str]:
    """The instructions of the network and of its baseline, and where they were counted."""
    from mirabelle.devices import arm64

    found = [arm64.run(n, given, core)[0] for n, given in zip(networks, arrays, strict=True)]
    return [*found, None][:2], f"arm64: {core}, {found[0].emulator}"


def _on_phone(
    networks: list[Any], binary: Any, serial: str | None, runs: int
) -> tuple[list[Any], str]:
    """The latency of the network and of its baseline, and the phone that it was measured on."""
    from mirabelle.devices import adb

    if binary is None:
        raise InputError(
            "device='adb' needs binary=, the path of the runtime's benchmark program for "
            "Android (docs/phone.md)"
        )
    files: dict[str, Any] = dict(zip(("network", "baseline"), networks))
    timings, phone = adb.run(files, binary, serial=serial, threads=networks[0].threads, runs=runs)
    found = [Latency.of([t.typical for t in timings[k]]) for k in files]
    return [*found, None][:2], str(phone)
