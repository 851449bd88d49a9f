"""What the stored codes of a compressed model really are: the independent check of patterns, ranges and sizes.

It shares no code with `gpusq_onnx`, so that an error there is not repeated here: plain onnx and numpy. For each product
with a constant operand it walks from the operand back to the initializer through Q/DQ and layout, computes the codes by
the formulas of the ONNX standard (for float weights before Q/DQ: round(W / scale), ties to even), lays them out as
w[out, k] by the operator's own definition, and counts the groups along k that break a rule.

    python -m tools.zoo.checker MODEL.onnx [2:4]           every weight: codes, range, the patterns that it follows
    python -m tools.zoo.checker --packed FILE ORIGINAL     how many times smaller a packed file is

A Conv's groups run along its channels at each kernel position, as TensorRT wants them.

Limits: weights that a Split or a Slice cuts, and products inside subgraphs, are not looked at.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401 - gives numpy the small float types by name
import numpy as np
import onnx
from onnx import numpy_helper

RULES = ("1:4", "2:8", "2:16", "4:8pair", "2:4", "4:8")


@dataclass(frozen=True)
class Weight:
    """One weight as it is stored.

    Attributes:
        name: the initializer's; op: of the product that reads it.
        codes: w[out, k] as float32; for a float weight without Q/DQ its values.
        element: the ONNX type of the codes; "" for such a weight.
        length: along which groups run: k, or the channels of a Conv.
        on_grid: whether code * scale is the stored float, to the bit (true where codes are stored).
    """

    name: str
    op: str
    codes: np.ndarray
    element: str
    length: int
    on_grid: bool

    def broken(self, rule: str) -> int:
        """The number of groups that break "N:M" or "N:Mpair"; -1 where groups do not divide k."""
        found = re.fullmatch(r"(\d+):(\d+)(pair)?", rule)
        if found is None:
            raise ValueError(f"no rule: {rule!r}")
        keep, group = int(found[1]), int(found[2])
        if self.length % group:
            return -1
        kept = self.codes.reshape(-1, group) != 0
        if found[3]:
            kept, keep = kept.reshape(-1, group // 2, 2).any(axis=2), keep // 2
        return int((kept.sum(axis=1) > keep).sum())

    @property
    def rules(self) -> tuple[str, ...]:
        """Those of `RULES` that it follows."""
        return tuple(rule for rule in RULES if self.broken(rule) == 0)

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest code."""
        return float(self.codes.min()), float(self.codes.max())

    @property
    def four_bits(self) -> bool:
        """Whether the codes are integers from -8 to 7."""
        low, high = self.ends
        return bool(self.element) and low >= -8 and high <= 7 and bool((self.codes == np.rint(self.codes)).all())


def weights_of(path: Path) -> list[Weight]:
    """The weights of a model's MatMul, Gemm and Conv nodes, each once, in graph order."""
    model = onnx.load(path)
    made = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, Weight] = {}
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv") or len(node.input) < 2:
            continue
        walked = _Walk(made, stored).operand(node.input[1])
        if walked is None or walked.values.ndim < 2 or walked.name in found:
            continue
        w, length = _as_matrix(node, walked.values)
        found[walked.name] = Weight(walked.name, node.op_type, w, walked.element, length, walked.on_grid)
    return list(found.values())


def ratio(packed: Path, original: Path) -> float:
    """How many times smaller a packed file is than a model with its external data."""
    data = original.with_name(original.name + ".data")
    return (original.stat().st_size + (data.stat().st_size if data.is_file() else 0)) / packed.stat().st_size


@dataclass(frozen=True)
class _Walked:
    name: str
    values: np.ndarray
    element: str = ""
    on_grid: bool = True


class _Walk:
    def __init__(self, made: dict[str, onnx.NodeProto], stored: dict[str, onnx.TensorProto]) -> None:
        self.made, self.stored = made, stored

    def operand(self, name: str) -> _Walked | None:
        """The codes that a tensor's values come from, laid out as the tensor is; None for one that is computed."""
        if name in self.stored:
            return _Walked(name, numpy_helper.to_array(self.stored[name]).astype(np.float32))
        node = self.made.get(name)
        if node is None or not node.input:
            return None
        if node.op_type == "DequantizeLinear":
            return self._codes(node)
        before = self.operand(node.input[0])
        if before is None or node.op_type not in ("Identity", "Transpose", "Squeeze", "Cast"):
            return None
        values = before.values
        if node.op_type == "Transpose":
            values = values.transpose(_attribute(node, "perm", tuple(range(values.ndim))[::-1]))
        elif node.op_type == "Squeeze":
            values = values.squeeze(tuple(self._constant(node.input[1]).tolist()) if len(node.input) > 1 else None)
        return _Walked(before.name, values, before.element, before.on_grid)

    def _codes(self, node: onnx.NodeProto) -> _Walked | None:
        zero = self._constant(node.input[2]).astype(np.float32) if len(node.input) > 2 else np.float32(0)
        if node.input[0] in self.stored:
            tensor = self.stored[node.input[0]]
            values = numpy_helper.to_array(tensor).astype(np.float32)
            return _Walked(tensor.name, values - self._along(node, zero, values.shape), _type(tensor.data_type))
        quantize = self.made[node.input[0]]
        before = self.operand(quantize.input[0]) if quantize.op_type == "QuantizeLinear" else None
        if before is None:
            return None
        kind = self.stored[quantize.input[2]].data_type if len(quantize.input) > 2 else onnx.TensorProto.UINT8
        scale = self._along(quantize, self._scale(quantize.input[1]), before.values.shape)
        steps = before.values / scale
        element = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        codes = np.rint(steps) if "int" in element.name else steps.astype(element).astype(np.float32)
        stored = numpy_helper.to_array(self.stored[before.name]).astype(np.float32)
        again = np.sort((codes * scale).astype(self._stored_type(before.name)).astype(np.float32), axis=None)
        return _Walked(before.name, codes, _type(kind), bool((again == np.sort(stored, axis=None)).all()))

    def _stored_type(self, name: str) -> np.dtype:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.stored[name].data_type))

    def _scale(self, name: str) -> np.ndarray:
        if name in self.stored:
            return self._constant(name).astype(np.float32)
        node = self.made[name]  # NVFP4: scales that are dequantised themselves
        return self._constant(node.input[0]).astype(np.float32) * self._constant(node.input[1]).astype(np.float32)

    def _constant(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.stored[name])

    def _along(self, node: onnx.NodeProto, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Scales or zero points, to be broadcast over a tensor of this shape."""
        values, axis, block = np.asarray(values), _attribute(node, "axis", 1), _attribute(node, "block_size", 0)
        if values.size == 1:
            return values.reshape(())
        if block:
            return np.repeat(values, block, axis=axis).take(range(shape[axis]), axis=axis)
        wide = [1] * len(shape)
        wide[axis] = -1
        return values.reshape(wide)


def _as_matrix(node: onnx.NodeProto, values: np.ndarray) -> tuple[np.ndarray, int]:
    """w[out, k] of an operand, and the length that groups run along."""
    if node.op_type == "Conv":  # [O, C, *spatial]: along C
        return np.moveaxis(values, 1, -1).reshape(len(values), -1), values.shape[1]
    if node.op_type == "MatMul" or not _attribute(node, "transB", 0):
        values = np.swapaxes(values, -1, -2)
    return np.ascontiguousarray(values).reshape(-1, values.shape[-1]), values.shape[-1]


def _attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _type(kind: int) -> str:
    return str(onnx.TensorProto.DataType.Name(kind)).lower()


def main(words: list[str]) -> int:
    """The command line; 1 where a weight breaks the rule that was given."""
    if words[0] == "--packed":
        print(f"{ratio(Path(words[1]), Path(words[2])):.2f}x")
        return 0
    rule, failed = (words[1] if len(words) > 1 else ""), False
    for weight in weights_of(Path(words[0])):
        failed |= bool(rule) and bool(weight.element) and weight.broken(rule) != 0
        bits = "4 bits" if weight.four_bits else f"{weight.ends[0]:g}..{weight.ends[1]:g}"
        shape = " x ".join(map(str, weight.codes.shape))
        grid = "" if weight.on_grid else ", NOT on its grid"
        print(f"{weight.name}: {shape} {weight.element or 'float'} {bits} {' '.join(weight.rules) or 'dense'}{grid}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
