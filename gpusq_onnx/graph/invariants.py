"""What every model that leaves this tool satisfies: a list of rules, each a function from the graph to its violations.

Verifier and passes speak one language: the rules of explicit quantisation here are the ones that TensorRT's parser
enforces, so a violation is found before TensorRT sees the model.

Source: ONNX operator specifications (QuantizeLinear, DequantizeLinear 21) and TensorRT's ONNX importer (zero points
must be zero, scales positive, per-tensor or per-axis scale shapes, no INT32 DequantizeLinear).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from gpusq_onnx.errors import InvariantError, UnsupportedModelError
from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.model import Model, data_type_of, type_name, unproduced, values_of
from gpusq_onnx.graph.operators import LINEAR, NORMS, QDQ, QUANTISERS, Is, operators
from gpusq_onnx.graph.qdq.axes import block_axes
from gpusq_onnx.graph.qdq.codes import scales_another
from gpusq_onnx.graph.qdq.dynamic import FORMAT, is_dynamic
from gpusq_onnx.graph.qdq.quantize_nodes import code_type
from gpusq_onnx.graph.snapshot import Snapshot, take
from gpusq_onnx.graph.wording import node_label
from gpusq_onnx.marks import METADATA
from gpusq_onnx.quant.formats import FORMATS, Format, natural

Rule = Callable[[Model], Iterator[str]]

RESEARCH = f"{METADATA}research"  # metadata: the quantisation is of a form that TensorRT is not known to run

_TAKEN = ("int8", "int4", "float8e4m3fn", "float4e2m1")  # by TensorRT, as codes
_TAKEN_NAMES = ", ".join(element.upper() for element in _TAKEN)
_OF_ONE_TYPE = operators(Is.PRODUCT | Is.AFFINE) - NORMS  # their operands all have one type
_SCALES_OF_ANY_TYPE = 23  # from this opset on QuantizeLinear's scale has a type of its own
_SMALLEST_FP16_SCALE = 6.1e-5  # below, a half-precision scale is subnormal or zero


def connected(model: Model) -> Iterator[str]:
    """Every tensor that a node reads is an input, an initializer or some node's output."""
    for name in sorted(set(unproduced(model))):
        yield f"tensor {name!r} is read and nothing produces it"


def unique_names(model: Model) -> Iterator[str]:
    """A name means one tensor, and every tensor has one producer."""
    known: dict[str, gs.Tensor] = {tensor.name: tensor for tensor in model.graph.inputs}
    made = set(known)
    for node in model.graph.nodes:
        for tensor in (t for t in node.outputs if t.name):
            if tensor.name in made:
                yield f"tensor {tensor.name!r} has two producers"
            made.add(tensor.name)
        for tensor in (t for t in (*node.inputs, *node.outputs) if t.name):
            if known.setdefault(tensor.name, tensor) is not tensor:
                yield f"two tensors are named {tensor.name!r}"


def sorted_nodes(model: Model) -> Iterator[str]:
    """Every node comes after the nodes that it reads from."""
    known = {tensor.name for tensor in model.graph.inputs}
    for node in model.graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Variable) and tensor.name and tensor.inputs and tensor.name not in known:
                yield f"{node_label(node)} reads {tensor.name!r} before it is made"
        known.update(tensor.name for tensor in node.outputs)


def interface(model: Model) -> Iterator[str]:
    """The inputs that the model came with are still read, and its outputs still produced."""
    stored = {constant.name for constant in model.constants()}
    fed = [value.name for value in model.frame.input if value.name not in stored]
    made = [value.name for value in model.frame.output]
    for kind, came, tensors in (("inputs", fed, model.graph.inputs), ("outputs", made, model.graph.outputs)):
        if (found := [tensor.name for tensor in tensors]) != came:
            yield f"{kind} {came} became {found}"


def positive_scales(model: Model) -> Iterator[str]:
    """Every scale is finite, positive, large enough for its type, and constant: an initializer, or a DQ of two."""
    for node in _quantisers(model):
        scale = node.inputs[1]
        maker = scale.inputs[0] if scale.inputs else None
        if maker is not None and _gives_block_scales(maker):
            continue  # block scales under one number, which is looked at where it is read
        if not isinstance(scale, gs.Constant):
            yield f"{node_label(node)}: the scale {scale.name!r} is computed, not a constant"
            continue
        values = np.asarray(values_of(scale), np.float32)
        if isinstance(node.inputs[0], gs.Constant) and scales_another(node):
            values = np.append(values, np.asarray(values_of(node.inputs[0]), np.float32))
        floor = _SMALLEST_FP16_SCALE if data_type_of(scale) == TensorProto.FLOAT16 else 0.0
        if not np.all(np.isfinite(values) & (values > 0) & (values >= floor)):
            yield f"{node_label(node)}: the scale {scale.name!r} holds {float(values.min()):g}, not a positive number"


def symmetric(model: Model) -> Iterator[str]:
    """Every zero point is present, of a type TensorRT quantises to, of the scale's shape, and zero.

    It may be missing where codes are stored: their type is known then, and ONNX takes it to be zero.
    """
    for node in _qdq(model):
        if node.op == "DequantizeLinear" and len(node.inputs) == 2 and (element := _element(node.inputs[0])):
            if element not in _TAKEN:
                yield f"{node_label(node)}: codes of type {element.upper()}; TensorRT takes {_TAKEN_NAMES}"
            continue
        if len(node.inputs) < 3 or not isinstance(node.inputs[2], gs.Constant):
            yield f"{node_label(node)} has no constant zero point: ONNX then means UINT8 and TensorRT INT8"
            continue
        zero, scale = node.inputs[2], node.inputs[1]
        if type_name(zero) not in _TAKEN:
            found = type_name(zero).upper()
            yield f"{node_label(node)}: zero point {zero.name!r} is {found}; TensorRT takes {_TAKEN_NAMES}"
        elif np.any(np.asarray(values_of(zero), np.float32)):
            yield f"{node_label(node)}: zero point {zero.name!r} is not zero"
        if isinstance(scale, gs.Constant) and tuple(zero.shape) != tuple(scale.shape):
            yield f"{node_label(node)}: zero point {tuple(zero.shape)} and scale {tuple(scale.shape)} differ in shape"


def scale_shapes(model: Model) -> Iterator[str]:
    """A scale is one number, or one number a channel of a constant along `axis`; activations have one number."""
    flow = Dataflow(model)
    for node in _qdq(model):
        scale = tuple(node.inputs[1].shape) if isinstance(node.inputs[1], gs.Constant) else ()
        if len(scale) == 0 or node.attrs.get("block_size", 0):
            continue
        quantised, axis = node.inputs[0], node.attrs.get("axis", 1)
        if len(scale) > 1:
            yield f"{node_label(node)}: scale of shape {scale}; TensorRT reads it as blocks, a channel scale is 1-D"
        elif flow.is_data(quantised) and scale != (1,):
            yield f"{node_label(node)}: {scale[0]} scales for the activation {quantised.name!r}, which may have one"
        elif isinstance(quantised, gs.Constant) and scale != (1,):
            lengths = dict(zip(range(-len(quantised.shape), len(quantised.shape)), quantised.shape * 2, strict=True))
            if lengths.get(axis) != scale[0]:
                yield f"{node_label(node)}: {scale[0]} scales for axis {axis} of a constant of shape {quantised.shape}"


def blocks(model: Model) -> Iterator[str]:
    """A format that has blocks has them in weights that are read beside float data; no other format has any.

    A model that is marked as written for research is not asked.
    """
    flow = Dataflow(model)
    for node, fmt, size in _blocked(model):
        weight = node.inputs[0]
        if size and not fmt.blocks:
            yield f"{node_label(node)}: {fmt.label} in blocks of {size}; TensorRT has blocks for 4 bits"
        elif flow.is_data(weight):
            found = f"{fmt.label} for the activation {weight.name!r}"
            taken = "quantises such at run time only" if fmt.scales else f"has {fmt.label} weights only"
            yield f"{node_label(node)}: {found}; TensorRT {taken}"
        elif size and not fmt.grid and any(_reads_rounded_data(reader) for reader in node.outputs[0].outputs):
            found = f"{fmt.label} in blocks beside data in a Q/DQ pair"
            yield f"{node_label(node)}: {found}; TensorRT parses that and cannot build it"


def block_sizes(model: Model) -> Iterator[str]:
    """Blocks have a size that TensorRT documents for the format: its builders take more. Asked as `blocks`."""
    flow = Dataflow(model)
    for node, fmt, size in _blocked(model):
        if fmt.blocks and size not in fmt.blocks and not flow.is_data(node.inputs[0]):
            taken = ", ".join(str(block) for block in fmt.blocks)
            yield f"{node_label(node)}: {fmt.label} in blocks of {size or 'a channel'}; TensorRT has {taken}"


def scale_types(model: Model) -> Iterator[str]:
    """A scale has the type of what it scales: a DequantizeLinear gives its scale's type to what reads it."""
    for node in _nodes(model):
        if node.op == "QuantizeLinear" and model.opset < _SCALES_OF_ANY_TYPE:
            found = {t.name: _known_type(t) for t in node.inputs[:2]}
        elif node.op in _OF_ONE_TYPE:
            dequantised = any(p.op == "DequantizeLinear" for t in node.inputs for p in t.inputs)
            found = {t.name: _known_type(t) for t in node.inputs} if dequantised else {}
        else:
            continue
        known = {name: kind for name, kind in found.items() if kind is not None}
        if len(set(known.values())) > 1:
            types = ", ".join(f"{name!r} {kind}" for name, kind in known.items())
            yield f"{node_label(node)} mixes types: {types}"


def no_quantised_bias(model: Model) -> Iterator[str]:
    """No INT32 DequantizeLinear: TensorRT's parser refuses it (onnxruntime's quantiser writes it for biases)."""
    for node in _nodes(model):
        source = node.inputs[0] if node.op == "DequantizeLinear" else None
        if isinstance(source, gs.Constant) and data_type_of(source) == TensorProto.INT32:
            yield f"{node_label(node)} dequantises the INT32 tensor {source.name!r}"


def no_integer_operators(model: Model) -> Iterator[str]:
    """No QLinear*, MatMulInteger, ConvInteger or DynamicQuantizeLinear: TensorRT wants explicit Q/DQ."""
    for node in _nodes(model):
        if node.op.startswith("QLinear") or node.op in ("MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"):
            yield f"{node_label(node)} computes on integers"


STRUCTURE: tuple[Rule, ...] = (connected, unique_names, sorted_nodes, interface)
QUANTISATION: tuple[Rule, ...] = (
    positive_scales,
    symmetric,
    scale_shapes,
    block_axes,
    blocks,
    block_sizes,
    scale_types,
    no_quantised_bias,
    no_integer_operators,
)


def violations(model: Model, rules: tuple[Rule, ...] = STRUCTURE + QUANTISATION) -> list[str]:
    """All violations of `rules`, in order."""
    return [text for rule in rules for text in rule(model)]


def require(model: Model) -> None:
    """Refuse a model that came with what no output may have: a pass would be blamed for it.

    Raises:
        UnsupportedModelError: with the first violations.
    """
    found = violations(model)
    if not found:
        return
    kinds = Counter(node.op for node in model.graph.nodes if _is_quantised(node.op))
    if kinds:
        raise UnsupportedModelError(
            "the model is quantised already, in a form that TensorRT does not take",
            expected="a float model, or Q/DQ of symmetric INT8, INT4, FP8 or FP4",
            found=f"{', '.join(f'{count} {op}' for op, count in kinds.items())}; {found[0]}",
            hint="start from the float model that it was made of",
        )
    raise UnsupportedModelError(
        f"the model breaks {len(found)} rule(s) that hold for every output",
        expected="a connected graph",
        found="; ".join(found[:3]),
        hint="export the model again",
    )


def _is_quantised(op: str) -> bool:
    return "QuantizeLinear" in op or "DequantizeLinear" in op or op.startswith("QLinear") or op.endswith("Integer")


def check(model: Model, where: str, snapshot: Snapshot | None = None) -> None:
    """Check every rule and the ONNX specification itself.

    Args:
        where: names what was just done.
        snapshot: of the model as it is; None: it is taken.

    Raises:
        InvariantError: with the first violations.
    """
    found = violations(model)
    if not found:
        try:
            onnx.checker.check_model((snapshot or take(model)).for_checker())
        except onnx.checker.ValidationError as error:
            found = [str(error).strip().splitlines()[0]]
    if found:
        raise InvariantError(
            f"the graph broke {len(found)} rule(s) after {where}",
            where=where,
            found="; ".join(found[:3]),
            hint="this is a defect of the pass; the reproducer beside the output shows it",
        )


def _qdq(model: Model) -> Iterator[gs.Node]:
    return (node for node in _nodes(model) if node.op in QDQ)


def _blocked(model: Model) -> Iterator[tuple[gs.Node, Format, int]]:
    """Q and DQ with blocks, or of a format that activations cannot have: each with its format and block size, 0: none.

    None of a model that is marked as written for research.
    """
    for node in _qdq(model) if RESEARCH not in model.metadata else ():
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        element = type_name(zero) if isinstance(zero, gs.Constant) else _element(node.inputs[0])
        fmt = natural(element) if element is not None else None
        size = node.attrs.get("block_size", 0)
        if fmt is not None and (size or not fmt.activations or fmt.scales) and not _at_run_time(node):
            yield node, fmt, size


def _quantisers(model: Model) -> Iterator[gs.Node]:
    return (node for node in _nodes(model) if node.op in QUANTISERS | QDQ)


def _gives_block_scales(maker: gs.Node) -> bool:
    """Whether a DequantizeLinear makes scales of constants, or of what quantising at run time found."""
    small = maker.inputs[0] if maker.op == "DequantizeLinear" else None
    return isinstance(small, gs.Constant) or (small is not None and bool(small.inputs) and is_dynamic(small.inputs[0]))


def _at_run_time(node: gs.Node) -> bool:
    """Whether a DequantizeLinear reads codes of a node that quantises at run time."""
    return node.op == "DequantizeLinear" and any(is_dynamic(maker) for maker in node.inputs[0].inputs)


def _element(codes: gs.Tensor) -> str | None:
    """The ONNX type of a DequantizeLinear's codes, in lower case; None where it takes inference."""
    if isinstance(codes, gs.Constant):
        return type_name(codes)
    maker = codes.inputs[0] if codes.inputs else None
    if maker is None or maker.op not in QUANTISERS:
        return None
    return code_type(maker) if codes is maker.outputs[0] else FORMATS[FORMAT.scales].element


def _known_type(tensor: gs.Tensor) -> np.dtype[Any] | None:
    """The type of a constant, of a graph input, or of what a DequantizeLinear makes; None where it takes inference."""
    if isinstance(tensor, gs.Constant):
        constant: np.dtype[Any] = np.dtype(tensor.dtype)
        return constant
    if tensor.inputs and tensor.inputs[0].op == "DequantizeLinear":
        dequantize = tensor.inputs[0]
        return None if dequantize.attrs.get("output_dtype", 0) else _known_type(dequantize.inputs[1])
    given: np.dtype[Any] | None = None if tensor.inputs or tensor.dtype is None else np.dtype(tensor.dtype)
    return given


def _reads_rounded_data(reader: gs.Node) -> bool:
    """Whether the left operand of a matrix product comes through a Q/DQ pair."""
    made = reader.inputs[0].inputs if reader.op in LINEAR else []
    return bool(made) and made[0].op == "DequantizeLinear" and not isinstance(made[0].inputs[0], gs.Constant)


def _nodes(model: Model) -> Iterator[gs.Node]:
    for graph in (model.graph, *model.graph.subgraphs(recursive=True)):
        yield from graph.nodes
