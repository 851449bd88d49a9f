"""What a vision transformer's graph consists of, recognised by structure and never by name.

    attention   Softmax between two MatMuls of data (or one fused Attention node)
    q, k, v     the sites that attention's operands come from ("qkv" where one site gives all three)
    proj        the site that attention's output goes to
    fc1, fc2    two sites with an activation function between, the second ending in a residual Add
    patch_embed the Conv on the image whose stride is its kernel
    head        a site whose output reaches a graph output and no other site
    block       consecutive sites up to and including an fc2
    stage       consecutive blocks of one width; a model of one width has four stages of equal depth (docs/method.md)

A block's output is the residual Add behind its fc2; a stage's is its last block's: the critical feature maps of the
paper.

Source: GPUSQ-ViT section 3.2-3.3, figure 3. Limits: convolutional attention and Mamba blocks are plain `linear`/`conv`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.dataflow import ELEMENTWISE, NONLINEAR, Dataflow
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.shapes import Shapes, Types, infer_shapes
from gpusq_onnx.graph.sites import Site, before_qdq, find_sites

BLOCK_ROLES = frozenset("qkv q k v qk kv proj fc1 fc2".split())
ROLES = (*sorted(BLOCK_ROLES), "patch_embed", "head", "linear", "conv")
_LAYOUT = frozenset("Reshape Transpose Squeeze Unsqueeze Flatten Cast Identity Concat Slice Mul Div LayerNormalization "
                    "QuantizeLinear DequantizeLinear Dropout Gather".split())  # fmt: skip


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
    """A model's sites with their roles, its attention cores, blocks and stages, and its shapes for one image."""

    sites: list[Site]
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


def analyse(model: Model) -> Structure:
    """Find sites, attention, blocks and stages, and give every site its role."""
    flow = Dataflow(model)
    sites = find_sites(model, flow)
    shapes, types = infer_shapes(model)
    owner = {id(reader): site for site in sites for reader in site.readers}
    attentions = _find_attention(flow, shapes, owner)
    for attention in attentions:
        _name_attention_sites(attention, flow, owner)
    _name_mlps(sites, flow, owner)
    _name_ends(sites, flow, owner)
    blocks = _find_blocks(sites, flow)
    return Structure(sites, attentions, blocks, _find_stages(blocks), shapes, types, flow)


def _find_attention(flow: Dataflow, shapes: Shapes, owner: dict[int, Site]) -> list[Attention]:
    found = []
    for node in flow.nodes:
        if node.op == "Attention" and node.domain in (None, "", "ai.onnx"):
            shape = shapes.get(node.inputs[0].name, ())
            found.append(Attention(node, node, shape[-2] if len(shape) > 1 and isinstance(shape[-2], int) else None))
        if node.op != "Softmax" or not flow.is_data(node.inputs[0]):
            continue

        def is_product(n: gs.Node) -> bool:
            return n.op == "MatMul" and id(n) not in owner

        products = flow.origins(node.inputs[0], lambda n: id(n) in owner or is_product(n))
        scores = [n for n in products if is_product(n)]
        reached = flow.reach(node.outputs, frozenset("Cast Identity Dropout Where IsNaN Mul Reshape QuantizeLinear "
                                                     "DequantizeLinear".split()))  # fmt: skip
        contexts = [n for t in reached.values() for n in t.outputs if is_product(n)]
        if len(scores) == 1 and len(contexts) == 1:
            dims = shapes.get(scores[0].outputs[0].name, ())[-2:]
            known = [d for d in dims if isinstance(d, int)]
            found.append(Attention(scores[0], contexts[0], max(known) if len(known) == 2 else None))
    return found


def _name_attention_sites(attention: Attention, flow: Dataflow, owner: dict[int, Site]) -> None:
    operands = list(attention.scores.inputs[:2]) + (
        [attention.scores.inputs[2]] if attention.fused else [attention.context.inputs[1]]
    )
    letters: dict[int, str] = {}
    for letter, operand in zip("qkv", operands, strict=True):
        for node in flow.origins(operand, lambda n: id(n) in owner):
            site = owner[id(node)]
            letters[id(site)] = letters.get(id(site), "") + letter
            site.role = letters[id(site)] if letters[id(site)] in BLOCK_ROLES else site.role
    region = flow.reach(attention.context.outputs[:1], _LAYOUT)
    for tensor in region.values():
        for node in tensor.outputs:
            after = owner.get(id(node))
            if after is not None and not after.role:
                after.role, attention.proj = "proj", after


def _name_mlps(sites: list[Site], flow: Dataflow, owner: dict[int, Site]) -> None:
    by_input: dict[str, list[Site]] = {}
    for site in sites:
        by_input.setdefault(before_qdq(site.activation).name, []).append(site)
    for siblings in by_input.values():
        free = [s for s in siblings if not s.role and s.op != "Conv"]  # SwiGLU: gate and up read one tensor
        region = flow.reach([s.output for s in free], ELEMENTWISE)
        if not any(n.op in NONLINEAR for t in region.values() for n in t.inputs):
            continue
        for tensor in region.values():
            for node in tensor.outputs:
                after = owner.get(id(node))
                if after is None or after in free or after.op == "Conv":
                    continue
                if flow.joins(after.output) is not None:
                    after.role = "fc2"
                    for site in free:
                        site.role = "fc1"


def _name_ends(sites: list[Site], flow: Dataflow, owner: dict[int, Site]) -> None:
    for site in sites:
        if site.role:
            continue
        node = site.readers[0]
        upstream = flow.origins(site.activation, lambda n: id(n) in owner)
        kernel = list(site.weight.shape[2:])
        tiles = list(node.attrs.get("strides", ())) == kernel and max(kernel, default=1) > 1
        if site.op == "Conv" and not upstream and tiles:
            site.role = "patch_embed"
        elif site.op != "Conv" and _reaches_output(site, flow, owner):
            site.role = "head"
        else:
            site.role = "conv" if site.op == "Conv" else "linear"


def _reaches_output(site: Site, flow: Dataflow, owner: dict[int, Site]) -> bool:
    queue, seen, ends = [site.output], set(), False
    while queue:
        tensor = queue.pop()
        if tensor.name in seen:
            continue
        seen.add(tensor.name)
        ends |= tensor.name in flow.outputs
        for node in tensor.outputs:
            if id(node) in owner:
                return False
            queue.extend(node.outputs)
    return ends


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
