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


@dataclass(frozen=True)
class Crew:
    """This process among `size`, of which that of rank 0 leads: it writes and speaks."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Crew:
        """The processes that the environment speaks of (`WORLD_SIZE` and `RANK`), once all are here; else this one.

        Raises:
            EnvironmentLacking: torch is not installed.
        """
        if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
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
