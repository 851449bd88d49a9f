"""A teacher that answers something else than the student is refused, with the tensors and their sizes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from classroom import MODEL, TOY, pruned

from gpusq_onnx.errors import UnsupportedModelError
from gpusq_onnx.graph import io
from gpusq_onnx.graph.structure import analyse
from gpusq_onnx.learn.settings import TrainingOptions
from gpusq_onnx.learn.setup import prepare


def of_twice_as_many_classes(path: Path) -> Path:
    """The digits model with each class twice, as a file."""
    proto = onnx.load(MODEL)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if 10 in values.shape:
            twice = np.concatenate([values, values], axis=values.shape.index(10))
            tensor.CopyFrom(numpy_helper.from_array(twice, tensor.name))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 20
    onnx.save(proto, path)
    return path


def test_other_classes_are_refused(tmp_path: Path) -> None:
    student, teacher = pruned(), io.load(of_twice_as_many_classes(tmp_path / "teacher.onnx"))
    with pytest.raises(UnsupportedModelError, match=r"sizes differ(.|\n)*10\], as the student(.|\n)*20\]"):
        prepare(student, analyse(student), teacher, TrainingOptions(**TOY))
