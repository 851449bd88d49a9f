"""The student as it is trained: whole, or cut at the compared maps, each part fed the teacher's activations.

Cut, no gradient crosses from one part into the next: every part learns its own piece of the teacher's function at once,
from clean inputs. Both forms hold the same parameters.

Source: ours, after layer-wise reconstruction (AdaRound, BRECQ), with all parts in one step.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gpusq_onnx.torchgraph.network import Network


class Student(nn.Module):
    """One module of both forms, for whatever wraps modules.

    Args:
        whole: the network.
        parts: the same network with inputs for all maps but the last, sharing `whole`'s parameters; or None.
    """

    def __init__(self, whole: Network, parts: Network | None) -> None:
        super().__init__()
        self.whole, self.parts = whole, parts

    def forward(self, inputs: Sequence[Tensor], given: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Outputs and taps by ONNX name; with `given`, the teacher's maps, part by part."""
        if given is None or self.parts is None:
            return self.whole(*inputs)  # type: ignore[no-any-return]
        return self.parts(*inputs, *given)  # type: ignore[no-any-return]
