"""What each site is to the model, by structure: names for people, selectors and the placement of Q/DQ pairs.

    q, k, v      the sites that attention's operands come from ("qkv" where one site gives all three)
    proj         the site that attention's output goes to
    fc1, fc2     two sites with an activation function between, the second ending in a residual Add
    patch_embed  a first layer whose stride is its kernel, or that is a Linear on patches
    stem         another first layer: a convolution on the image
    head         a site whose output gets to a graph output, or to a choice of the best (TopK), through no other site,
                 no norm, no residual Add and no product of two tensors that are data: features that masks or
                 similarities are products of are no logits, and their errors average out. Where it only says places
                 (boxes whose features are read next), it is not followed
    linear, conv  anything else

No role is given across a sum of different branches: a walk that comes to one has left the part it started in. A site
that is two things at once, say keys of one attention and values of another, is `linear` or `conv`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from gpusq_onnx.graph.dataflow import CARRIERS, ELEMENTWISE, Dataflow
from gpusq_onnx.graph.model import Model, TensorSpec
from gpusq_onnx.graph.operators import NORMS, PRODUCTS, Is, operators, says_places
from gpusq_onnx.graph.sites import Site

BLOCK_ROLES = frozenset("qkv q k v qk kv proj fc1 fc2".split())
FIRST_LAYERS = ("patch_embed", "stem")
ROLES = (*sorted(BLOCK_ROLES), *FIRST_LAYERS, "head", "linear", "conv")

# From attention's output to the projection: no sum, which may be a residual one.
_TO_PROJECTION = CARRIERS - {"Add", "Sub"} | NORMS
_BETWEEN_LAYERS = PRODUCTS | {"Attention", "Softmax"}
_OF_TWO = operators(Is.AFFINE) - NORMS
_ACTIVATIONS = operators(Is.ACTIVATES)
_CHOICES = operators(Is.CHOOSES)
_COLOURS = (1, 3, 4)

Owner = Mapping[int, Site]


def name_attention(operands: Sequence[gs.Tensor], context: gs.Tensor, flow: Dataflow, owner: Owner) -> Site | None:
    """Give the sites that make q, k and v their letters, and the one that reads the context its role; returns that."""
    letters: dict[int, str] = {}
    found: dict[int, Site] = {}
    for letter, operand in zip("qkv", operands, strict=True):
        for site in _makers(operand, flow, owner, {}) or ():
            found[id(site)] = site
            letters[id(site)] = letters.get(id(site), "") + letter
    for key, site in found.items():
        _assign(site, letters[key])
    proj = None
    for tensor in flow.reach([context], _TO_PROJECTION).values():
        for node in tensor.outputs:
            after = owner.get(id(node))
            if after is not None and not after.role:
                after.role, proj = "proj", after
    return proj


def name_mlps(sites: Sequence[Site], flow: Dataflow, owner: Owner) -> None:
    """Name the pairs of Linears with an activation function between, a depthwise Conv beside it or not."""
    by_input: dict[str, list[Site]] = {}
    for site in sites:
        by_input.setdefault(site.activation.name, []).append(site)
    for siblings in by_input.values():
        free = [s for s in siblings if not s.role and s.is_linear]  # SwiGLU: gate and up read one tensor
        region = flow.reach([s.output for s in free], ELEMENTWISE, depthwise=True)
        if not any(n.op in _ACTIVATIONS for t in region.values() for n in t.inputs):
            continue
        for tensor in region.values():
            for node in tensor.outputs:
                after = owner.get(id(node))
                if after is None or after in free or not after.is_linear:
                    continue
                if flow.joins(after.output) is not None:
                    after.role = "fc2"
                    for site in free:
                        site.role = "fc1"


def name_ends(sites: Sequence[Site], model: Model, flow: Dataflow, owner: Owner) -> None:
    """Name the first layers, the heads, and all that no name was found for."""
    images = {spec.name for spec in model.inputs() if _is_image(spec)}
    for site in sites:
        if not site.role:
            site.role = _end(site, images, flow, owner) or ("linear" if site.is_linear else "conv")


def _makers(tensor: gs.Tensor, flow: Dataflow, owner: Owner, known: dict[str, set[Site] | None]) -> set[Site] | None:
    """The sites that make a tensor; None where it is anything else than made of sites, each sum of one of them."""
    if tensor.name in known:
        return known[tensor.name]
    stack = [tensor]  # no recursion: graphs are deep
    while stack:
        current = stack[-1]
        if current.name in known:
            stack.pop()
            continue
        producer = current.inputs[0] if current.inputs else None
        site = owner.get(id(producer))
        if site is not None and site.group == 1:
            known[current.name] = {site}
        elif producer is None or (site is None and producer.op in _BETWEEN_LAYERS):
            known[current.name] = None
        else:
            before = [t for t in flow.data_inputs(producer) if producer.op != "Concat" or not _is_fed(t, flow)]
            missing = [t for t in before if t.name not in known]
            if missing:
                stack.extend(missing)
            else:
                known[current.name] = _together(producer, [known[t.name] for t in before])
    return known[tensor.name]


def _is_fed(tensor: gs.Tensor, flow: Dataflow) -> bool:
    """Whether a tensor is an input of the model, moved at most: the keys and values of earlier tokens, in a cache."""
    while tensor.inputs:
        producer = tensor.inputs[0]
        before = flow.data_inputs(producer)
        if producer.op not in CARRIERS or len(before) != 1:
            return False
        tensor = before[0]
    return True


def _together(node: gs.Node, parts: Sequence[set[Site] | None]) -> set[Site] | None:
    """What a node is made of: of all parts, but a sum of parts from different sites is a residual stream."""
    union: set[Site] = set()
    for part in parts:
        if part is None:
            return None
        union |= part
    return None if not union or (node.op in _OF_TWO and len(union) > 1) else union


def _assign(site: Site, letters: str) -> None:
    if letters not in BLOCK_ROLES or (site.role and site.role != letters):
        site.role = "linear" if site.is_linear else "conv"
    else:
        site.role = letters


def _is_image(spec: TensorSpec) -> bool:
    """Whether an input holds pixels: colours among its inner dimensions, or all of these open."""
    inner = spec.shape[1:]
    return len(inner) >= 3 and (any(d in _COLOURS for d in inner) or not any(isinstance(d, int) for d in inner))


def _end(site: Site, images: set[str], flow: Dataflow, owner: Owner) -> str | None:
    if _reads(site.activation, images, flow):
        kernel = list(site.weight.shape[2:])
        tiles = list(site.readers[0].attrs.get("strides", ())) == kernel and max(kernel, default=1) > 1
        return "patch_embed" if tiles or site.is_linear else "stem"
    return "head" if _reaches_output(site, flow, owner) else None


def _reads(tensor: gs.Tensor, images: set[str], flow: Dataflow) -> bool:
    """Whether a tensor is an image, cut and scaled at most."""
    queue, seen = [tensor], {tensor.name}
    while queue:
        current = queue.pop()
        if current.name in images:
            return True
        for producer in current.inputs:
            if producer.op in CARRIERS | {"Resize"}:
                new = [t for t in flow.data_inputs(producer) if t.name not in seen]
                seen.update(t.name for t in new)
                queue.extend(new)
    return False


def _reaches_output(site: Site, flow: Dataflow, owner: Owner) -> bool:
    """Whether the output ends as it is: in a graph output, or in a choice, through nothing that a head excludes."""
    queue, seen, ends = [site.output], set(), False
    while queue:
        tensor = queue.pop()
        if tensor.name in seen:
            continue
        seen.add(tensor.name)
        ends |= tensor.name in flow.outputs
        for node in (flow.holder(reader) for reader in tensor.outputs if not says_places(reader, tensor)):
            if id(node) in owner or node.op in NORMS or _is_residual(node, tensor, site, flow):
                return False
            if node.op in _CHOICES:
                ends = True
            elif node.op not in PRODUCTS or len(flow.data_inputs(node)) == 1:
                queue.extend(t for t in node.outputs if flow.is_data(t))
    return ends


def _is_residual(node: gs.Node, branch: gs.Tensor, site: Site, flow: Dataflow) -> bool:
    """Whether a node adds the branch to what the branch was made from."""
    others = [t for t in flow.data_inputs(node) if t is not branch] if node.op == "Add" else []
    makers = {id(producer) for other in others for producer in other.inputs}
    direct = any(other is site.activation for other in others)
    return direct or bool(makers and flow.origins(site.activation, lambda upstream: id(upstream) in makers))
