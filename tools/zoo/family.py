"""What a family of the foreign corpus is made with: builders of timm, torchvision and transformers, and noise to read.

What builds a model imports torch, timm or transformers when it is called: a family and its samples need only numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Build = Callable[[bool], Any]
Draw = Callable[[np.random.Generator, int], NDArray[Any]]


def noise(*shape: int) -> Draw:
    """float32 noise, `shape` a sample."""
    return lambda rng, count: rng.standard_normal((count, *shape), np.float32)


def ids(below: int, *shape: int) -> Draw:
    """int64 from 0 to `below` - 1: tokens, labels."""
    return lambda rng, count: rng.integers(0, below, (count, *shape))


def always(*values: int) -> Draw:
    """The same int64 in each sample."""
    return lambda rng, count: np.tile(np.array(values, np.int64), (count, 1))


def pixels(*shape: int) -> Draw:
    """uint8, 0 to 255."""
    return lambda rng, count: rng.integers(0, 256, (count, *shape), np.uint8)


def image(size: int) -> dict[str, Draw]:
    """One square image."""
    return {"pixel_values": noise(3, size, size)}


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        build: a torch module that takes the inputs in their order, with fused attention or without; None: a graph
            written by hand (`tools.zoo.keras_form`).
        forms: see `tools.zoo.foreign`.
        inputs: by name, what draws a batch of samples.
        free: by input, axes besides the batch that the form "free" leaves open.
    """

    build: Build | None
    forms: tuple[str, ...] = ("legacy17", "dynamo")
    inputs: Mapping[str, Draw] = field(default_factory=lambda: image(224))
    free: Mapping[str, Mapping[int, str]] = field(default_factory=lambda: {"pixel_values": {2: "height", 3: "width"}})

    def samples(self, count: int, form: str) -> dict[str, NDArray[Any]]:
        """Arrays by input name, `count` samples along axis 0, of the types that a form takes. The same each time."""
        rng = np.random.default_rng(0)
        drawn = {name: draw(rng, count) for name, draw in self.inputs.items()}
        return {k: x.astype(np.float16) if form == "half" and x.dtype.kind == "f" else x for k, x in drawn.items()}


def timm_model(name: str, **options: Any) -> Build:
    """A timm model, not pretrained."""

    def build(fused: bool) -> Any:
        import timm

        timm.layers.set_fused_attn(fused)
        return timm.create_model(name, pretrained=False, **options)

    return build


def torchvision_model(name: str, **arguments: Any) -> Build:
    """A torchvision model, not pretrained."""

    def build(fused: bool) -> Any:
        import torchvision

        return getattr(torchvision.models, name)(**arguments)

    return build


def hf_model(
    kind: str, output: str, *, config: str, fields: dict[str, Any], names: tuple[str, ...] = (), **fixed: Any
) -> Build:
    """A transformers model `kind` of the configuration `config` with `fields`; `output` names the fields it gives.

    `names` are the arguments that the inputs are given as, in their order; `fixed` are arguments besides.
    """

    def build(fused: bool) -> Any:
        import torch
        import transformers

        class One(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                made = getattr(transformers, config)(**fields)
                made._attn_implementation = "sdpa" if fused else "eager"
                self.model = getattr(transformers, kind)(made)

            def forward(self, *inputs: Any) -> Any:
                given = dict(zip(names, inputs, strict=True)) if names else {}
                found = self.model(*(() if names else inputs), **given, **fixed)
                wanted = output.split()
                return tuple(found[field] for field in wanted) if len(wanted) > 1 else found[output]

        return One()

    return build


def sam_decoder(fused: bool) -> Any:
    """SAM's prompt encoder and mask decoder as they are deployed: image embeddings and points to masks and scores."""
    import torch
    import transformers

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "global_attn_indexes": (0,)}
            made = transformers.SamConfig(vision_config=small)
            made._attn_implementation = "sdpa" if fused else "eager"
            self.model = transformers.SamModel(made)
            self.model.vision_encoder = torch.nn.Identity()

        def forward(self, embeddings: Any, points: Any, labels: Any) -> Any:
            model = self.model
            place = model.get_image_wide_positional_embeddings().repeat(embeddings.shape[0], 1, 1, 1)
            sparse, dense = model.prompt_encoder(
                input_points=points, input_labels=labels, input_boxes=None, input_masks=None
            )
            masks, scores = model.mask_decoder(
                image_embeddings=embeddings, image_positional_embeddings=place, sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense, multimask_output=True,
            )[:2]  # fmt: skip
            return masks, scores

    return Decoder()
