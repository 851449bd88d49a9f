"""The trainable module that a converted graph is: any batch in, tensors by their ONNX names out.

A graph whose batch is fixed runs under `torch.vmap`, group of images by group: gradients are those of a loop. The last
group is filled up with its last image, and the filling is dropped again. Outputs are joined along their first axis
where that axis is the fixed batch, and stacked along a new one elsewhere; so are the inner tensors that it is given.

A graph is converted at one size of its inputs. Where it leaves sizes open, `resize_with` lets it take others, too: for
each of them it is converted once more, with the same parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from gpusq_onnx.torchgraph.autocast import autocast_kept
from gpusq_onnx.torchgraph.quantiser import Quantiser

MOST = 8  # networks of other sizes that are kept: each has the graph's constants in memory once more

Shapes = Mapping[str, Sequence[int]]


class Network(nn.Module):
    """An ONNX graph as a module; plain functions in a torch.fx graph, `body`.

    Attributes:
        inputs: what it needs, in the order of forward's arguments: the graph's inputs, then the tensors given to it.
        outputs: the requested outputs, then the taps: ONNX tensor names.
        roles: the role of each parameter, by the name that `named_parameters` gives it.
        initializers: the ONNX initializer of each parameter.
        quantisers: the Q/DQ pairs, in graph order.
        fixed: the batch size that the graph was exported with; None where it is free, or inputs have none in common.

    `batched` says of inputs and outputs whether their first axis is the batch.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        inputs: Sequence[str],
        outputs: Sequence[str],
        roles: dict[str, str],
        initializers: dict[str, str],
        fixed: int | None,
        batched: Mapping[str, bool],
    ) -> None:
        super().__init__()
        self.body = body
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.roles = {f"body.{name}": role for name, role in roles.items()}
        self.initializers = {f"body.{name}": initializer for name, initializer in initializers.items()}
        self.fixed, self._batched = fixed, dict(batched)
        self._make: Callable[[Shapes], Network] | None = None
        self._sizes: Shapes = {}
        self._others: dict[tuple[tuple[int, ...], ...], Network] = {}

    @property
    def quantisers(self) -> list[Quantiser]:
        """The Q/DQ pairs in graph order; switch all of them off for the float twin."""
        return [module for module in self.body.modules() if isinstance(module, Quantiser)]

    def share(self, other: Network) -> None:
        """Take the parameters of another network of the same graph as its own: what one learns, both have."""
        theirs = dict(other.named_parameters())
        by_initializer = {initializer: theirs[name] for name, initializer in other.initializers.items()}
        for name, initializer in self.initializers.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(owner), leaf, by_initializer[initializer])

    def resize_with(self, make: Callable[[Shapes], Network], sizes: Shapes) -> None:
        """Take inputs of other sizes, too.

        Args:
            make: converts the same graph for inputs of these shapes; the first axis does not count.
            sizes: the shapes that it was converted for.
        """
        self._make, self._sizes = make, {name: tuple(sizes[name][1:]) for name in self.inputs if name in sizes}

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Outputs and taps by ONNX tensor name; the inputs share their first axis, the batch, where the graph has one.

        Tensors that are given come as they are returned.
        """
        if self._make is not None and (other := self._resized(inputs)) is not self:
            return other(*inputs)  # type: ignore[no-any-return]
        run = self.body.forward  # and no call of the module, which prints a traceback of its own where a trial fails
        if self.fixed is None:
            return dict(zip(self.outputs, run(*inputs), strict=True))
        named, rows = zip(self.inputs, inputs, strict=True), len(inputs[0])
        groups = [_grouped(x, self.fixed) if self._batched[name] else x for name, x in named]
        with autocast_kept(groups[0].device), _unsaid():
            found = zip(self.outputs, torch.vmap(run)(*groups), strict=True)
        return {name: value.flatten(0, 1)[:rows] if self._batched[name] else value for name, value in found}

    def _resized(self, inputs: Sequence[Tensor]) -> Network:
        """The network for inputs of these sizes, itself or another; of many others, the latest are kept."""
        assert self._make is not None
        shapes = {name: tuple(x.shape) for name, x in zip(self.inputs, inputs, strict=True) if name in self._sizes}
        sizes = tuple(shape[1:] for shape in shapes.values())
        if sizes == tuple(self._sizes.values()):
            return self
        if sizes not in self._others:
            other = self._make(shapes)
            other.share(self)
            for own, copied in zip(self.quantisers, other.quantisers, strict=True):
                copied.enabled = own.enabled
            self._others[sizes] = other.to(inputs[0].device).train(self.training)
            if len(self._others) > MOST:
                del self._others[next(iter(self._others))]
        return self._others[sizes]


@contextmanager
def _unsaid() -> Iterator[None]:
    """Without torch's warning that an operator, as fused attention on a CPU, runs group by group: results are right."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "There is a performance drop because we have not yet implemented the batching"
        )
        yield


def _grouped(x: Tensor, size: int) -> Tensor:
    """x[B, ...] as [groups, size, ...], the last group filled up with the last row."""
    missing = -len(x) % size
    filled = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x
    return filled.reshape(-1, size, *x.shape[1:])
