"""An ONNX graph as a trainable torch module, and its learned tensors back into the same graph.

    convert        Model -> Network (convert.py): operators from a table, parameters by role, Q/DQ pairs as quantisers
    write_back     Network -> the same Model (write_back.py): only what was learned
    trainable_prefix   the tensors up to which a detector can be trained (prefix.py)

This package and `learn` are the homes of torch, which is an extra: importing any module of it without torch raises
EnvironmentLacking.
"""

from gpusq_onnx.errors import EnvironmentLacking

try:
    import torch as torch
except ImportError as error:
    raise EnvironmentLacking(
        "training needs torch, which is not installed",
        found=str(error),
        hint="pip install 'gpusq-onnx[train]'",
    ) from None
