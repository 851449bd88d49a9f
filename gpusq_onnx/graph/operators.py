"""What an operator is to this tool, one row each: what all walks over a graph ask about, instead of lists of their own.

    MOVES       each number that it gives is one that it reads, in another place or several times, or a constant fill
      INDEXES   of these: another operand, which may be data, says the places
      JOINS     of these: the numbers come from several operands
      WRITES    of these: into one operand, at places that another says
    RETYPES     gives the same numbers in another type
    MEASURES    reads shapes and no numbers
    QUANTISES, DEQUANTISES   the two halves of a Q/DQ pair
    AFFINE      with all other operands constant, a product or a sum
    ACTIVATES   what an activation function is made of, fused or taken apart (GELU, SiLU, ReLU and approximations)
    NORM        a normalisation in one node
    PRODUCT     multiplies matrices or kernels; LINEAR: at each position by itself
    REDUCES     over axes
    RANDOM      gives other numbers each time
    CHOOSES     gives positions, or what lies at the best of them

A walk says what it passes as a sum of these (`operators`), and names single operators only where its reason is its own.

Source: ONNX operator specifications. Limits: an operator that is in no row has no property; names are of the default
domain, but for onnxruntime's SimplifiedLayerNormalization and TensorRT's quantiser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Flag, auto
from types import MappingProxyType

import onnx_graphsurgeon as gs

ONNXRUNTIME = "com.microsoft"  # the domain of its own operators
STANDARD = ("", "ai.onnx")  # the two spellings of the default domain
FP4_QUANTISER = "TRT_FP4DynamicQuantize"


class Is(Flag):
    """Properties of operators; see the module's text."""

    MOVES = auto()
    INDEXES = auto()
    JOINS = auto()
    WRITES = auto()
    RETYPES = auto()
    MEASURES = auto()
    QUANTISES = auto()
    DEQUANTISES = auto()
    AFFINE = auto()
    ACTIVATES = auto()
    NORM = auto()
    PRODUCT = auto()
    LINEAR = auto()
    REDUCES = auto()
    RANDOM = auto()
    CHOOSES = auto()


_ROWS: Mapping[str, Is] = MappingProxyType(
    {
        "Identity": Is.MOVES,
        "Dropout": Is.MOVES,
        "Reshape": Is.MOVES,
        "Flatten": Is.MOVES,
        "Squeeze": Is.MOVES,
        "Unsqueeze": Is.MOVES,
        "Transpose": Is.MOVES,
        "DepthToSpace": Is.MOVES,
        "SpaceToDepth": Is.MOVES,
        "Slice": Is.MOVES,
        "Split": Is.MOVES,
        "Expand": Is.MOVES,
        "Tile": Is.MOVES,
        "Pad": Is.MOVES,
        "Concat": Is.MOVES | Is.JOINS,
        "Gather": Is.MOVES | Is.INDEXES,
        "GatherElements": Is.MOVES | Is.INDEXES,
        "GatherND": Is.MOVES | Is.INDEXES,
        "ScatterElements": Is.MOVES | Is.WRITES,
        "ScatterND": Is.MOVES | Is.WRITES,
        "Cast": Is.RETYPES,
        "Shape": Is.MEASURES,
        "Size": Is.MEASURES,
        "QuantizeLinear": Is.QUANTISES,
        FP4_QUANTISER: Is.QUANTISES,
        "DequantizeLinear": Is.DEQUANTISES,
        "Add": Is.AFFINE,
        "Sub": Is.AFFINE,
        "Mul": Is.AFFINE,
        "Div": Is.AFFINE,
        "Gelu": Is.ACTIVATES,
        "Erf": Is.ACTIVATES,
        "Tanh": Is.ACTIVATES,
        "Sigmoid": Is.ACTIVATES,
        "Relu": Is.ACTIVATES,
        "LeakyRelu": Is.ACTIVATES,
        "HardSwish": Is.ACTIVATES,
        "HardSigmoid": Is.ACTIVATES,
        "Elu": Is.ACTIVATES,
        "Selu": Is.ACTIVATES,
        "Softplus": Is.ACTIVATES,
        "Mish": Is.ACTIVATES,
        "Swish": Is.ACTIVATES,
        "Pow": Is.ACTIVATES,
        "LayerNormalization": Is.NORM,
        "SimplifiedLayerNormalization": Is.NORM,
        "RMSNormalization": Is.NORM,
        "GroupNormalization": Is.NORM,
        "InstanceNormalization": Is.NORM,
        "BatchNormalization": Is.NORM | Is.AFFINE,
        "MatMul": Is.PRODUCT | Is.LINEAR,
        "Gemm": Is.PRODUCT | Is.LINEAR,
        "Conv": Is.PRODUCT,
        "ConvTranspose": Is.PRODUCT,
        "Einsum": Is.PRODUCT,
        "ReduceMean": Is.REDUCES,
        "ReduceSum": Is.REDUCES,
        "ReduceSumSquare": Is.REDUCES,
        "ReduceL1": Is.REDUCES,
        "ReduceL2": Is.REDUCES,
        "ReduceLogSum": Is.REDUCES,
        "ReduceLogSumExp": Is.REDUCES,
        "ReduceProd": Is.REDUCES,
        "ReduceMax": Is.REDUCES,
        "ReduceMin": Is.REDUCES,
        "RandomNormal": Is.RANDOM,
        "RandomNormalLike": Is.RANDOM,
        "RandomUniform": Is.RANDOM,
        "RandomUniformLike": Is.RANDOM,
        "Bernoulli": Is.RANDOM,
        "Multinomial": Is.RANDOM,
        "TopK": Is.CHOOSES,
        "ArgMax": Is.CHOOSES,
        "ArgMin": Is.CHOOSES,
        "NonMaxSuppression": Is.CHOOSES,
    }
)


def operators(properties: Is) -> frozenset[str]:
    """The operators that have any of the properties."""
    return frozenset(name for name, own in _ROWS.items() if own & properties)


QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})  # ONNX's own pair, whose second operand is a scale
QUANTISERS = operators(Is.QUANTISES)
MOVES = operators(Is.MOVES)
MEASURES = operators(Is.MEASURES)
NORMS = operators(Is.NORM)
PRODUCTS = operators(Is.PRODUCT)
LINEAR = operators(Is.LINEAR)

WEIGHTS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"MatMul": (1, 0), "Gemm": (1,), "Conv": (1,), "ConvTranspose": (1,)}
)
"""The operands of a product that may be its weight, the usual one first."""


PLACES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "Gather": (1,),
        "GatherElements": (1,),
        "GatherND": (1,),
        "ScatterElements": (1,),
        "ScatterND": (1,),
        "GridSample": (1,),
        "RoiAlign": (1, 2),
        "NonZero": (0,),
    }
)
"""The operands that say where another's numbers are read or written: of these, none gets into the result."""


def says_places(node: gs.Node, tensor: gs.Tensor) -> bool:
    """Whether the node reads a tensor only as places."""
    slots = [slot for slot, read in enumerate(node.inputs) if read is tensor]
    return bool(slots) and set(slots) <= set(PLACES.get(node.op, ()))


def factors(product: gs.Node) -> Sequence[gs.Tensor]:
    """The operands that a product multiplies: not its bias."""
    found: Sequence[gs.Tensor] = product.inputs if product.op == "Einsum" else product.inputs[:2]
    return found


def constant_added(product: gs.Node) -> tuple[gs.Node, int] | None:
    """The Add that alone reads a product and adds a constant to it, and the constant's place: a bias, mostly."""
    readers = product.outputs[0].outputs
    if len(readers) != 1 or readers[0].op != "Add":
        return None
    places = (place for place, tensor in enumerate(readers[0].inputs) if isinstance(tensor, gs.Constant))
    return next(((readers[0], place) for place in places), None)


def is_standard(node: gs.Node) -> bool:
    """Whether a node is of ONNX's default domain."""
    return (node.domain or "") in STANDARD
