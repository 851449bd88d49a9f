"""A torch.fx graph under construction, and the shape evaluator that goes with it.

Every tensor of the ONNX graph is a `Value`. Each call is evaluated at several batch sizes at once ("worlds") by the
very function that the finished graph will call: on real tensors where everything is known (initializers that are not
trained, shapes, what is computed from them), on meta tensors where something depends on the data. Hence types and
shapes are torch's own, known subgraphs fold away, and what varies with the batch size shows by comparing the worlds:

    size(batch) = slope * batch + offset        fitted on two worlds, verified on the others

Source: none; the idea is that of abstract interpretation. Limits: one symbol, the batch size; sizes that are not affine
in it are refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

BATCHES = (5, 7, 11)
BUFFER = "constant_"  # what names of known tensors begin with
SHAPES = "shapes"  # of a node's meta: its shape at each batch size, as long as the graph is under construction


@dataclass(frozen=True)
class Affine:
    """A size that depends on the batch: slope * batch + offset."""

    slope: int
    offset: int

    def at(self, batch: int) -> int:
        """The size at one batch size."""
        return self.slope * batch + self.offset


Size = int | Affine
Recipe = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], int | None]


class Unsupported(Exception):
    """What a node asks for has no counterpart here: why, and what can be done."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


class NotAffine(Unsupported):
    """A size that is no affine function of the batch size."""


@dataclass(eq=False)
class Value:
    """One tensor.

    Attributes:
        worlds: the tensor at each batch size; a meta tensor where its values are not known.
        known: whether its values are known before any data is.
        node: its node in the graph, once it has one.
        recipe: how it is computed, for known tensors that vary with the batch and cannot be stored.
    """

    worlds: tuple[Tensor, ...]
    known: bool
    node: fx.Node | None = None
    recipe: Recipe | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Note the shapes on the node, where there is one."""
        if self.node is not None:
            self.node.meta[SHAPES] = [tuple(world.shape) for world in self.worlds]

    @property
    def uniform(self) -> bool:
        """Whether it is known and the same at every batch size."""
        return self.known and all(world is self.worlds[0] or _same(world, self.worlds[0]) for world in self.worlds[1:])

    @property
    def ndim(self) -> int:
        """The rank."""
        return self.worlds[0].ndim

    @property
    def dtype(self) -> torch.dtype:
        """The element type."""
        return self.worlds[0].dtype


class Builder:
    """Collects nodes, parameters and constants.

    Args:
        batches: the batch sizes to evaluate at; one where the batch is fixed.
    """

    def __init__(self, batches: Sequence[int] = BATCHES) -> None:
        self.batches = tuple(batches)
        self.graph = fx.Graph()
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self.buffers: dict[str, Tensor] = {}
        self.modules: dict[str, torch.nn.Module] = {}
        self._batch: fx.Node | None = None
        self._batch_of: tuple[fx.Node, int] | None = None
        self._stored: dict[tuple[Any, ...], fx.Node] = {}

    def input(self, name: str, shape: Sequence[Size], dtype: torch.dtype) -> Value:
        """A new placeholder."""
        earlier = [node for node in self.graph.nodes if node.op == "placeholder"]
        with self.graph.inserting_after(earlier[-1]) if earlier else nullcontext():
            node = self.graph.placeholder(name)
        node.target = node.name  # fx makes the name unique, not the argument: `add_1 = add` would undo an `add_1`
        worlds = [torch.empty(self._at(shape, w), dtype=dtype, device="meta") for w in range(len(self.batches))]
        for axis, size in enumerate(shape):
            if isinstance(size, Affine) and self._batch_of is None:
                self._batch_of = (node, axis)
        return Value(tuple(worlds), False, node)

    def to_the_end_of_inputs(self, value: Value) -> None:
        """Make a placeholder the last one."""
        last = [node for node in self.graph.nodes if node.op == "placeholder"][-1]
        if last is not value.node:
            last.append(self.node(value))

    def parameter(self, name: str, values: Tensor) -> Value:
        """A new trainable tensor under a name that is a Python identifier and not taken."""
        self.parameters[name] = torch.nn.Parameter(values)
        shadow = torch.empty_like(values, device="meta")
        return Value((shadow,) * len(self.batches), False, self.graph.get_attr(name))

    def constant(self, values: Tensor) -> Value:
        """A tensor that is known."""
        return Value((values,) * len(self.batches), True)

    def module(self, name: str, module: torch.nn.Module, *args: Value) -> Value:
        """Call a submodule that keeps the shape and type of its first argument."""
        self.modules[name] = module
        node = self.graph.call_module(name, tuple(self.node(value) for value in args))
        return Value(tuple(world.to("meta") for world in args[0].worlds), False, node)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function` in every world and in the graph; arguments may hold Values and Affine sizes at any depth.

        Returns a Value, or a tuple of Values where the function returns several tensors.
        """
        leaves = list(_leaves((args, kwargs)))
        known = all(leaf.known for leaf in leaves if isinstance(leaf, Value))
        same = known and all(leaf.uniform if isinstance(leaf, Value) else False for leaf in leaves)
        with torch.no_grad():
            found = [
                function(*self._world(args, w, known), **self._world(kwargs, w, known))
                for w in range(1 if same else len(self.batches))
            ]
        if same:
            found *= len(self.batches)
        node = None if known else self._call_node(function, args, kwargs)
        if isinstance(found[0], Tensor):
            return Value(tuple(found), known, node, (function, args, kwargs, None) if known else None)
        return tuple(
            Value(
                tuple(result[i] for result in found),
                known,
                None if node is None else self.graph.call_function(operator.getitem, (node, i)),
                (function, args, kwargs, i) if known else None,
            )
            for i in range(len(found[0]))
        )

    def node(self, value: Value) -> fx.Node:
        """The node of a value; a known one becomes a buffer, expanded along the batch where it varies with it."""
        if value.node is None and not value.known:
            raise Unsupported("integer codes of a QuantizeLinear go elsewhere than into a DequantizeLinear")
        if value.node is None:
            value.node = self._store(value)
            value.node.meta[SHAPES] = [tuple(world.shape) for world in value.worlds]
        return value.node

    def fit(self, sizes: Sequence[int]) -> Size:
        """The size that takes these values in the worlds. Raises NotAffine."""
        first, last = sizes[0], sizes[-1]
        if all(size == first for size in sizes):
            return int(first)
        slope, rest = divmod(last - first, self.batches[-1] - self.batches[0])
        size = Affine(int(slope), int(first - slope * self.batches[0]))
        if rest or any(size.at(b) != s for b, s in zip(self.batches, sizes, strict=True)):
            raise NotAffine(f"a size is {list(sizes)} at batch sizes {list(self.batches)}")
        return size

    def shape(self, value: Value) -> list[Size]:
        """The sizes of a tensor. Raises NotAffine."""
        return [self.fit(sizes) for sizes in zip(*(world.shape for world in value.worlds), strict=True)]

    def elements(self, value: Value) -> list[Size]:
        """The integers that a known tensor holds. Raises NotAffine."""
        lists = [[int(n) for n in world.reshape(-1).tolist()] for world in value.worlds]
        if len({len(one) for one in lists}) > 1:
            raise NotAffine(f"lists of {[len(one) for one in lists]} sizes at batch sizes {list(self.batches)}")
        return [self.fit(sizes) for sizes in zip(*lists, strict=True)]

    def _at(self, sizes: Sequence[Size], world: int) -> list[int]:
        return [size.at(self.batches[world]) if isinstance(size, Affine) else size for size in sizes]

    def _world(self, tree: Any, world: int, known: bool) -> Any:
        def leaf(value: Any) -> Any:
            if isinstance(value, Affine):
                return value.at(self.batches[world])
            return value.worlds[world] if known or not value.known else value.worlds[world].to("meta")

        return _map(tree, leaf)

    def _call_node(self, function: Callable[..., Any], args: Any, kwargs: Any) -> fx.Node:
        def leaf(value: Any) -> fx.Node:
            return self._size(value) if isinstance(value, Affine) else self.node(value)

        node = self.graph.call_function(function, _map(args, leaf), _map(kwargs, leaf))
        if str(getattr(function, "__module__", None)).startswith(__package__):
            node.meta["is_wrapped"] = True  # unpickling traces the code again: keep our functions whole
        return node

    def _size(self, size: Affine) -> fx.Node:
        if self._batch is None:
            assert self._batch_of is not None, size
            with self.graph.inserting_after(self._batch_of[0]):
                self._batch = self.graph.call_method("size", self._batch_of)
        node = self._batch if size.slope == 1 else self.graph.call_function(operator.mul, (self._batch, size.slope))
        return self.graph.call_function(operator.add, (node, size.offset)) if size.offset else node

    def _store(self, value: Value) -> fx.Node:
        if value.uniform:
            return self._buffer(value.worlds[0])
        axes = [a for a, sizes in enumerate(zip(*(w.shape for w in value.worlds), strict=True)) if len(set(sizes)) > 1]
        if len(axes) == 1:
            rows = [world.narrow(axes[0], 0, 1) for world in value.worlds]
            if all(
                _same(row, rows[0]) and _same(row.expand_as(w), w) for row, w in zip(rows, value.worlds, strict=True)
            ):
                shape: list[Size] = [-1] * value.ndim
                shape[axes[0]] = self.shape(value)[axes[0]]
                stored = Value((rows[0],) * len(self.batches), True, self._buffer(rows[0]))
                return self._call_node(torch.broadcast_to, (stored, shape), {})
        assert value.recipe is not None
        function, args, kwargs, index = value.recipe
        node = self._call_node(function, args, kwargs)
        return node if index is None else self.graph.call_function(operator.getitem, (node, index))

    def _buffer(self, values: Tensor) -> fx.Node:
        values = values.contiguous()
        key = (values.dtype, tuple(values.shape), values.reshape(-1).view(torch.uint8).numpy().tobytes())
        if key not in self._stored:
            name = f"{BUFFER}{len(self.buffers)}"
            self.buffers[name] = values.clone()
            self._stored[key] = self.graph.get_attr(name)
        return self._stored[key]


def _same(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and (torch.equal(a, b) or bool(((a == b) | (a != a) & (b != b)).all()))
    )


def _leaves(tree: Any) -> Any:
    if isinstance(tree, (Value, Affine)):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from _leaves(branch)
    elif isinstance(tree, dict):
        yield from _leaves(list(tree.values()))
    elif isinstance(tree, slice):
        yield from _leaves((tree.start, tree.stop, tree.step))


def _map(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(tree, (Value, Affine)):
        return leaf(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_map(branch, leaf) for branch in tree)
    if isinstance(tree, dict):
        return {key: _map(branch, leaf) for key, branch in tree.items()}
    if isinstance(tree, slice):
        return slice(_map(tree.start, leaf), _map(tree.stop, leaf), _map(tree.step, leaf))
    return tree
