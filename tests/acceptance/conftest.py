"""Where acceptance finds its models and data, and the tables that it leaves in out/acceptance."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from acceptance_table import Table

from gpusq_onnx.runtime.trt_cpu import prepare
from tools.zoo.exports import Zoo, shared_folder


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Tests without the slow ones do not import these modules, all of which are slow."""
    return True if "not slow" in config.option.markexpr else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data beside the project."""
    folder = shared_folder()
    if not (folder / "data").is_dir():
        pytest.skip(f"no test data at {folder}: set GPUSQ_SHARED to the folder that holds data/ and zoo/")
    return folder


@pytest.fixture(scope="session")
def export(shared: Path) -> Callable[[str, str], Path]:
    """The ONNX file of a model and an exporter, exported on first use."""
    return Zoo.default().exported


@pytest.fixture(scope="session")
def parser_cache() -> Path:
    """The folder of the TensorRT parser for machines without a GPU."""
    folder = Path(os.environ.get("GPUSQ_TRT_CPU") or ".venv/trt_cpu").resolve()
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """The module's table: printed and written when its last test is over."""
    made = Table(request.module.TITLE, request.module.COLUMNS)
    yield made
    made.publish(Path("out/acceptance"), request.module.__name__.removeprefix("test_"))
