"""What reaches a user: the sdist, the wheel built from it, the wheel built from a checkout, and an installation."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from arrows import ROOT, modules

pytestmark = pytest.mark.long

pytest.importorskip("build", reason="needs the `dev` extra: pip install -e '.[dev]'")

LEFT_OUT = (".git", ".venv*", ".zoo", "build", "dist", "out", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that `python -m build` makes from it, out of a clean copy of the tree."""
    home = tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, home / "tree", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    run("-m", "build", "--no-isolation", "--outdir", home, home / "tree", cwd=home)
    return home


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    (path,) = dist.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def installed(dist: Path) -> Path:
    """The wheel alone in an otherwise empty folder."""
    (path,) = dist.glob("*.whl")
    target = dist / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, path, cwd=dist)
    return target


def shipped_files() -> set[str]:
    """Every file of the source packages that a wheel must hold, by its installed name."""
    python = {path.relative_to(ROOT).as_posix() for _, path in modules()}
    others = {"gpusq_onnx/py.typed", "gpusq_onnx/runtime/trt_cpu/shim.c"}
    others |= {f"gpusq_onnx/report/page/page.{kind}" for kind in ("css", "html.jinja", "js")}
    return python | others


def test_the_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == shipped_files()


def test_a_wheel_from_the_checkout_is_the_wheel_from_the_sdist(dist: Path, wheel: zipfile.ZipFile):
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", dist / "direct", dist / "tree", cwd=dist)
    (path,) = (dist / "direct").glob("*.whl")
    with zipfile.ZipFile(path) as direct:
        assert {i.filename: i.CRC for i in direct.infolist()} == {i.filename: i.CRC for i in wheel.infolist()}


def test_the_sdist_keeps_the_layout_of_the_repository(dist: Path):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"passes/__init__.py", "tools/trt_cpu/__init__.py", "gpusq_onnx/__init__.py", "pyproject.toml"} <= names


def test_the_metadata_names_the_command_and_one_top_level_package(wheel: zipfile.ZipFile):
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    scripts = ConfigParser()
    scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert dict(scripts["console_scripts"]) == {"gpusq-onnx": "gpusq_onnx.cli:main"}
    assert wheel.read(f"{info}/top_level.txt").decode().split() == ["gpusq_onnx"]
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_an_installation_leaves_one_package_in_site_packages(installed: Path):
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert names == {"gpusq_onnx", "bin"}


def test_the_installed_packages_import_from_where_they_are_installed(installed: Path):
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import gpusq_onnx.cli, gpusq_onnx.passes, gpusq_onnx.runtime.trt_cpu as t\n"
        "print(gpusq_onnx.passes.__file__, t.__file__)"
    )
    for name in run("-c", code, cwd=installed.parent).split():
        assert Path(name).is_relative_to(installed)
