"""Many processes, one training run: what `torchrun` starts, made equal to a single process."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn

from mirabelle.base import structures
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1


def start() -> World:
    """Joins the process group that `torchrun` announced; alone where there is none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())


def wrap(module: nn.Module, world: World) -> nn.Module:
    """DistributedDataParallel where there is more than one process. Buffers are those of rank 0, as
    in one process that holds its share.
    """
    return module if world.size == 1 else nn.parallel.DistributedDataParallel(module)


def share_buffers(module: nn.Module, world: World) -> None:
    """Rank 0's buffers for all: running statistics of their own would make the processes validate,
    and stop, differently.
    """
    if world.size > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def share(batch: Batch, world: World) -> tuple[Batch, float]:
    """This process's slice of a batch that every process has read, and the weight that makes the
    averaged gradient the whole batch's.

    Slicing batches instead of the data set keeps the global batches the same for any number of
    processes and any kind of loader; the price is that each process reads all the data.
    """
    if world.size == 1:
        return batch, 1.0
    n = batch.size
    mine = len(range(world.rank, n, world.size))
    if mine == 0:
        raise InputError(
            f"a batch of {n} cannot be shared by {world.size} processes; use larger batches or "
            "drop_last=True"
        )
    cut = batch.map(lambda t: t[world.rank :: world.size])
    target = structures.select(batch.target, list(range(world.rank, n, world.size)), n)
    return cut._replace(target=target), mine * world.size / n


class _Gather(torch.autograd.Function):
    """All processes' rows, one process's after the other's. Backwards, each takes the gradient of
    its own rows.

    Every process computes the same loss on the gathered rows, so the gradient of one's own rows is
    whole already; it is scaled so that the loop's weight (`share`) and the average over the
    processes leave it as it is.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(size)]
        torch.distributed.all_gather(
            counts, torch.tensor([len(rows)], dtype=torch.int64, device=rows.device)
        )
        numbers = [int(c) for c in counts]
        padded = rows.detach().contiguous()
        if len(rows) < max(numbers):
            padded = torch.cat(
                [padded, padded.new_zeros(max(numbers) - len(rows), *rows.shape[1:])]
            )
        parts = [torch.empty_like(padded) for _ in range(size)]
        torch.distributed.all_gather(parts, padded)
        ctx.start, ctx.own, ctx.total = sum(numbers[:rank]), len(rows), sum(numbers)
        return torch.cat([p[:n] for p, n in zip(parts, numbers)])

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0][ctx.start : ctx.start + ctx.own] * (ctx.total / ctx.own)


def gather(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, for losses that relate the samples of a batch to one another; as
    they are where there is one process.
    """
    if (
        not torch.distributed.is_available()
        or not torch.distributed.is_initialized()
        or torch.distributed.get_world_size() == 1
    ):
        return rows
    return _Gather.apply(rows)
