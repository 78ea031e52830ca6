"""A callback for Hugging Face's Trainer:
`Trainer(..., callbacks=[mb.integrations.transformers.callback(...)])`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mirabelle.base.errors import InputError
from mirabelle.base.options import declared
from mirabelle.integrations.companion import Companion, companion
from mirabelle.runtimes.artifact import require


class Hooks:
    """What the callback does at each of the Trainer's events, which say when they are called."""

    def __init__(self, company: Companion):
        self.company = company
        self.outside = False  # the loss is computed by compute_loss_func
        self.seen: dict[str, float] = {}
        self.steps, self.processes = 1, 1
        self._hook: Any = None

    def compute_loss(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """A `compute_loss_func` for networks that give no loss, such as quantized ones: `function`
        with the teacher's losses.

        function: (outputs, labels) -> the mean loss of the batch, as a scalar.
        """
        self.outside = True

        def computed(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            loss = function(outputs, labels)
            if not torch.is_grad_enabled():  # it is evaluated
                return loss
            return self.company.loss(loss) / self._divisor(num_items_in_batch)

        return computed

    def _divisor(self, items: Any) -> float:
        """Of a mean over the batch that the Trainer takes for a share of the whole step's. items:
        those of the whole step, where the Trainer counted them.
        """
        return self.steps * (self.processes if items is not None else 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        model, company = more["model"], self.company
        company.start(model, state.max_steps, more.get("train_dataloader"), state.global_step)
        self.steps = args.gradient_accumulation_steps
        averaged = getattr(args, "average_tokens_across_devices", False)
        self.processes = args.world_size if averaged else 1
        if not company.teaches:
            return
        if self.outside:
            company.watch()
        else:
            self._hook = model.register_forward_hook(self._with_lesson, with_kwargs=True)

    def _with_lesson(self, network: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """The network's output with the teacher's losses in its loss."""
        company = self.company
        if not company.calls or not network.training or not torch.is_grad_enabled():
            return None
        if not isinstance(output, Mapping) or output.get("loss") is None:
            raise InputError(
                f"{type(network).__name__} gives no loss that a teacher's could join; give "
                "labels, or compute_loss_func=callback.compute_loss(function)"
            )
        rest = {k: v for k, v in output.items() if k != "loss"}
        company.calls[-1] = company.calls[-1]._replace(output=rest)
        items = kwargs.get("num_items_in_batch")
        divisor = 1.0 if items is None else self._divisor(items)
        found = {"loss": company.loss(output["loss"], divisor), **rest}
        return type(output)(**found) if hasattr(output, "to_tuple") else found

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.company.calls = []
        self.company.before_step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.company.after_step()
        self.company.done = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        """Figures join the Trainer's records; `log=` sends them on."""
        self.seen |= _numbers(logs or {})
        if logs is not None and state.is_world_process_zero:
            logs.update(self.company.log())

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **more: Any
    ) -> None:
        self.seen |= _numbers(metrics or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self.company.close()
        self.company.check(self.seen)


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in logs.items() if isinstance(v, (int, float))}


@declared(rest=companion)
def callback(**options: Any) -> Any:
    """A callback for Hugging Face's Trainer that keeps zeros zero, adds a teacher's losses to the
    network's own and checks limits.

    options: those of `mirabelle.integrations.companion`. Limits are about what the Trainer logs,
    such as `eval_accuracy >= 0.9`.
    Raises `MissingRuntimeError` without transformers.
    Example:

        keep = mb.integrations.transformers.callback(
            teacher=big, losses={"kd": 1.0, "labels": 1.0}, temperature=2.0)
        Trainer(small, args, train_dataset=data, callbacks=[keep]).train()
    """
    base = require("transformers", "transformers").TrainerCallback
    return type("MirabelleCallback", (Hooks, base), {})(companion(**options))
