"""Teachers: one network or an ensemble; frozen, in eval mode, without a graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mirabelle.checks import check_network, clone, running
from mirabelle.data import Batch
from mirabelle.errors import InputError
from mirabelle.measure.accuracy import as_tensor


class Teachers:
    """What the student learns from. Not an `nn.Module`, so that no optimiser, checkpoint or wrapper takes the teachers for part of the student.

    Copies: the networks given stay on their device and in their mode, and one may be the student itself.
    """

    def __init__(self, teachers: nn.Module | Sequence[nn.Module], device: torch.device):
        if not isinstance(teachers, (nn.Module, Sequence)):
            raise InputError(f"teacher is a {type(teachers).__name__}; expected a torch.nn.Module or a list of them")
        networks = [teachers] if isinstance(teachers, nn.Module) else list(teachers)
        if not networks:
            raise InputError("distill needs at least one teacher, got an empty list")
        self.networks = [clone(check_network(t, f"teacher {i}")).to(device).eval() for i, t in enumerate(networks)]
        self.device = device

    @torch.no_grad()
    def __call__(self, batch: Batch) -> torch.Tensor:
        """The teacher's logits; of an ensemble, the logarithm of the mean of its members' probabilities. Hinton et al. 2015, section 1."""
        batch = batch.map(lambda t: t.to(self.device))
        with running(batch, "the teacher's batch"):
            outputs = [as_tensor(t(*batch.args, **batch.kwargs)) for t in self.networks]
        if len(outputs) == 1:
            return outputs[0]
        shapes = {tuple(o.shape) for o in outputs}
        if len(shapes) > 1:
            raise InputError(
                f"the teachers give outputs of different shapes: {', '.join(map(str, sorted(shapes)))}; an ensemble needs the same classes"
            )
        return torch.logsumexp(torch.stack([o.log_softmax(1) for o in outputs]), 0) - torch.log(torch.tensor(float(len(outputs))))
