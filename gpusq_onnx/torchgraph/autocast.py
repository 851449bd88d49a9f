"""torch.autocast inside torch.vmap, as it is outside.

vmap takes some operators apart before autocast sees them (torch 2.11 to 2.13): a Linear or a convolution then computes
in the type of its data, and raises where data in bfloat16, which come from a matmul, meet parameters in float32. Here
they are given one type first, the one that autocast gives them outside of vmap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_IN_FEWER_BITS = frozenset(
    [
        functional.linear, functional.prelu, functional.scaled_dot_product_attention,
        torch.conv1d, torch.conv2d, torch.conv3d,
        torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    ]
)  # fmt: skip


def autocast_kept(device: torch.device) -> AbstractContextManager[Any]:
    """Around a torch.vmap: what autocast does on this device holds inside, too; nothing where autocast is off."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return _Autocast(device.type, torch.get_autocast_dtype(device.type))


class _Autocast(TorchFunctionMode):
    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self._device, self._dtype = device, dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if not torch.is_autocast_enabled(self._device):  # a function may switch it off inside
            return func(*args, **named)
        if func in _IN_FEWER_BITS:
            return func(*map(self._cast, args), **{name: self._cast(value) for name, value in named.items()})
        if func is functional.batch_norm:
            x, mean, *others = args
            return func(x.to(mean.dtype), mean, *others, **named).to(x.dtype)
        return func(*args, **named)

    def _cast(self, value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(self._dtype) if floats else value
