"""What nvidia-smi says, on texts as it prints them."""

import pytest

from gpusq_onnx.runtime.machine import FIELDS, UNKNOWN, cpu_name, parse_gpu, versions

H100 = "NVIDIA H100 80GB HBM3, 580.159.04, 81559 MiB, 1980 MHz, 1980 MHz, 2619 MHz, 412.30 W, 700.00 W, 51\n"
VIRTUAL = "GRID A100-10C, 535.54.03, 10240 MiB, 1410 MHz, [N/A], 1215 MHz, [N/A], [N/A], [N/A]\n"


def test_a_gpu_is_named_with_its_clocks() -> None:
    gpu = parse_gpu(H100)
    assert gpu is not None
    assert gpu.name == "NVIDIA H100 80GB HBM3"
    assert gpu.clocks == "SM 1980 MHz of 1980 MHz, memory 2619 MHz"
    assert list(gpu.facts) == list(FIELDS)


def test_what_a_virtual_gpu_does_not_tell_is_said() -> None:
    gpu = parse_gpu(VIRTUAL)
    assert gpu is not None
    assert gpu.facts["power.draw"] == UNKNOWN
    assert gpu.clocks == f"SM 1410 MHz of {UNKNOWN}, memory 1215 MHz"


@pytest.mark.parametrize("text", ["", "No devices were found\n", "NVIDIA-SMI has failed, because it couldn't\n"])
def test_anything_else_is_no_gpu(text: str) -> None:
    assert parse_gpu(text) is None


def test_the_cpu_and_the_versions() -> None:
    assert cpu_name().endswith(" CPUs")
    found = versions("numpy", "no-such-distribution")
    assert list(found) == ["numpy"]
