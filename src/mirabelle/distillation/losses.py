"""Losses between a student's outputs and a teacher's. Each is a function (student, teacher,
temperature) -> scalar, the mean over the batch.

Class outputs are logits (N, C), or dense ones (N, C, H, W), whose every position counts as a
sample: the classes are always dimension 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from mirabelle.base.errors import InputError


def _rows(z: torch.Tensor, what: str) -> torch.Tensor:
    """Class outputs (N, C, ...) as float32 rows (samples and positions, C)."""
    if z.ndim < 2:
        raise InputError(
            f"{what} compares classes and needs outputs (N, C) or (N, C, H, W), got "
            f"{tuple(z.shape)}"
        )
    return z.float().movedim(1, -1).flatten(0, -2)


def _vectors(z: torch.Tensor) -> torch.Tensor:
    """Anything (N, ...) as float32 rows (N, D)."""
    return z.float().reshape(len(z), -1)


# --- classes
# --------------------------------------------------------------------------------------------------


def kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 times the Kullback-Leibler divergence of the softened classes, summed over the classes,
    averaged over samples and positions.

    student, teacher: logits (N, C) or (N, C, H, W). T^2 keeps the gradient's size for every T, with
    or without labels beside it. Hinton et al. 2015, section 2.
    """
    p = F.log_softmax(_rows(student, "kd") / temperature, 1)
    q = F.log_softmax(_rows(teacher, "kd") / temperature, 1)
    return temperature**2 * F.kl_div(p, q, reduction="batchmean", log_target=True)


def _standardized(z: torch.Tensor) -> torch.Tensor:
    z = z - z.mean(1, keepdim=True)
    # Of equal logits, or of a single one, nothing is left to scale.
    return z / z.square().sum(1, keepdim=True).div(max(1, z.shape[1] - 1)).clamp_min(1e-12).sqrt()


def standardized_kd(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """`kd` on logits brought to mean 0 and standard deviation 1 per sample: the student need not
    match the teacher's scale. Sun et al. 2024, eq. 9.
    """
    return kd(
        _standardized(_rows(student, "standardized_kd")),
        _standardized(_rows(teacher, "standardized_kd")),
        temperature,
    )


def _one_minus_correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 minus Pearson's correlation of each row, averaged."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (1 - F.cosine_similarity(a, b, dim=1, eps=1e-8)).mean()


def dist(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Relations instead of values: 1 - correlation between the class probabilities of each sample,
    plus the same over the samples of each class.

    student, teacher: logits (N, C) or (N, C, H, W); a single sample has no second part. T^2 as in
    `kd`. DIST, Huang et al. 2022, eqs. 7 to 10, with both weights 1.
    """
    p = F.softmax(_rows(student, "dist") / temperature, 1)
    q = F.softmax(_rows(teacher, "dist") / temperature, 1)
    within = _one_minus_correlation(p.T, q.T) if len(p) > 1 else p.new_zeros(())
    return temperature**2 * (_one_minus_correlation(p, q) + within)


DKD_TARGET, DKD_OTHERS = 1.0, 8.0  # alpha and beta of the authors' configuration


def decoupled_kd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float = 1.0,
    target: torch.Tensor | None = None,
) -> torch.Tensor:
    """`kd` taken apart: alpha = 1 times the divergence of (target, all others) plus beta = 8 times
    that among the others, T^2 times both.

    student, teacher: logits (N, C) or (N, C, H, W) with C >= 2. target: class indices (N,) or (N,
    H, W); where there is none, or it is no class (255, -100), the teacher's largest logit. Averaged
    over samples and positions. DKD, Zhao et al. 2022, eq. 7.
    """
    s, t = (
        _rows(student, "decoupled_kd") / temperature,
        _rows(teacher, "decoupled_kd") / temperature,
    )
    classes = s.shape[1]
    if classes < 2:
        raise InputError("decoupled_kd needs at least two classes, got one; use binary_kd")
    chosen = t.argmax(1)
    if target is not None and not target.is_floating_point() and target.numel() == len(s):
        given = target.reshape(-1).to(chosen.device, torch.int64)
        chosen = torch.where((given >= 0) & (given < classes), given, chosen)
    others = F.one_hot(chosen, classes) == 0
    log_p, log_q = F.log_softmax(s, 1), F.log_softmax(t, 1)

    def split(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of (target, all others), and of the others among themselves."""
        rest = z[others].reshape(len(z), classes - 1)
        together = rest.logsumexp(1, keepdim=True)
        return torch.cat([z.gather(1, chosen[:, None]), together], 1), rest - together

    (binary_p, rest_p), (binary_q, rest_q) = split(log_p), split(log_q)
    parts = [
        F.kl_div(a, b, reduction="batchmean", log_target=True)
        for a, b in ((binary_p, binary_q), (rest_p, rest_q))
    ]
    return temperature**2 * (DKD_TARGET * parts[0] + DKD_OTHERS * parts[1])


def binary_kd(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """T^2 times the divergence of independent yes/no probabilities (sigmoids), summed over the
    labels, averaged over samples and positions.

    student, teacher: logits (N,) or (N, 1) of a binary classifier, (N, C) of a multi-label one, (N,
    C, H, W) of dense masks. Multi-label distillation, Yang et al. 2023, eq. 3.
    """
    s, t = (
        _rows(z[:, None] if z.ndim == 1 else z, "binary_kd") / temperature
        for z in (student, teacher)
    )
    q = torch.sigmoid(t)
    each = q * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - q) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * each.sum(1).mean()


def channelwise(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """For dense outputs: where each class is, instead of what each position is. T^2 times the
    divergence of the softmax over the positions.

    student, teacher: (N, C, H, W), or more dimensions of positions. Averaged over samples and
    classes. Channel-wise distillation, Shu et al. 2021, eq. 4.
    """
    if student.ndim < 3:
        raise InputError(
            "channelwise compares positions and needs dense outputs (N, C, H, W), got "
            f"{tuple(student.shape)}; use kd"
        )
    p = F.log_softmax(student.float().flatten(2).flatten(0, 1) / temperature, 1)
    q = F.log_softmax(teacher.float().flatten(2).flatten(0, 1) / temperature, 1)
    return temperature**2 * F.kl_div(p, q, reduction="batchmean", log_target=True)


# --- any outputs, embeddings
# --------------------------------------------------------------------------------------------------


def mse(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The mean squared difference of the outputs, of any equal shapes; the temperature plays no
    part. Ba & Caruana 2014, eq. 1.
    """
    return F.mse_loss(student.float(), teacher.float())


def cosine(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """1 - cosine of the embeddings (N, D): their length plays no part, as in face recognition.
    ShrinkTeaNet, Duong et al. 2019.
    """
    return (1 - F.cosine_similarity(_vectors(student), _vectors(teacher), dim=1)).mean()


def l2(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The squared distance of the embeddings (N, D) after each is brought to length 1; 0 to 4,
    twice `cosine`.

    An embedding of zeros stays one. Distances of normalized embeddings are those of FaceNet,
    Schroff et al. 2015, section 3.1.
    """
    return (F.normalize(_vectors(student)) - F.normalize(_vectors(teacher))).square().sum(1).mean()


def _relative_distances(z: torch.Tensor) -> torch.Tensor:
    distances = F.pdist(_vectors(z))
    return distances / distances.mean().clamp_min(1e-12)


def rkd_distance(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Huber loss between the distances of all pairs of samples, each divided by the mean distance.
    The widths of the embeddings may differ.

    student, teacher: (N, D), (N, E). Averaged over the N (N - 1) / 2 pairs; 0 for a single sample.
    RKD, Park et al. 2019, eqs. 3 to 6.
    """
    if len(student) < 2:
        return student.float().sum() * 0
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def _angles(z: torch.Tensor) -> torch.Tensor:
    """Cosines (j, i, k) of the angle at sample j between i and k; 0 where two of them coincide."""
    z = _vectors(z)
    rays = F.normalize(z[None] - z[:, None], dim=2)
    return rays @ rays.mT


def rkd_angle(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Huber loss between the cosines of the angles of all triplets of samples. The widths of the
    embeddings may differ. Memory: N^2 (N + D).

    student, teacher: (N, D), (N, E). Averaged over the N (N - 1) (N - 2) ordered triplets; 0 for
    fewer than three samples. RKD, Park et al. 2019, eqs. 7 and 8.
    """
    n = len(student)
    if n < 3:
        return student.float().sum() * 0
    # Triplets with i = j or k = j are 0 on both sides, those with i = k are 1 on both: they add
    # nothing.
    return F.smooth_l1_loss(_angles(student), _angles(teacher), reduction="sum") / (
        n * (n - 1) * (n - 2)
    )


def similarity(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """The squared difference of the samples' similarity matrices, rows brought to length 1, over
    N^2. The widths may differ.

    student, teacher: anything (N, ...), layers too. Similarity-preserving distillation, Tung & Mori
    2019, eqs. 1 to 4.
    """
    s, t = (F.normalize(v @ v.T) for v in (_vectors(student), _vectors(teacher)))
    return (s - t).square().sum() / len(s) ** 2


Loss = Callable[..., torch.Tensor]
LOSSES: dict[str, Loss] = {
    "kd": kd,
    "standardized_kd": standardized_kd,
    "dist": dist,
    "decoupled_kd": decoupled_kd,
    "binary_kd": binary_kd,
    "channelwise": channelwise,
    "mse": mse,
    "cosine": cosine,
    "l2": l2,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "similarity": similarity,
}
SOFTMAX = {
    "kd",
    "standardized_kd",
    "dist",
    "decoupled_kd",
}  # read logits as the classes of one softmax
TAKES_TARGET = {"decoupled_kd"}  # are given target=, where the data has labels
ACROSS_SAMPLES = {
    "dist",
    "rkd_distance",
    "rkd_angle",
    "similarity",
}  # relate the samples of a batch, so they want all of it
ANY_WIDTH = {"rkd_distance", "rkd_angle", "similarity"}  # compare outputs of different widths
PROJECTED = {
    "cosine",
    "l2",
}  # embeddings of different widths get a projection that is trained along
