"""What a vision transformer's graph consists of, recognised by structure and never by name.

    attention   Softmax between two MatMuls of data (or one fused Attention node)
    roles       what each site is to attention, MLPs and the model's ends: see `graph.roles`
    block       consecutive sites up to and including an fc2
    stage       consecutive blocks of one width; a model of one width has four stages of equal depth (docs/method.md)

A block's output is the residual Add after its fc2; a stage's is its last block's: the critical feature maps of the
paper. Structure adds names, attention products and teaching points. What is pruned and quantised does not depend on it:
`graph.exclusions` says what is not.

Source: GPUSQ-ViT section 3.2-3.3, figure 3. Limits: convolutional attention, talking heads (a product between Softmax
and values) and Mamba blocks are plain `linear` and `conv`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.leftovers import Leftover, find_leftovers
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.operators import Is, is_standard, operators
from gpusq_onnx.graph.roles import BLOCK_ROLES, name_attention, name_ends, name_mlps
from gpusq_onnx.graph.shapes import Shapes, Types, infer_shapes
from gpusq_onnx.graph.sites import Site, find_sites
from gpusq_onnx.graph.snapshot import Snapshot

# From the scores to the Softmax's reader: masks and casts.
_AFTER_SOFTMAX = operators(Is.RETYPES | Is.QUANTISES | Is.DEQUANTISES) | {
    *("Identity", "Dropout", "Where", "IsNaN", "Mul", "Reshape")
}


@dataclass(eq=False)
class Attention:
    """One attention core: scores = MatMul(q, k'), weights = Softmax(scores), context = MatMul(weights, v).

    `softmax` is the tensor that the second MatMul reads as its left operand; `tokens` is the longer side of the score
    matrix, None where it is not known; `proj` is the site that the context goes to. A fused Attention node is both
    `scores` and `context`.
    """

    scores: gs.Node
    context: gs.Node
    tokens: int | None
    proj: Site | None = None

    @property
    def fused(self) -> bool:
        """Whether this is one Attention operator (opset 23), whose inner products no Q/DQ can reach."""
        return self.scores is self.context


@dataclass(eq=False)
class Block:
    """One transformer block: its sites, its width and the name of its output tensor."""

    index: int
    sites: list[Site] = field(default_factory=list)
    output: str = ""
    width: int = 0


@dataclass
class Structure:
    """A model's sites with their roles, the products that are none, its attention cores, blocks and stages, and its
    shapes for one image."""

    sites: list[Site]
    leftovers: list[Leftover]
    attentions: list[Attention]
    blocks: list[Block]
    stages: list[list[Block]]
    shapes: Shapes
    types: Types
    flow: Dataflow

    @property
    def feature_maps(self) -> list[str]:
        """The critical feature maps: the output of the last block of each stage."""
        return [stage[-1].output for stage in self.stages if stage[-1].output]


def analyse(model: Model, snapshot: Snapshot | None = None) -> Structure:
    """Find sites, attention, blocks and stages, and give every site its role; `snapshot`: of the model as it is."""
    flow = Dataflow(model)
    sites = find_sites(model, flow)
    shapes, types = infer_shapes(model, snapshot=snapshot)
    owner = {id(reader): site for site in sites for reader in site.readers}
    attentions = _find_attention(flow, shapes, owner)
    for attention in attentions:
        values = attention.context.inputs[2 if attention.fused else 1]
        operands = (*attention.scores.inputs[:2], values)
        attention.proj = name_attention(operands, attention.context.outputs[0], flow, owner)
    name_mlps(sites, flow, owner)
    name_ends(sites, model, flow, owner)
    blocks = _find_blocks(sites, flow)
    leftovers = find_leftovers(flow, sites)
    return Structure(sites, leftovers, attentions, blocks, _find_stages(blocks), shapes, types, flow)


def _find_attention(flow: Dataflow, shapes: Shapes, owner: dict[int, Site]) -> list[Attention]:
    found = []

    def is_product(node: gs.Node) -> bool:
        """A MatMul of two tensors of data: relative positions multiply with a table, and are no scores."""
        return node.op == "MatMul" and id(node) not in owner and len(flow.data_inputs(node)) == 2

    for node in flow.nodes:
        if node.op == "Attention" and is_standard(node):
            shape = shapes.get(node.inputs[0].name, ())
            found.append(Attention(node, node, shape[-2] if len(shape) > 1 and isinstance(shape[-2], int) else None))
        if node.op != "Softmax" or not flow.is_data(node.inputs[0]):
            continue
        products = flow.origins(node.inputs[0], lambda n: id(n) in owner or is_product(n))
        scores = [n for n in products if is_product(n)]
        reached = flow.reach(node.outputs, _AFTER_SOFTMAX)
        contexts = [n for t in reached.values() for n in t.outputs if is_product(n)]
        if len(scores) == 1 and len(contexts) == 1:
            dims = shapes.get(scores[0].outputs[0].name, ())[-2:]
            known = [d for d in dims if isinstance(d, int)]
            found.append(Attention(scores[0], contexts[0], max(known) if len(known) == 2 else None))
    return found


def _find_blocks(sites: list[Site], flow: Dataflow) -> list[Block]:
    blocks: list[Block] = []
    for site in sites:
        if site.role not in BLOCK_ROLES:
            continue
        if not blocks or (blocks[-1].output and site.role != "fc2"):
            blocks.append(Block(len(blocks)))
        block = blocks[-1]
        site.block = block.index
        block.sites.append(site)
        if site.role == "fc2":
            joined = flow.joins(site.output)
            block.output, block.width = joined.name if joined is not None else "", site.out
    return blocks


def _find_stages(blocks: list[Block]) -> list[list[Block]]:
    whole = [b for b in blocks if b.output]
    stages: list[list[Block]] = []
    for block in whole:
        if not stages or stages[-1][-1].width != block.width:
            stages.append([])
        stages[-1].append(block)
    if len(stages) == 1 and len(whole) >= 4:
        edges = [round(i * len(whole) / 4) for i in range(5)]
        stages = [whole[a:b] for a, b in pairwise(edges)]
    return stages
