"""The zoo's models as the torch modules that they were exported from, in this process, with the same weights.

timm, torchvision and transformers are no dependency of this project: they are borrowed from the environment of the zoo,
whose site-packages are put after this one's. Its torch must be of the same version, and is not loaded.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from tools.zoo.exports import Zoo

if TYPE_CHECKING:
    from torch import nn


def native(model: str, zoo: Zoo | None = None) -> nn.Module:
    """The module that e.g. `deit_tiny_224` is an export of, in eval mode.

    Raises:
        FileNotFoundError: the zoo's script or its environment is not there.
    """
    import torch

    zoo = zoo or Zoo.default()
    packages = next(zoo.venv.glob("lib/python3*/site-packages"), None)
    if not zoo.script.is_file() or packages is None:
        raise FileNotFoundError(f"{zoo.script} or {zoo.venv}/lib/python3*/site-packages is not there")
    for folder in (str(zoo.script.parent), str(packages)):
        if folder not in sys.path:
            sys.path.append(folder)
    script = importlib.import_module(zoo.script.stem)
    importlib.import_module("torchvision_cpu").preload()
    torch.manual_seed(0)  # as zoo.py does before it exports
    build, _ = script.MODELS[model]
    module: nn.Module = build().eval()
    script.perturb(module)
    return module
