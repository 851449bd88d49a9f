"""The options that include a model's first and last layer, which pruning and quantising leave alone by default."""

from __future__ import annotations

from pydantic import Field

from gpusq_onnx.graph.sites import Site
from gpusq_onnx.pipeline.base import PassOptions

_FIRST = ("patch_embed", "stem")


class EndsOptions(PassOptions):
    """Options of every pass that prunes or quantises."""

    patch: bool = Field(False, description="include first layers, as the paper does (see patch-matmul)")
    head: bool = Field(False, description="include heads, as the paper does")

    def includes(self, site: Site) -> bool:
        """Whether an option asks for this site."""
        return (self.patch and site.role in _FIRST) or (self.head and site.role == "head")
