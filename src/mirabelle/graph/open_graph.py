"""A network that is captured once in a call, for all that runs its graph on batches of data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx, nn

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.graph.capture import capture, fixed_length, make_concrete


@dataclass(frozen=True)
class OpenGraph:
    """A graph for any batch. fixed: the only number of samples that it takes; None: any."""

    graph_module: fx.GraphModule
    fixed: int | None

    def pieces(self, batches: Iterable[Batch]) -> list[Batch]:
        """What it takes of these. `InputError` where none of them is large enough."""
        fixed = self.fixed
        if fixed is None:
            return list(batches)
        whole = (b._replace(target=None).split(fixed) for b in batches)
        found = [piece for pieces in whole for piece in pieces if piece.size == fixed]
        if not found:
            raise InputError(
                f"the network takes batches of {fixed} alone, and data yields none so large"
            )
        return found


def open_graph(model: nn.Module, inputs: Batch) -> OpenGraph:
    """The captured network; its nodes have the sizes of the example. Raises as `capture` does."""
    graph_module = capture(model, inputs, dynamic_batch=True)
    given = next(n.meta["val"] for n in graph_module.graph.nodes if n.op == "placeholder")
    fixed = fixed_length(given)
    make_concrete(graph_module)
    return OpenGraph(graph_module, fixed)


class CapturedOnce:
    """A network's graph, captured when it is first asked for; until then the network may change."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._found: OpenGraph | None = None

    def __call__(self, inputs: Batch) -> OpenGraph:
        if self._found is None:
            self._found = open_graph(self.model, inputs)
        return self._found
