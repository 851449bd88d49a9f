"""What a bare machine lacks: found from the requirements, cut into folders, joined and installed there."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.gpu import install, wheels


def wheel(folder: Path, name: str, filling: int = 0) -> Path:
    """An installable wheel with one module, and so many bytes that do not compress."""
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", f"NAME = {name!r}\n")
        file.writestr(f"{name}.bin", bytes(filling))
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


def test_the_closure_has_what_imports_need_and_not_what_is_there() -> None:
    names = set(wheels.closure(wheels.wanted()))
    assert {"pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typer", "rich", "polygraphy"} <= names
    assert {"onnx-graphsurgeon", "safetensors", "tomli-w", "accelerate", "pytest"} <= names
    assert names.isdisjoint({"torch", "triton", "onnx", "onnxruntime-gpu", "numpy", "tomli", "gpusq-onnx"})
    assert all("==" in text for text in wheels.pinned(names, wheels.pins()))
    with pytest.raises(ValueError, match="no version of no-such-thing"):
        wheels.pinned(["no-such-thing"], wheels.pins())


@pytest.mark.parametrize(("size", "most", "count"), [(10, 10, 1), (11, 10, 2), (30, 10, 3), (31, 10, 4)])
def test_parts_cover_a_file(size: int, most: int, count: int) -> None:
    found = wheels.parts(size, most)
    assert len(found) == count
    assert sum(length for _, length in found) == size
    assert [start for start, _ in found] == [sum(length for _, length in found[:i]) for i in range(count)]
    assert all(length <= most for _, length in found)


def test_folders_hold_at_most_so_much_and_are_listed(tmp_path: Path) -> None:
    made = [wheel(tmp_path / "in", name, size) for name, size in (("small", 10), ("large", 5000), ("middle", 900))]
    packed = wheels.pack(made, tmp_path / "out", 2000)
    assert sum(len(names) for names in packed.values()) > 3
    for number in packed:
        assert sum(path.stat().st_size for path in (tmp_path / "out" / number).iterdir()) <= 2000
    lines = wheels.listing(tmp_path / "out")
    assert [line for line in lines if line.endswith("small-1.0-py3-none-any.whl")]
    assert [line for line in lines if ".whl.1of" in line]


def test_parts_are_joined_once_all_are_there(tmp_path: Path) -> None:
    large = wheel(tmp_path / "in", "large", 5000)
    wheels.pack([large, wheel(tmp_path / "in", "small")], tmp_path / "out", 2000)
    found, lacking = install.joined(tmp_path / "out", tmp_path / "joined")
    assert sorted(path.name for path in found) == [large.name, "small-1.0-py3-none-any.whl"] and lacking == []
    assert (tmp_path / "joined" / large.name).read_bytes() == large.read_bytes()
    next((tmp_path / "out").rglob("*.whl.2of*")).unlink()
    found, lacking = install.joined(tmp_path / "out", tmp_path / "joined")
    assert [path.name for path in found] == ["small-1.0-py3-none-any.whl"]
    assert len(lacking) == 1 and "of" in lacking[0]


@pytest.mark.long
def test_the_environment_has_the_wheels_and_what_is_beneath(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels" / "1", "carried")
    library = tmp_path / "venv"
    command = [sys.executable, "-m", "tools.gpu.install", "--wheels", str(tmp_path / "wheels"), "--into", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    assert done.returncode == 0, done.stderr
    assert "installed 1: carried" in done.stdout
    script = "import carried, numpy; print(carried.NAME, carried.__file__)"
    python = str(library / "bin" / "python")
    found = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=60)
    assert found.stdout.startswith(f"carried {library}"), found.stderr
    assert install.newer_cusparselt(library) is None
    (install.packages(library) / "nvidia" / "cu13" / "lib").mkdir(parents=True)
    (install.packages(library) / "nvidia" / "cu13" / "lib" / "libcusparseLt.so.0").touch()
    assert install.newer_cusparselt(library) is not None
