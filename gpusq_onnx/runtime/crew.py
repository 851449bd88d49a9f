"""Processes that work on one task together, each on a part: those that `torchrun` or `accelerate launch` started.

    torchrun --nproc-per-node 4 -m gpusq_onnx tune ...

Each process goes through the same program. What can be done apart is dealt out and gathered, so that all go on with the
same values in the same order, whatever their number. A single process needs no torch.

Limits: values travel pickled, over gloo; all processes see the same files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from gpusq_onnx.errors import EnvironmentLacking

T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # one process may measure for hours while the others wait


def launched() -> tuple[int, int]:
    """The rank of this process and how many there are, by `RANK` and `WORLD_SIZE`; (0, 1) where it is the only one."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and size.isdecimal()) or int(size) < 2:
        return 0, 1
    return int(rank), int(size)


def leads() -> bool:
    """Whether this process writes and speaks: of those that were launched, that of rank 0."""
    return launched()[0] == 0


def launched_here() -> int:
    """How many of the processes are on this host, by `LOCAL_WORLD_SIZE`."""
    size = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(size)) if size.isdecimal() else 1


@dataclass(frozen=True)
class Crew:
    """This process among `size`, of which that of rank 0 leads: it writes and speaks."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Crew:
        """The processes that were launched (`launched`), once all are here.

        Raises:
            EnvironmentLacking: torch is not installed.
        """
        if launched() == (0, 1):
            return cls()
        try:
            import torch.distributed as group
        except ImportError as error:
            hint = "pip install 'gpusq-onnx[train]', or start one process"
            raise EnvironmentLacking("several processes need torch", found=str(error), hint=hint) from None
        if not group.is_initialized():
            group.init_process_group(timeout=_PATIENCE)
        return cls(group.get_rank(), group.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def gathered(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """The result of each work, done by one process; all processes must ask for the same works."""
        own = {index: work() for index, work in enumerate(works) if index % self.size == self.rank}
        if self.size == 1:
            return list(own.values())
        import torch.distributed as group

        parts: list[dict[int, T]] = [{} for _ in range(self.size)]
        group.all_gather_object(parts, own)
        every = {index: value for part in parts for index, value in part.items()}
        return [every[index] for index in range(len(works))]

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work` gives in the process that leads."""
        return self.gathered([work])[0]


ALONE = Crew()
