"""Einsum as MatMul, which pruning, quantisation and TensorRT's INT8 kernels know.

The letters of `"bhqd,bhkd->bhqk"` are sorted by where they occur:

    batch    in both operands and in the result          MatMul's leading axes
    sum      in both operands, not in the result         the reduction axis
    left     in the first operand and in the result      rows
    right    in the second operand and in the result     columns

    result = Transpose(Reshape(MatMul([batch, left, sum], [batch, sum, right])))

Transposes and Reshapes that change nothing are left out. A constant operand always goes to the right and is laid out
at once as [sum, right]: Keras's EinsumDense `abc,cde->abde` becomes MatMul(x, W[c, d*e]) and a Reshape. One operand
whose axes are only put in order is a Transpose.

Source: ONNX Einsum-12, TensorFlow's `EinsumDense` and `MultiHeadAttention`. Limits: no letter twice in an operand, no
sum over one operand alone; a constant with batch letters (one matrix a head) is no Linear and stays.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.rewrites.rule import Editor, Known, Unfit
from gpusq_onnx.graph.shapes import Dim, is_float


@dataclass(frozen=True)
class Contraction:
    """One product: its operands, the letters of each and of the result, and the size of every letter."""

    operands: tuple[gs.Tensor, ...]
    terms: tuple[str, ...]
    result: str
    sizes: dict[str, Dim]

    def letters(self) -> tuple[str, str, str, str]:
        """Batch, left, sum and right; batch and left in the first operand's order, sum in the second's."""
        a, b = self.terms
        batch = "".join(c for c in a if c in b and c in self.result)
        left = "".join(c for c in a if c not in b)
        summed = "".join(c for c in b if c in a and c not in self.result)
        return batch, left, summed, "".join(c for c in b if c not in a)

    def product(self, letters: str) -> int | None:
        """How many elements these axes have; None where one is dynamic."""
        known = [size for size in (self.sizes[c] for c in letters) if isinstance(size, int)]
        return math.prod(known) if len(known) == len(letters) else None

    def gathered(self) -> tuple[tuple[list[str], list[str]], tuple[list[str], list[str]]]:
        """The axes of each operand, laid out, and those that MatMul reads: adjacent letters are one axis."""
        batch, left, summed, right = self.letters()
        rows = [*left] if isinstance(self.operands[1], gs.Constant) else [left]
        return (
            ([*batch, *left, *summed], [*batch, *rows, summed]),
            ([*batch, *summed, *right], [*batch, summed, right]),
        )

    def scattered(self) -> tuple[list[str], list[str]]:
        """The axes that MatMul makes, and those of the result in their order."""
        batch, left, _, right = self.letters()
        rows = [*left] if isinstance(self.operands[1], gs.Constant) else [left]
        return [*batch, *rows, right], [*batch, *left, *right]

    def target(self, source: Sequence[str], target: Sequence[str]) -> list[int]:
        """Reshape's target from one grouping to another. Raises Unfit where more than one size is not known."""
        sizes = []
        for axis, letters in enumerate(target):
            kept = axis < len(source) and source[axis] == letters
            sizes.append(0 if kept and letters else self.product(letters))
        if sum(size is None for size in sizes) > 1 and source != target:
            raise Unfit("several axes become one whose size is not known before the model runs")
        return [-1 if size is None else size for size in sizes]


def check_einsum(node: gs.Node, known: Known) -> Contraction:
    """The contraction that an Einsum node is. Raises Unfit."""
    if not is_float(known.type(node.outputs[0])):
        raise Unfit("its values are no floats")
    if not known.flow.data_inputs(node):
        raise Unfit("all its operands are constant: the product is folded when the engine is built")
    if len(node.inputs) > 2:
        raise Unfit(f"it multiplies {len(node.inputs)} tensors at once")
    found = _read(str(node.attrs["equation"]), node.inputs, [known.shape(tensor) for tensor in node.inputs])
    if len(found.terms) == 1:
        if sorted(found.terms[0]) != sorted(found.result):
            raise Unfit("it sums over one tensor, which is no product")
        return found
    if isinstance(found.operands[0], gs.Constant):
        found = Contraction(found.operands[::-1], found.terms[::-1], found.result, found.sizes)
    batch, left, summed, right = found.letters()
    if any(c not in found.result for c in left + right):
        raise Unfit("it sums over an axis of one operand alone")
    if not summed:
        raise Unfit("it sums over no axis: a product element by element")
    if isinstance(found.operands[1], gs.Constant):
        if batch:
            raise Unfit(f"its constant is one matrix for each {batch!r}, which is no Linear")
        if not (left and right):
            raise Unfit("it multiplies with a vector")
    for source, target in (*found.gathered(), found.scattered()):
        found.target(source, target)
    return found


def rewrite_einsum(node: gs.Node, form: Contraction, editor: Editor) -> gs.Tensor:
    """The nodes that compute the contraction; returns the result."""
    a, *others = form.operands
    if not others:
        return editor.add("Transpose", a, perm=[form.terms[0].index(c) for c in form.result])
    (b,) = others
    batch, left, summed, right = form.letters()
    a = editor.transpose(a, [form.terms[0].index(c) for c in batch + left + summed])
    order = [form.terms[1].index(c) for c in batch + summed + right]
    of_a, of_b = form.gathered()
    a = _reshaped(editor, form, a, *of_a)
    if isinstance(b, gs.Constant):
        values = b.values.transpose(order).reshape(form.product(summed), form.product(right))
        b = b if order == sorted(order) and b.shape == values.shape else editor.layout_of(b, values)
    else:
        b = _reshaped(editor, form, editor.transpose(b, order), *of_b)
    product = _reshaped(editor, form, editor.add("MatMul", a, b), *form.scattered())
    return editor.transpose(product, [(batch + left + right).index(c) for c in form.result])


def _reshaped(
    editor: Editor, form: Contraction, tensor: gs.Tensor, source: Sequence[str], target: Sequence[str]
) -> gs.Tensor:
    return tensor if source == target else editor.reshape(tensor, form.target(source, target))


def _read(equation: str, operands: Sequence[gs.Tensor], shapes: Sequence[tuple[Dim, ...]]) -> Contraction:
    """The equation with its ellipses spelled out. Raises Unfit."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    ranks = [len(shape) for shape in shapes]
    free = [c for c in string.ascii_letters if c not in equation]
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    most = max((n for n, term in zip(hidden, terms, strict=True) if "..." in term), default=0)
    dots = "".join(free[:most])
    spelled = [t.replace("...", dots[most - n :] if n else "") for t, n in zip(terms, hidden, strict=True)]
    if not arrow:
        once = "".join(spelled)
        result = dots + "".join(sorted(c for c in once if once.count(c) == 1 and c not in dots))
    result = result.replace("...", dots)
    if any(len(set(term)) < len(term) for term in spelled):
        raise Unfit("a letter occurs twice in one operand: a diagonal")
    sizes: dict[str, Dim] = {}
    for term, shape in zip(spelled, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            if isinstance(sizes.get(letter), int) and isinstance(size, int) and sizes[letter] != size:
                raise Unfit("an axis of length one is broadcast")
            sizes[letter] = size if isinstance(size, int) else sizes.get(letter, size)
    return Contraction(tuple(operands), tuple(spelled), result, sizes)
