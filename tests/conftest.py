"""The TensorRT parser for machines with no GPU, for the tests that ask it; property tests that do not ask the clock;
one process for all first meetings with onnxruntime, and one look at what is installed.

Doctests are looked for in the package, not in helpers of the tests: several folders have a conftest.py, and one helper
needs Triton.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from gpusq_onnx.pipeline import table
from gpusq_onnx.runtime import trial
from gpusq_onnx.runtime.trt_cpu import prepare, ready
from tests.kept_process import Keeper

collect_ignore_glob = ["conftest.py", "*/conftest.py", "*/fused_in_interpreter.py"]

# The same examples in every run: a commit that passes once passes again. `--hypothesis-profile=search` draws others.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=1000)
settings.register_profile("any machine", settings.get_profile("search"), max_examples=100, derandomize=True)
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def harness() -> Path:
    """The folder that GPUSQ_TRT_CPU names (set up there if need be), else the user's cache where it is set up."""
    if folder := os.environ.get("GPUSQ_TRT_CPU"):
        prepare(Path(folder))
        return Path(folder)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpusq-onnx" / "trt_cpu"
    if ready(cache) is None:
        pytest.skip("no TensorRT parser: set GPUSQ_TRT_CPU to a cache folder (150 MB are downloaded into it once)")
    return cache


@pytest.fixture(scope="session", autouse=True)
def kept_process() -> Iterator[Keeper]:
    """`runtime.trial` with processes that outlive a test (`tests.kept_process`).

    Plug-ins are looked for once: no test installs one into its own process, and reading the metadata of a hundred
    packages is a third of a small run.
    """
    keeper = Keeper()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "Worker", keeper.lend)
        patch.setattr(table, "entry_points", cache(table.entry_points))
        yield keeper
    keeper.end()
