"""Pruning one module of a network that cannot be captured as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import check_network, check_runs, clone
from mirabelle.base.data import Batch, batches, example_inputs
from mirabelle.base.errors import InputError, did_you_mean


class PartInputs:
    """What a module is given when its network runs on the batches of `data`: an iterable of inputs,
    as often as `data` is one.
    """

    def __init__(self, model: nn.Module, part: str, data: Iterable):
        self._model, self._part, self._data = model, part, data

    def __iter__(self) -> Iterator[Any]:
        for batch in batches(self._data, what="data"):
            yield given(self._model, self._part, batch)


class _SeenError(Exception):
    """Stops a forward pass at the part."""


def given(model: nn.Module, part: str, batch: Batch) -> Any:
    """The inputs that the module `part` gets: a tensor, or a dict of its named ones. `InputError`
    where they are something else, or it does not run.
    """
    seen: list[tuple[tuple, dict]] = []

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append((args, kwargs))
        raise _SeenError

    handle = model.get_submodule(part).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            batch.run(model)
    except _SeenError:
        pass
    finally:
        handle.remove()
    if not seen:
        raise InputError(f"part={part!r} does not run when the network runs on the example input")
    args, kwargs = seen[0]
    if (
        not all(isinstance(t, torch.Tensor) for t in [*args, *kwargs.values()])
        or len(args) > 1
        or (args and kwargs)
    ):
        raise InputError(
            f"part={part!r} is given {[type(t).__name__ for t in (*args, *kwargs.values())]}; a "
            "part takes one tensor, or named ones"
        )
    return args[0] if args else kwargs


def prune_part(
    model: nn.Module,
    x: Any,
    part: str,
    data: Iterable | None,
    needs_loss: Iterable[str],
    cut: Callable[[nn.Module, Any, Any], nn.Module],
    criterion: Any,
) -> nn.Module:
    """A copy of `model` in which the module at `part` is `cut(module, its inputs, its data)`."""
    model = check_network(model)
    names = [n for n, _ in model.named_modules() if n]
    if part not in names:
        raise InputError(
            f"part={part!r} is no module of {type(model).__name__}{did_you_mean(part, names)}"
        )
    if callable(criterion) or criterion in set(needs_loss):
        raise InputError(
            f"criterion={criterion!r} needs the loss of the whole network, which a part has "
            "not; use 'brain_surgeon', 'l2' or another without labels"
        )
    inputs = example_inputs(x)
    result = clone(model)
    training = result.training
    result.eval()
    seen = None if data is None else PartInputs(result, part, data)
    small = cut(result.get_submodule(part), given(result, part, inputs), seen)
    result.train(training)
    whole = clone(model)
    owner, _, leaf = part.rpartition(".")
    setattr(whole.get_submodule(owner), leaf, small.train(model.get_submodule(part).training))
    check_runs(whole, inputs, "the example input after pruning its part")
    return whole
