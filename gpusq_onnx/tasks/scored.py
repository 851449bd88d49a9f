"""The metrics that need a truth beside the images, one row each: gates, budgets and pages ask this table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class ScoredMetric(NamedTuple):
    """One row.

    Attributes:
        key: among a task's metrics, 0 to 1, more is better.
        name: what it is called.
        model: what can be scored.
        truth: what the data must have.
        given_by: the options that name it.
    """

    key: str
    name: str
    model: str
    truth: str
    given_by: str

    @property
    def option(self) -> str:
        """The metric as options and budgets spell it: `--max-mask-ap-drop`, `mask-ap-drop`."""
        return self.key.lower().replace("_", "-")


_LABELS = "--classes FILE (line i names the folder of class i), or an .npz with an array named labels"
_COCO = "--annotations FILE.json (COCO) with a folder of images"
_MASKS = "--masks FOLDER (NAME.png for NAME.jpg) with a folder of images"

SCORED: Mapping[str, ScoredMetric] = MappingProxyType(
    {
        row.key: row
        for row in (
            ScoredMetric("top1", "top-1", "a classifier", "labels", _LABELS),
            ScoredMetric("AP", "AP", "a detector", "boxes", _COCO),
            ScoredMetric("mask_AP", "mask AP", "a detector that gives masks", "outlines", _COCO),
            ScoredMetric("mIoU", "mean IoU", "a segmenter", "label maps", _MASKS),
        )
    }
)
