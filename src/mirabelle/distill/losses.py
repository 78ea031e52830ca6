"""Losses between a student's outputs and a teacher's. Each is a function (student, teacher, temperature) -> scalar, the mean over the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F


def kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 times the Kullback-Leibler divergence of the softened classes, summed over the classes, averaged over the batch.

    student, teacher: logits (N, C). T^2 keeps the gradient's size for every T. Hinton et al. 2015, section 2.
    """
    p = F.log_softmax(student.float() / temperature, 1)
    q = F.log_softmax(teacher.float() / temperature, 1)
    return temperature**2 * F.kl_div(p, q, reduction="batchmean", log_target=True)


def standardized_kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """`kd` on logits brought to mean 0 and standard deviation 1 per sample: the student need not match the teacher's scale. Sun et al. 2024, eq. 9."""

    def standardize(z: torch.Tensor) -> torch.Tensor:
        z = z.float()
        return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)

    return kd(standardize(student), standardize(teacher), temperature)


def _one_minus_correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 minus Pearson's correlation of each row, averaged."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (1 - F.cosine_similarity(a, b, dim=1, eps=1e-8)).mean()


def dist(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Relations instead of values: 1 - correlation between the class probabilities of each sample, plus the same over the samples of each class.

    student, teacher: logits (N, C); a batch of one has no second part. T^2 as in `kd`. DIST, Huang et al. 2022, eqs. 7 to 10, with both weights 1.
    """
    p = F.softmax(student.float() / temperature, 1)
    q = F.softmax(teacher.float() / temperature, 1)
    within = _one_minus_correlation(p.T, q.T) if len(p) > 1 else p.new_zeros(())
    return temperature**2 * (_one_minus_correlation(p, q) + within)


def mse(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The mean squared difference of the outputs, of any equal shapes; the temperature plays no part. Ba & Caruana 2014, eq. 1."""
    return F.mse_loss(student.float(), teacher.float())


def cosine(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """1 - cosine of the embeddings (N, D): their length plays no part, as in face recognition."""
    return (1 - F.cosine_similarity(student.float().flatten(1), teacher.float().flatten(1), dim=1)).mean()


Loss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
LOSSES: dict[str, Loss] = {"kd": kd, "standardized_kd": standardized_kd, "dist": dist, "mse": mse, "cosine": cosine}
