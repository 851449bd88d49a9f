"""The distillation losses, for every kind of output, and the agreement gate on feature maps.

    agree_b    1 where student and teacher name the same class for image b; per query or pixel where there are such, an
               image's agreement then being their share
    hard       CE(z_s, label), or CE(z_s, argmax z_t) without labels
    soft       KL(softmax(z_t / T) || softmax(z_s / T)), summed over classes, mean over the rest; T = 3, no T^2
    feature_i  sum_b agree_b l_i[b] / max(1, sum_b agree_b),  l_i[b] = mean((f_s - f_t)^2) / (mean(f_t^2) + eps)
               both first clamped to +-bound sqrt(mean(f_t^2)), where there is a bound: a few "massive activations" of a
               trained ViT (arXiv 2402.17762) are nearly all of a map's energy, and would be all that it teaches;
               where an image is a single number, the means are those over the batch: one number may be next to 0
    total      alpha hard + beta soft + gamma sum_i w_i feature_i        (or the mean over i)

What else counts as soft, by `tasks.kinds`: boxes, the L1 distance of queries that agree, over the teacher's farthest
coordinate in the image where that is above 1 (boxes in pixels); masks and raw outputs, l as of a feature map; detectors
with a sigmoid per class, the KL of each class's yes or no. Outputs that are probabilities become logits first
(`readings`).

Source: GPUSQ-ViT section 3.2-3.3; docs/method.md, "Losses". Several processes: the gate's denominator is the sum over
all of them, so that their mean is the whole batch's loss. Limits: with `accumulate`, each part has its own denominator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from gpusq_onnx.learn.readings import Reading, as_logits, classes_last
from gpusq_onnx.learn.settings import LossOptions
from gpusq_onnx.tasks.kinds import CLASSES, Kind

EPS = 1e-6

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """A tensor of the student and the teacher's tensor that it is compared with, by name."""

    student: str
    teacher: str


@dataclass(frozen=True)
class Labels:
    """Hard labels of a batch: int64[B], those of the image that was mixed in, and each image's share of the first."""

    own: Tensor
    other: Tensor
    share: Tensor


@dataclass(frozen=True)
class Losses:
    """The loss to minimise, and its parts without gradients: hard, soft, feature.0 ..., agree; scalars."""

    total: Tensor
    parts: dict[str, Tensor]


def _alone(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Objective:
    """What the student is trained towards.

    Attributes:
        settings: alpha, beta, gamma, temperature, gate, feature_loss.
        outputs: the graph outputs that are compared.
        kinds: of each of these, by the student's name.
        maps: the critical feature maps, first stage first.
        factors: w_i of each map.
        readings: how outputs with classes are read, by the student's name; of others, both are logits.
        add: sums a tensor over all processes.
        processes: how many there are.
    """

    settings: LossOptions
    outputs: Sequence[Pair]
    kinds: Mapping[str, Kind]
    maps: Sequence[Pair]
    factors: Sequence[float]
    readings: Mapping[str, Reading] = field(default_factory=dict)
    add: Callable[[Tensor], Tensor] = field(default=_alone)
    processes: int = 1

    def __call__(
        self, student: Outputs, teacher: Outputs, labels: Labels | None = None, images: int | None = None
    ) -> Losses:
        """The losses of one batch of `images`; both hold `outputs` and `maps` by name. Computed in float32.

        Without `images`, the first of the student's tensors has the batch first.
        """
        settings = self.settings
        agrees = self.agreements(student, teacher)
        gate = self.gate(agrees, student, images)
        zero = gate.new_zeros(())
        hard, soft = zero, zero
        for pair in self.outputs:
            kind, z_s, z_t = self.kinds[pair.student], student[pair.student].float(), teacher[pair.teacher].float()
            if kind in CLASSES:
                read = self.readings.get(pair.student, Reading())
                z_s = as_logits(classes_last(z_s, kind), read.student)
                z_t = as_logits(classes_last(z_t, kind), read.teacher)
                if settings.alpha:
                    hard = hard + self._hard(z_s, z_t, kind, read, labels)
                soft = soft + self._soft(z_s, z_t, read)
            elif kind == "boxes":
                extent = z_t.abs().amax(dim=(1, 2)).clamp(min=1)[:, None]
                soft = soft + self._gated((z_s - z_t).abs().sum(-1) / extent, self._box_gate(agrees, z_s))
            else:
                soft = soft + self.distances(z_s, z_t).mean()
        features = [
            self._gated(
                self.distances(student[p.student].float(), teacher[p.teacher].float(), len(gate), settings.bound), gate
            )
            for p in self.maps
        ]
        weighted = [w * loss for w, loss in zip(self.factors, features, strict=True)]
        gamma = settings.gamma / (max(1, len(weighted)) if settings.reduce == "mean" else 1)
        total = settings.alpha * hard + settings.beta * soft + gamma * sum(weighted, zero)
        share = torch.cat([agree.mean().reshape(1) for agree in agrees.values()]).mean() if agrees else zero + 1
        parts = {"loss": total, "hard": hard, "soft": soft}
        parts |= {f"feature.{i}": loss for i, loss in enumerate(features)}
        return Losses(total, {name: part.detach() for name, part in (parts | {"agree": share}).items()})

    def agreements(self, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """1.0 where both name the same class: [B, positions] for each output with classes."""
        found = {}
        with torch.no_grad():
            for pair in self.outputs:
                kind = self.kinds[pair.student]
                if kind in CLASSES:
                    z_s = classes_last(student[pair.student], kind)
                    z_t = classes_last(teacher[pair.teacher], kind)
                    found[pair.student] = (z_s.argmax(-1) == z_t.argmax(-1)).float()
        return found

    def gate(self, agrees: Mapping[str, Tensor], student: Outputs, images: int | None = None) -> Tensor:
        """What each image counts for in the feature losses: float32[B], 0..1."""
        first = next(iter(student.values()))
        if not self.settings.gate or not agrees:
            return torch.ones(len(first) if images is None else images, device=first.device)
        shares = [agree.mean(1) for agree in agrees.values()]
        if len({len(share) for share in shares}) > 1:  # outputs without a batch in common
            shares = [share.mean().reshape(1) for share in shares]
        return torch.stack(shares).mean(0)

    def distances(self, f_s: Tensor, f_t: Tensor, images: int | None = None, bound: float = 0.0) -> Tensor:
        """l[b] of one map, whatever its layout. A bound of 0 is none.

        Returns:
            float32[B]; [1] where no axis is the batch, or an image is a single number.
        """
        f_s, f_t = _rows(f_s, images), _rows(f_t, images)
        if bound:
            most = bound * f_t.square().mean(1, keepdim=True).sqrt()
            f_s, f_t = f_s.clamp(-most, most), f_t.clamp(-most, most)
        square = (f_s - f_t).square().mean(1)
        if self.settings.feature_loss == "plain":
            return square
        return square / (f_t.square().mean(1) + EPS)

    def _hard(self, z_s: Tensor, z_t: Tensor, kind: Kind, read: Reading, labels: Labels | None) -> Tensor:
        classes = z_s.shape[-1]
        if labels is not None and kind == "logits":
            z = z_s.reshape(-1, classes)
            own, other = (F.cross_entropy(z, y, reduction="none") for y in (labels.own, labels.other))
            return (labels.share * own + (1 - labels.share) * other).mean()
        if read.per_class:
            return F.binary_cross_entropy_with_logits(z_s, (z_t > 0).float(), reduction="none").sum(-1).mean()
        return F.cross_entropy(z_s.reshape(-1, classes), z_t.argmax(-1).reshape(-1))

    def _soft(self, z_s: Tensor, z_t: Tensor, read: Reading) -> Tensor:
        z_s, z_t = z_s / self.settings.temperature, z_t / self.settings.temperature
        if read.per_class:
            yes = torch.sigmoid(z_t) * (F.logsigmoid(z_t) - F.logsigmoid(z_s))
            no = torch.sigmoid(-z_t) * (F.logsigmoid(-z_t) - F.logsigmoid(-z_s))
            return (yes + no).sum(-1).mean()
        log_s, log_t = F.log_softmax(z_s, -1), F.log_softmax(z_t, -1)
        return F.kl_div(log_s, log_t, log_target=True, reduction="none").sum(-1).mean()

    def _gated(self, values: Tensor, gate: Tensor) -> Tensor:
        """sum(gate values) / max(1, sum(gate)), both sums over all processes once their results are averaged."""
        if values.numel() == 1:
            return values.reshape(()) * gate.mean()
        return self.processes * (gate * values).sum() / self.add(gate.sum()).clamp(min=1)

    def _box_gate(self, agrees: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
        same = [agree for agree in agrees.values() if agree.shape == boxes.shape[:2]]
        return same[0] if same and self.settings.gate else torch.ones_like(boxes[..., 0])


def _rows(f: Tensor, images: int | None) -> Tensor:
    """A map as one row an image, or as one row of all where no axis is the batch or an image is a single number."""
    if f.ndim == 0 or (images is not None and f.shape[0] != images):
        turned = f.ndim > 1 and f.shape[1] == images  # [tokens, B, d]
        f = f.movedim(1, 0) if turned else f.unsqueeze(0)
    f = f.reshape(len(f), -1)
    return f.reshape(1, -1) if f.shape[1] == 1 else f
