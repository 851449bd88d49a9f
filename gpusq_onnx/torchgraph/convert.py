"""From an ONNX graph to a trainable torch module.

Only what the requested tensors need is converted, in graph order: each node through its row of the table (the newest
that is not newer than the model's opset), initializers with a role as parameters, everything else known as constants,
which fold. Initializers shared through Identity, and tied weights, are one parameter.

16-bit floats are computed in float32 (or under autocast) and rounded on the way back: a parameter in float16 cannot
take small steps.

Source: docs/torchgraph.md. Limits: the operators of the table; no subgraphs, no local functions; the batch is the
leading axis of the inputs and the only dynamic one (inputs without a batch in common are one run).
`prefix.trainable_prefix` says how far a detector goes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import fx

from gpusq_onnx.errors import UnsupportedModelError, UsageError
from gpusq_onnx.graph.model import Model, Node, Tensor, TensorSpec, values_of
from gpusq_onnx.graph.norms import LayerNorm, decomposed, layer_norms
from gpusq_onnx.graph.operators import is_standard
from gpusq_onnx.graph.qdq.dynamic import DOMAIN
from gpusq_onnx.graph.shapes import infer_shapes
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.torchgraph import elementwise, functions, layout, neural, peepholes, quantiser, reductions
from gpusq_onnx.torchgraph.builder import BATCHES, SHAPES, Affine, Builder, Size, Unsupported, Value
from gpusq_onnx.torchgraph.call import Call, newest, table, tensor_of, torch_type
from gpusq_onnx.torchgraph.network import Network
from gpusq_onnx.torchgraph.roles import TRAINED, roles_of

TABLE = table(elementwise.ROWS, layout.ROWS, neural.ROWS, reductions.ROWS, quantiser.ROWS)
_REMEDY = "ask for tensors before it (trainable_prefix names them); what lies after stays as it is in the graph"


def convert(
    model: Model,
    *,
    taps: Sequence[str] = (),
    outputs: Sequence[str] | None = None,
    train: Collection[str] = TRAINED,
    given: Sequence[str] = (),
) -> Network:
    """`model` as a torch module.

    Args:
        model: is not changed, and shares no memory with the module.
        taps: names of more tensors to return.
        outputs: names of the tensors to return; by default the graph's outputs.
        train: roles of the initializers that become parameters (see `roles`); all others are constants.
        given: inner tensors that the caller hands in, after the graph's inputs: nodes read these instead of what the
            graph computes, which `outputs` and `taps` still return. With the ends of blocks, each block runs by itself.

    Raises:
        UsageError: a name that the graph does not have, or nothing asked for.
        UnsupportedModelError: an operator, or a way to use it, that cannot be converted; names the node and a remedy.
    """
    asked = [*(outputs if outputs is not None else [spec.name for spec in model.outputs()]), *taps]
    return _Conversion(model, list(dict.fromkeys(asked)), roles_of(model, train), given).network()


def unconvertible(model: Model) -> tuple[list[Node], set[str]]:
    """The nodes that cannot be converted, and those after them, in graph order; all tensors that cannot be compared.

    The latter, by name, are not computed, or hold no elements.
    """
    attempt = _Conversion(model, [spec.name for spec in model.outputs()], roles_of(model), ())
    for spec in model.inputs():
        attempt.values[spec.name] = attempt.input(spec)
    lost: set[str] = set()
    found = []
    for node in model.graph.nodes:
        if any(tensor.name in lost for tensor in node.inputs) or not attempt.can_convert(node):
            found.append(node)
        lost.update(t.name for t in node.outputs if not t.is_empty() and t.name not in attempt.values)
    empty = {name for name, value in attempt.values.items() if not value.worlds[0].numel()}
    return found, lost | empty


def ancestors(model: Model, names: Iterable[str]) -> list[Node]:
    """The nodes that the named tensors depend on, in graph order."""
    tensors = model.graph.tensors()
    queue, seen = [tensors[name] for name in names], set[int]()
    while queue:
        for node in queue.pop().inputs:
            if id(node) not in seen:
                seen.add(id(node))
                queue.extend(node.inputs)
    return [node for node in model.graph.nodes if id(node) in seen]


class _Conversion:
    """One graph on its way."""

    def __init__(self, model: Model, wanted: list[str], roles: dict[str, str], given: Sequence[str]) -> None:
        _check_names(model, [*wanted, *given])
        self.model, self.wanted, self.roles = model, wanted, roles
        self.given = tuple(dict.fromkeys(given))
        self.computed: dict[str, Value] = {}  # what the graph computes for each given tensor
        self.fixed = _fixed_batch(model)
        self.builder = Builder(BATCHES if self.fixed is None else (self.fixed,))
        self.values: dict[str, Value] = {}
        self.parameters: dict[str, str] = {}  # parameter -> initializer

    def network(self) -> Network:
        """Convert, and wrap up."""
        nodes = ancestors(self.model, self.wanted)
        read = {tensor.name for node in nodes for tensor in node.inputs} | set(self.wanted)
        specs = [spec for spec in self.model.inputs() if spec.name in read]
        for spec in specs:
            self.values[spec.name] = self.input(spec)
        norms = self._layer_norms(nodes)
        parts = {id(part) for norm in norms.values() for part in norm.nodes[:-1]}
        for onnx_node in (node for node in nodes if id(node) not in parts):
            if (norm := norms.get(id(onnx_node))) is not None:
                operands = map(self._value, (norm.x, norm.gamma, norm.beta))
                made = neural.layer_norm(self.builder.call, *operands, axes=norm.axes, epsilon=norm.epsilon)
                self.values[norm.output.name] = made
            else:
                self.convert(onnx_node)
            self._give(onnx_node)
        tensors = map(self.model.graph.tensors().__getitem__, self.wanted)
        results = [self.computed.get(tensor.name) or self._value(tensor) for tensor in tensors]
        graph = self.builder.graph
        graph.output(tuple(self.builder.node(result) for result in results))
        handed = [name for name in self.given if name in self.computed]
        for name in handed:  # the caller's order, not the graph's
            self.builder.to_the_end_of_inputs(self.values[name])
        peepholes.simplify(graph)
        for node in graph.nodes:
            node.meta.pop(SHAPES, None)
            if getattr(node.target, "__module__", "") == functions.__name__:
                node.meta["is_wrapped"] = True  # a leaf as well where a pickled graph is traced again
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        root = torch.nn.Module()
        for name, parameter in self.builder.parameters.items():
            root.register_parameter(name, parameter)
        for name, buffer in self.builder.buffers.items():
            root.register_buffer(name, buffer)
        for name, module in self.builder.modules.items():
            root.add_module(name, module)
        body = fx.GraphModule(root, graph)
        kept = {name: initializer for name, initializer in self.parameters.items() if hasattr(body, name)}
        values = {**dict(zip(self.wanted, results, strict=True)), **{name: self.values[name] for name in handed}}
        batched = {name: x.ndim > 0 and x.worlds[0].shape[0] == self.fixed for name, x in values.items()}
        batched |= {spec.name: True for spec in specs}
        roles = {name: self.roles[initializer] for name, initializer in kept.items()}
        inputs = [*(spec.name for spec in specs), *handed]
        return Network(body, inputs, self.wanted, roles, kept, self.fixed, batched)

    def input(self, spec: TensorSpec) -> Value:
        """A graph input as a placeholder."""
        sizes: list[Size] = []
        for axis, size in enumerate(spec.shape):
            if not isinstance(size, int) and axis:
                raise UnsupportedModelError(
                    f"input {spec.name!r} has a dynamic axis besides the batch",
                    found=str(list(spec.shape)),
                    expected="a dynamic first axis, fixed sizes after it",
                    hint=f"give its size: --crop PX for images, or --shapes {spec.name}=1x3x224x224 (every axis)",
                )
            sizes.append(size if isinstance(size, int) else Affine(1, 0))
        return self.builder.input(_identifier(spec.name, ()), sizes, torch_type(spec.dtype))

    def _layer_norms(self, nodes: Sequence[Node]) -> dict[int, LayerNorm]:
        """The LayerNorms in parts by the id of their last node, where nobody asks for what is inside."""
        if next(decomposed(nodes), None) is None:
            return {}
        asked, there = {*self.wanted, *self.given}, set(map(id, nodes))
        found, _ = layer_norms(self.model, infer_shapes(self.model)[0])
        inner = [{tensor.name for node in norm.nodes[:-1] for tensor in node.outputs} for norm in found]
        free = (norm for norm, names in zip(found, inner, strict=True) if not names & asked)
        return {id(norm.nodes[-1]): norm for norm in free if id(norm.nodes[-1]) in there}

    def _give(self, node: Node) -> None:
        """Let readers of the node's outputs read what the caller gives, where he does."""
        for tensor in node.outputs:
            if tensor.name in self.given:
                computed = self.computed[tensor.name] = self.values[tensor.name]
                name, shape = _identifier(tensor.name, ()), self.builder.shape(computed)
                self.values[tensor.name] = self.builder.input(name, shape, computed.dtype)

    def _value(self, tensor: Tensor) -> Value:
        """A tensor's value; initializers are read when first needed."""
        if tensor.name not in self.values:
            if tensor.inputs:
                raise self._refusal(tensor.inputs[0], f"its output {tensor.name!r} is used and not computed here")
            try:
                values = tensor_of(values_of(tensor))
            except Unsupported as reason:
                raise UnsupportedModelError(f"initializer {tensor.name!r} cannot be used", found=str(reason)) from None
            if tensor.name in self.roles:
                name = _identifier(str(tensor.name), self.parameters)
                self.parameters[name] = str(tensor.name)
                self.values[tensor.name] = self.builder.parameter(name, values)
            else:
                self.values[tensor.name] = self.builder.constant(values)
        return self.values[tensor.name]

    def can_convert(self, node: Node) -> bool:
        """Convert the node if that is possible."""
        try:
            self.convert(node)
        except UnsupportedModelError:
            return False
        return True

    def convert(self, node: Node) -> None:
        """Call what the node's row of the table says."""
        row = newest(TABLE.get(node.op, ()), self.model.opset) if is_standard(node) or node.domain == DOMAIN else None
        if row is None:
            domain = f"{node.domain}." if node.domain else ""
            raise UnsupportedModelError(
                f"operator {domain}{node.op} cannot be trained through", where=self._where(node), hint=_REMEDY
            )
        try:
            made = row.emit(Call(node, self.builder, [None if t.is_empty() else self._value(t) for t in node.inputs]))
        except Unsupported as reason:
            raise self._refusal(node, str(reason), reason.hint) from None
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            raise UnsupportedModelError(
                f"operator {node.op} does not fit its inputs",
                where=self._where(node),
                found=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
                hint=f"does onnxruntime run the model? If it does, {_REMEDY}",
            ) from error
        for tensor, value in zip(node.outputs, [made] if isinstance(made, Value) else made, strict=False):
            self.values[tensor.name] = value

    def _where(self, node: Node) -> str:
        return f"{node_label(node)}, opset {self.model.opset}"

    def _refusal(self, node: Node, found: str, hint: str = "") -> UnsupportedModelError:
        """The error for an operator that is known, in a form that is not."""
        what = f"operator {node.op} cannot be trained through as it is used here"
        return UnsupportedModelError(what, where=self._where(node), found=found, hint=hint or _REMEDY)


def _check_names(model: Model, wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in model.graph.tensors()]
    if missing or not wanted:
        raise UsageError(
            "the graph has no tensor of this name" if missing else "no output or tap is asked for",
            found=", ".join(missing[:5]),
            expected=f"outputs {', '.join(spec.name for spec in model.outputs())}, or any tensor's name",
        )


def _fixed_batch(model: Model) -> int | None:
    """The leading size of the inputs; None where one of them is dynamic there, and where they have none in common."""
    leading = {spec.shape[0] if spec.shape else None for spec in model.inputs()} or {1}
    first, *others = leading
    return first if isinstance(first, int) and not others else None


def _identifier(name: str, taken: Collection[str]) -> str:
    """`name` as a Python identifier that is not taken."""
    stem = re.sub(r"\W+", "_", name).strip("_") or "tensor"
    stem = f"t_{stem}" if stem[0].isdigit() or stem in ("self", "constant") else stem
    candidate, count = stem, 1
    while candidate in taken:
        count += 1
        candidate = f"{stem}_{count}"
    return candidate
