"""What nvidia-smi says, on texts as it prints them; memory that is kept between steps."""

import os
import platform
import resource
from pathlib import Path

import pytest

from gpusq_onnx.runtime import machine
from gpusq_onnx.runtime.machine import FIELDS, UNKNOWN, cpu_name, freed_memory_kept, parse_gpu, versions

H100 = "NVIDIA H100 80GB HBM3, 580.159.04, 81559 MiB, 1980 MHz, 1980 MHz, 2619 MHz, 412.30 W, 700.00 W, 51\n"
LARGE = 40 << 20  # bytes; more than what glibc would keep by itself
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


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
@pytest.mark.parametrize(("prints", "code", "name"), [(H100, 0, "NVIDIA H100 80GB HBM3"), (H100, 9, None)])
def test_the_gpu_is_asked_of_nvidia_smi(
    prints: str, code: int, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in prints what it prints, and may fail; it is asked for the fields, of one GPU."""
    (tmp_path / "text").write_text(prints)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {tmp_path}/text\nexit {code}\n')
    tool.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(tool))
    found = machine.read_gpu(3)
    assert (found.name if found else None) == name
    asked = (tmp_path / "asked").read_text()
    assert f"--query-gpu={','.join(FIELDS)} " in asked and "--id=3" in asked


def test_without_nvidia_smi_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.read_gpu() is None


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 0),
        ({"proc/meminfo": "MemTotal: 9 kB\n"}, 0),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4 kB\n"}, 4096),
        ({"max": "max", "current": "100"}, 4096),
        ({"max": "1000", "current": "400", "stat": "anon 300\ninactive_file 100\nactive_file 0\n"}, 700),
        ({"max": "1000", "current": "1200", "stat": "inactive_file 100\n"}, 0),
        ({"max": "9000000", "current": "400", "stat": ""}, 4096),
    ],
)
def test_free_memory_is_what_the_system_and_the_container_leave(
    files: dict[str, str], free: int, tmp_path: Path
) -> None:
    here = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4 kB\n"} if "max" in files else {}
    for name, text in {**here, **files}.items():
        path = tmp_path / (name if "/" in name else f"sys/fs/cgroup/memory.{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert machine.free_memory(tmp_path) == free


def test_this_machine_has_free_memory() -> None:
    assert machine.free_memory() > 1 << 20 or not Path("/proc/meminfo").is_file()


@pytest.mark.parametrize(("beside", "share"), [(None, 8), ("1", 8), ("3", 2), ("8", 1), ("20", 1), ("", 8), ("x", 8)])
def test_processes_of_one_launch_share_the_cpus(
    beside: str | None, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if beside is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
    assert machine.usable_cpus() == share


def test_the_cpu_and_the_versions() -> None:
    assert cpu_name().endswith(" CPUs")
    found = versions("numpy", "no-such-distribution")
    assert list(found) == ["numpy"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc")
def test_what_a_step_frees_costs_the_next_no_new_pages() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(b"1") * LARGE
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with freed_memory_kept():
        faults()
        assert max(faults() for _ in range(3)) < LARGE // resource.getpagesize() // 4


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: pytest.fail("no mallopt there"))
    with freed_memory_kept():
        pass
    machine.return_freed_memory()
