"""The processes that train one network together, and where they keep their progress: plain torch, no Ray."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class Workers:
    """One process's place among those that share a training: `rank` of `world`, computing on `device`.

    With `world` above one, `torch.distributed` has to be initialized (Ray Train does it for its workers).
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this process is the one that prints, writes results and decides for all."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over all workers, in place; every rank passes the same shapes.

        Tensors travel flattened, in buckets of one data type and about 32 MiB.
        """
        if self.world == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [part.view_as(tensor) for part, tensor in zip(parts, bucket, strict=True)])

    def agree(self, decision: bool) -> bool:
        """Rank 0's decision, on every rank (for choices that rest on a clock)."""
        if self.world == 1:
            return decision
        flag = torch.tensor([int(decision)], device=self.device)
        dist.broadcast(flag, src=0)
        return bool(flag.item())

    def wait(self) -> None:
        """Returns once every worker has come here."""
        if self.world > 1:
            dist.barrier()


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        fits = buckets and buckets[-1][0].dtype == tensor.dtype and size < BUCKET_BYTES
        if not fits:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.numel() * tensor.element_size()
    return buckets


class Checkpoints(ABC):
    """Where a training keeps its latest state; every rank makes the same calls in the same order."""

    @abstractmethod
    def load(self) -> dict[str, Any] | None:
        """The latest state saved, tensors on the CPU, or None on a first start; ValueError if it is corrupt."""

    @abstractmethod
    def save(self, state: dict[str, Any], metrics: dict[str, float]) -> None:
        """Keeps `state` in place of the one before (never neither) and publishes `metrics` beside it."""


@dataclass(frozen=True)
class FileCheckpoints(Checkpoints):
    """The state in one file, replaced atomically: for trainings in this process, without Ray."""

    path: Path

    def load(self) -> dict[str, Any] | None:
        """See `Checkpoints.load`."""
        return read_state(self.path) if self.path.exists() else None

    def save(self, state: dict[str, Any], metrics: dict[str, float]) -> None:
        """See `Checkpoints.save`; the metrics are not kept, the caller has printed them."""
        write_state(state, self.path)


def write_state(state: dict[str, Any], path: Path) -> None:
    """Writes `state` so that `path` holds either the old or the new state at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_state(path: Path) -> dict[str, Any]:
    """The state `write_state` wrote, tensors on the CPU.

    Raises:
        ValueError: the file is not such a state (truncated, or something else).
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"a state is a dict, not a {type(state).__name__}")
    except Exception as error:
        raise ValueError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}); "
            "move it aside and run the same command again to start this part anew"
        ) from error
    return state
