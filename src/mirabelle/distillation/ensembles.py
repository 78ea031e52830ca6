"""How the outputs of several teachers become one. Each is a function (outputs, weights) -> output,
the weights (K,) adding up to 1.

outputs: K tensors of the same shape, (N, C) or (N, C, H, W) where they are classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def probabilities(outputs: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """The logarithm of the mean of the softmax probabilities: logits of the mixture. Hinton et al.
    2015, section 1.
    """
    logs = torch.stack([o.float().log_softmax(1) for o in outputs])
    return torch.logsumexp(logs + _along(weights.to(logs).log(), logs), 0)


def binary(outputs: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """The same for independent yes/no outputs: the logit of the mean of the sigmoids."""
    logits = torch.stack([o.float() for o in outputs])
    w = _along(weights.to(logits).log(), logits)
    yes, no = (torch.logsumexp(torch.nn.functional.logsigmoid(z) + w, 0) for z in (logits, -logits))
    return yes - no


def logits(outputs: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """The mean of the outputs as they are: of logits, the normalized geometric mean of the
    probabilities; of embeddings, their mean.
    """
    stacked = torch.stack([o.float() for o in outputs])
    return (stacked * _along(weights.to(stacked), stacked)).sum(0)


def confidence(outputs: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """`probabilities` with weights of each sample's own: the surer a teacher is of it, the more it
    counts.

    weight of teacher k = (1 - exp(H_k) / sum of exp(H_j)) / (K - 1), times its given weight,
    brought to sum 1. H is the entropy of its probabilities. Zhang et al. 2022 (CA-MKD), eq. 3, with
    the entropy in place of the cross-entropy, which would need labels.
    """
    logs = torch.stack([o.float().log_softmax(1) for o in outputs])
    entropy = -(logs.exp() * logs).sum(2)
    share = (1 - entropy.softmax(0)) * _along(weights.to(logs), entropy)
    share = (share / share.sum(0, keepdim=True)).unsqueeze(2)
    return torch.logsumexp(logs + share.log(), 0)


def _along(weights: torch.Tensor, stacked: torch.Tensor) -> torch.Tensor:
    return weights.reshape(-1, *[1] * (stacked.ndim - 1))


Mixture = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]
ENSEMBLES: dict[str, Mixture] = {
    "probabilities": probabilities,
    "binary": binary,
    "logits": logits,
    "confidence": confidence,
}
# no mixture: one teacher answers for a whole batch, drawn by the weights. Fukuda et al. 2017,
# section 3.
RANDOM = "random"
