"""Which loss a distillation takes where none is given: by a look at what student and teacher say
of the first batch.
"""

from __future__ import annotations

import torch
from torch import nn

from mirabelle.base.checks import check_runs
from mirabelle.base.data import Batch
from mirabelle.distillation.teachers import Teachers
from mirabelle.measurement.accuracy import as_tensor

LOOK = 16  # samples
CLOSE = 1e-2  # to length 1, or to sum 1
RELATIONS = {"rkd_distance": 1.0, "rkd_angle": 2.0}  # of embeddings of any two widths
Choice = tuple[dict[str, float], str]


def choose_losses(student: nn.Module, teachers: Teachers, first: Batch) -> Choice:
    """Losses with their weights, and why. What suits which case is measured in
    docs/distillation.md; where the outputs cannot tell it is `dist`.
    """
    few = first.head(LOOK)
    output = as_tensor(check_runs(student, few.to(teachers.device), "the first training batch"))
    taught = teachers(few).float()
    if taught.ndim != 2:
        return _of_maps(taught)
    if _near(taught.norm(dim=1)) and taught.shape[1] > 2:
        same = output.shape == taught.shape
        found = {"cosine": 1.0, "similarity": 100.0} if same else RELATIONS
        return dict(found), "the teacher gives embeddings: rows of length 1"
    if taught.shape[1] == 1 or _is_regression(few.target, taught):
        return {"mse": 1.0}, "the outputs are numbers, not classes"
    if bool((taught >= 0).all()) and _near(taught.sum(1)):
        return {"mse": 1.0}, "the teacher gives probabilities"
    return _of_classes(student, teachers, output, taught)


def _of_maps(taught: torch.Tensor) -> Choice:
    if taught.ndim > 2 and taught.shape[1] > 1:
        return {"dist": 1.0}, "the outputs are classes of many places"
    return {"mse": 1.0}, "the outputs are numbers, not classes"


def _of_classes(
    student: nn.Module, teachers: Teachers, output: torch.Tensor, taught: torch.Tensor
) -> Choice:
    classes = f"{taught.shape[1]} classes"
    if output.shape != taught.shape:
        return {"dist": 1.0}, classes
    if taught.shape[1] < 4:
        return {"kd": 1.0}, f"{classes} are too few for relations between them"
    teacher = teachers.networks[0]
    if teacher is None or len(teachers.networks) > 1:
        return {"dist": 1.0}, classes
    if type(student) is type(teacher):
        return {"dist": 1.0}, f"{classes}, and a teacher of the student's own class"
    if set(dict(teacher.named_parameters())) & set(dict(student.named_parameters())):
        return {"kd": 1.0}, f"{classes}, and a teacher that the student is another form of"
    return {"standardized_kd": 1.0}, f"{classes}, and a student of another architecture"


def _near(values: torch.Tensor) -> bool:
    return bool(((values - 1).abs() < CLOSE).all())


def _is_regression(target: object, taught: torch.Tensor) -> bool:
    return (
        isinstance(target, torch.Tensor)
        and target.is_floating_point()
        and target.shape == taught.shape
        and not _near(target.float().sum(1))
    )
