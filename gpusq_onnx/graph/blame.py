"""Whose fault is it? Where work on a model ends in a fault of ours, ONNX's own checks say whether the model is wrong.

The `door` asks what is cheap and what walks rely on. That shapes and types agree takes an inference, which is not made
of every model: it is made when something failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import ModelProto

from gpusq_onnx.errors import GpusqError, PassFailed, UnsupportedModelError, of_an_interrupt, of_the_machine
from gpusq_onnx.graph import io
from gpusq_onnx.graph.snapshot import take


@contextmanager
def blaming(*paths: Path) -> Iterator[None]:
    """Around work on the models at `paths`: where it ends in a fault of ours, see whether one of them is to blame.

    Raises:
        UnsupportedModelError: the work failed, and a model contradicts its own shapes or types, or ONNX's checker
            refuses it.
    """
    try:
        yield
    except Exception as error:
        if of_an_interrupt(error):
            raise KeyboardInterrupt from error
        if of_the_machine(error) or (isinstance(error, GpusqError) and error.exit_code != PassFailed.exit_code):
            raise
        for path in paths:
            if (problem := contradiction(path)) is not None:
                raise UnsupportedModelError(
                    "the model contradicts itself",
                    where=str(path),
                    found=problem,
                    hint="onnx.checker.check_model(path, full_check=True) shows the whole message",
                ) from error
        raise


def contradiction(path: Path) -> str | None:
    """What ONNX's own checker and strict shape inference say against the model at `path`; None where nothing is."""
    try:
        skeleton = take(io.load(path)).for_checker()
        onnx.checker.check_model(skeleton)
        onnx.shape_inference.infer_shapes(_without_claims(skeleton), check_type=True, strict_mode=True)
    except GpusqError as error:
        return error.what
    except Exception as error:  # the checker's and inference's errors share no base class
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return None


def _without_claims(model: ModelProto) -> ModelProto:
    """The model without shapes that somebody claimed for what nodes make: runtimes only warn of wrong ones."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return model
