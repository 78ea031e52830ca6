"""What a teacher says of some data, written into one file that is a teacher itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mirabelle.base.data import batches, device_of, preserved
from mirabelle.base.errors import InputError
from mirabelle.base.fingerprints import fingerprints
from mirabelle.distillation.outputs import Encoding, write_segment
from mirabelle.distillation.teachers import Teachers
from mirabelle.distillation.views import Views


@preserved()
def save_outputs(
    path: str | Path,
    data: Iterable,
    teacher: Any,
    *,
    ensemble: str = "probabilities",
    weights: Sequence[float] | None = None,
    precision: str = "float32",
    seed: int = 0,
    views: int = 1,
) -> Path:
    """Writes what a teacher says of `data` into one file, which `distill` then takes for a teacher.

    path: ends in .safetensors. teacher: what `distill` takes, or an array (N, ...) of outputs from
    elsewhere, in the order of `data`, which then must not be shuffled.
    views: so many epochs of the data, with the order and augmentation that `distill(seed=, views=)`
    will show. The outputs are all held in memory.
    Raises `InputError` where the array has more or fewer rows than the data has samples.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} does not end in .safetensors")
    encoding = Encoding(precision)
    encoding.check()
    given: torch.Tensor | None = None
    teachers: Teachers | None = None
    if isinstance(teacher, (np.ndarray, torch.Tensor)):
        given = torch.as_tensor(teacher)
    else:
        device = device_of(teacher) if isinstance(teacher, nn.Module) else torch.device("cpu")
        teachers = Teachers(teacher, device, ensemble=ensemble, weights=weights, seed=seed)
    loader = Views(data, seed, views)
    found: dict[tuple[int, int], torch.Tensor] = {}
    for epoch in range(views):
        loader.set_epoch(epoch)
        row = 0
        for batch in batches(loader, what="the data"):
            if teachers is not None:
                outputs = teachers(batch, loader.position)
            else:
                assert given is not None
                outputs = given[row : row + batch.size]
                if len(outputs) < batch.size:
                    raise InputError(
                        f"the outputs have {len(given)} rows, and the data has more samples; "
                        "expected one row for each, in their order"
                    )
            row += batch.size
            for key, output in zip(fingerprints(batch).tolist(), outputs.detach().float().cpu()):
                found.setdefault((key[0], key[1]), output)
        if given is not None and row < len(given):
            raise InputError(
                f"the outputs have {len(given)} rows, and the data has {row} samples; expected "
                "one row for each, in their order"
            )
    stacked = torch.stack(list(found.values()))
    write_segment(
        path,
        np.array(list(found), np.int64),
        encoding.encode(stacked),
        encoding,
        tuple(stacked.shape[1:]),
    )
    return path
