"""Where training runs: device, arithmetic and processes, as accelerate finds them.

    torchrun --nproc-per-node 8 -m gpusq_onnx apply ...        accelerate launch -m gpusq_onnx apply ...

Every process goes through the same pipeline; gradients are averaged (DistributedDataParallel), sums of the losses are
added up, and the first process writes. A step's images are those of `batch`, whatever the number of processes.

Limits: data parallel only; a model and its optimiser fit on each device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gpusq_onnx.errors import EnvironmentLacking
from gpusq_onnx.learn.settings import ArithmeticOptions

if TYPE_CHECKING:
    from accelerate import Accelerator


class Hardware:
    """One process's view of the machine.

    Raises:
        EnvironmentLacking: accelerate is not installed.
    """

    def __init__(self, settings: ArithmeticOptions) -> None:
        self._accelerator = _accelerator(settings)
        self.device: torch.device = self._accelerator.device
        self.rank, self.processes = self._accelerator.process_index, self._accelerator.num_processes
        self.leads: bool = self._accelerator.is_main_process
        self.bf16 = settings.precision == "bf16" or (settings.precision == "auto" and _fast_bf16(self.device))

    def place(self, network: nn.Module) -> nn.Module:
        """The module on the device, its gradients averaged over the processes."""
        return self._accelerator.prepare_model(network)  # type: ignore[no-any-return]

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 arithmetic where that is the precision."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def silent(self, network: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Leave gradients unaveraged for all parts of a step but the last."""
        return nullcontext() if last else self._accelerator.no_sync(network)

    def add(self, value: Tensor) -> Tensor:
        """The sum over all processes, without gradients."""
        return self._accelerator.reduce(value.detach(), "sum") if self.processes > 1 else value.detach()

    def wait(self) -> None:
        """Until every process is here."""
        self._accelerator.wait_for_everyone()


def _accelerator(settings: ArithmeticOptions) -> Accelerator:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise EnvironmentLacking(
            "training needs accelerate, which is not installed",
            found=str(error),
            hint="pip install 'gpusq-onnx[train]'",
        ) from None
    # Its own mixed precision is one for the whole process; two passes may want two, hence `autocast` above. Where
    # there is no accelerator, `cpu` must be said, or several processes are single ones that know nothing of each other.
    cpu = settings.device == "cpu" or not torch.accelerator.is_available()
    return Accelerator(mixed_precision="no", cpu=cpu)


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public name yet
    return device.type == "cpu" and known is not None and bool(known())
