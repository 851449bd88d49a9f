"""The shapes that `tools.bench.gpu` times, by name."""

from __future__ import annotations

from tools.bench import swin, vit
from tools.bench.vit import NetworkShape

MODELS: dict[str, NetworkShape] = {**vit.MODELS, **swin.MODELS}
