"""What a network weighs: bytes, parameters and multiply-accumulates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirabelle.measurement.macs import count_macs, count_parameters
from mirabelle.measurement.onnx_macs import count_onnx_macs, count_onnx_parameters

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.base.data import Batch
    from mirabelle.runtimes.artifact import Artifact


def name_of(network: Artifact | nn.Module) -> str:
    from mirabelle.runtimes import Artifact

    return str(network) if isinstance(network, Artifact) else type(network).__name__


def counts(
    network: Artifact | nn.Module, batch: Batch
) -> tuple[int, int | None, int | None, list[str]]:
    """(bytes, parameters, MACs, uncounted operators)."""
    from mirabelle.runtimes import Artifact

    if not isinstance(network, Artifact):
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in [*network.parameters(), *network.buffers()]
        }
        return (
            sum(storages.values()),
            count_parameters(network),
            count_macs(network, batch.args or batch.kwargs),
            [],
        )
    if network.path.suffix != ".onnx":
        return network.bytes, None, None, []
    arrays = network.arrays(*batch.args, **batch.kwargs)
    sizes = {spec.name: a.shape for spec, a in zip(network.inputs, arrays)}
    macs, uncounted = count_onnx_macs(network.path, sizes)
    return network.bytes, count_onnx_parameters(network.path), macs, uncounted
