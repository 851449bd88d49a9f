"""What a vision transformer's graph consists of, recognised by structure and never by name.

    attention   Softmax between two MatMuls of data (or one fused Attention node): see `graph.attention`
    roles       what each site is to attention, MLPs and the model's ends: see `graph.roles`
    block       consecutive sites up to and including an fc2
    stage       consecutive blocks of one width; a model of one width has four stages of equal depth (docs/method.md)

A block's output is the residual Add after its fc2; a stage's is its last block's: the critical feature maps of the
paper. Structure adds names, attention products and teaching points. What is pruned and quantised does not depend on it:
`graph.exclusions` says what is not.

Source: GPUSQ-ViT section 3.2-3.3, figure 3. Limits: convolutional attention, talking heads and Mamba blocks are plain
`linear` and `conv`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from gpusq_onnx.graph.attention import Attention, find_cores
from gpusq_onnx.graph.dataflow import Dataflow
from gpusq_onnx.graph.leftovers import Leftover, find_leftovers
from gpusq_onnx.graph.model import Model
from gpusq_onnx.graph.roles import BLOCK_ROLES, name_attention, name_ends, name_mlps
from gpusq_onnx.graph.shapes import Shapes, Types, images_of, infer_shapes
from gpusq_onnx.graph.sites import Site, find_sites
from gpusq_onnx.graph.snapshot import Snapshot


@dataclass(eq=False)
class Block:
    """One transformer block: its sites, its width and the name of its output tensor."""

    index: int
    sites: list[Site] = field(default_factory=list)
    output: str = ""
    width: int = 0


@dataclass(kw_only=True)
class Structure:
    """A model's sites with their roles, the products that are none, its attention cores, blocks and stages, and its
    shapes, which are of so many `images`; `other_softmaxes`: by the name of its output, why a Softmax is in no
    attention core."""

    sites: list[Site]
    leftovers: list[Leftover]
    attentions: list[Attention]
    other_softmaxes: dict[str, str]
    blocks: list[Block]
    stages: list[list[Block]]
    shapes: Shapes
    types: Types
    flow: Dataflow
    images: int = 1

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
    attentions, others = find_cores(flow, shapes, owner)
    scores = {id(attention.scores) for attention in attentions}
    sites = [site for site in sites if not all(id(reader) in scores for reader in site.readers)]  # learned queries
    for attention in attentions:
        values = attention.context.inputs[2 if attention.fused else 1]
        operands = (*attention.scores.inputs[:2], values)
        attention.proj = name_attention(operands, attention.context.outputs[0], flow, owner)
    name_mlps(sites, flow, owner)
    name_ends(sites, model, flow, owner)
    blocks = _find_blocks(sites, flow)
    leftovers = find_leftovers(flow, sites, attentions)
    return Structure(
        sites=sites,
        leftovers=leftovers,
        attentions=attentions,
        other_softmaxes=others,
        blocks=blocks,
        stages=_find_stages(blocks),
        shapes=shapes,
        types=types,
        flow=flow,
        images=images_of(model, shapes),
    )


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
