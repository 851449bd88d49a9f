"""Setting the harness up: two wheels into a folder of their own, and a shim compiled three times.

The wheels name no dependencies (their only extras are numpy and onnx), so nothing of CUDA comes along; they still go to
a folder of their own, because `tensorrt_bindings` in site-packages would clash with a real TensorRT.

Everything is made in `FOLDER/.partial` under a lock and renamed into place when complete: a folder that has its final
name is whole, a killed setup is swept away by the next, and of two processes the second waits and finds it done. The
final name holds the versions, the Python ABI and the sources' digest, so an update never meets an old harness.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpusq_onnx.errors import EnvironmentLacking
from gpusq_onnx.files import writable_by_all

WHEELS = ("tensorrt-cu13-bindings==11.4.0.106", "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0")
"""Bindings for every CPython that TensorRT supports; the builder and the parser of TensorRT-RTX 1.7."""
HASHES = {
    WHEELS[0]: (
        "1d17853da33a186c4d4d39995c1186bb59f643689aabac9c3e33ae5f0ba402f5",  # CPython 3.10
        "d072ac2a095e2be749fefc847adfb25d5ebe70303401df62ede8fe67a59f27fc",  # 3.11
        "5fc7a6c412881f7212030893bd5531b1a0ff415c72c7678dfe4ead7a7765b38d",  # 3.12
        "bac9a362c9189b5f5dd0444213913846e4b46003237834958e890eff57d86ed5",  # 3.13
    ),
    WHEELS[1]: ("32f575c633d171b4edf4b53d3bb22b72a6c9c0a850d2982ce9a788a5d40d3298",),
}
"""SHA-256 of each wheel for Linux on x86_64, as PyPI lists them: pip takes no other bytes, from no index."""

_SONAMES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
_SOURCES = Path(__file__).resolve().parent


def ready(folder: Path) -> Path | None:
    """The site folder (for sys.path) of a harness that `prepare` completed in `folder`; None where there is none."""
    site = folder / _name() / "site"
    return site if site.is_dir() else None


def prepare(
    folder: Path,
    *,
    python: str = sys.executable,
    compilers: Sequence[str] = ("cc", "gcc", "clang"),
    progress: Callable[[str], None] = lambda step: None,
) -> Path:
    """Make the harness in `folder` unless it is there; safe against crashes and against a second process.

    Args:
        folder: a cache folder; created when missing. About 310 MB on disk.
        python: the interpreter whose pip downloads; the same version as the one that will import the harness.
        compilers: names of C compilers, the first found is used.
        progress: receives each step's name before it starts.

    Returns:
        The site folder: on sys.path, `import tensorrt` works.

    Raises:
        EnvironmentLacking: no Linux x86_64, compiler, pip, network or space; says which and what to install.
    """
    if folder.is_dir() and writable_by_all(folder):
        raise EnvironmentLacking(
            "the folder of the TensorRT parser can be written by everyone, and what lies in it is executed",
            where=str(folder),
            hint="choose a folder of your own, or take the right away: chmod o-w",
        )
    if (site := ready(folder)) is not None:
        return site
    compiler = _requirements(python, compilers)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / ".lock"):
            if (site := ready(folder)) is not None:
                return site
            partial = folder / ".partial"
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _install(partial, python, compiler, progress)
                partial.rename(folder / _name())
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise EnvironmentLacking(
            "the TensorRT parser could not be set up in its folder",
            where=str(folder),
            found=str(error),
            hint="choose a folder that is writable and has 350 MB free",
        ) from error
    return folder / _name() / "site"


def _name() -> str:
    digest = hashlib.sha256("".join(WHEELS).encode())
    for source in ("shim.c", "tensorrt.py"):
        digest.update((_SOURCES / source).read_bytes())
    return f"trt-cpu-{sys.implementation.cache_tag}-{digest.hexdigest()[:12]}"


def _requirements(python: str, compilers: Sequence[str]) -> str:
    """The path of a compiler, once platform and pip have been found too: all before the first byte is downloaded."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise EnvironmentLacking(
            "the TensorRT parser without a GPU exists for Linux on x86_64 only",
            found=f"{sys.platform} on {platform.machine()}",
            hint="install tensorrt on a machine with an NVIDIA GPU, or check on a Linux x86_64 machine",
        )
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise EnvironmentLacking(
            "a C compiler is needed, once, for the TensorRT parser without a GPU",
            expected="one of " + ", ".join(compilers) + " on PATH",
            hint="install one, for instance `apt-get install gcc`",
        )
    if _run([python, "-m", "pip", "--version"]).returncode != 0:
        raise EnvironmentLacking(
            "pip is needed, once, for the TensorRT parser without a GPU",
            where=python,
            hint=f"run `{python} -m ensurepip`, or `uv pip install pip`",
        )
    return compiler


def _install(folder: Path, python: str, compiler: str, progress: Callable[[str], None]) -> None:
    site, lib = folder / "site", folder / "lib"
    lib.mkdir(parents=True)
    progress("downloading TensorRT-RTX's parser and TensorRT's Python bindings (150 MB)")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    pinned = folder / "requirements.txt"
    lines = [" ".join([wheel, *(f"--hash=sha256:{digest}" for digest in HASHES[wheel])]) for wheel in WHEELS]
    pinned.write_text("\n".join(lines) + "\n", encoding="utf-8")
    only = ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
    _checked(
        [*pip, *only, "--target", str(site), "--requirement", str(pinned)],
        what="the wheels of the TensorRT parser could not be installed",
        hint="check the network or the package index; " + " and ".join(WHEELS) + " must be available to pip",
    )
    progress("compiling the shim")
    flags = [compiler, "-shared", "-fPIC", "-O1"]
    for soname in _SONAMES:
        _checked(
            [*flags, "-o", str(lib / soname), f"-Wl,-soname,{soname}", str(_SOURCES / "shim.c"), "-ldl"],
            what="the shim of the TensorRT parser could not be compiled",
            hint="install a C compiler and the C library's headers, for instance `apt-get install gcc libc6-dev`",
        )
    shutil.copyfile(_SOURCES / "tensorrt.py", site / "tensorrt.py")


def _checked(command: Sequence[str], *, what: str, hint: str) -> None:
    done = _run(command)
    if done.returncode != 0:
        said = "\n".join(done.stderr.strip().splitlines()[-5:]) or f"exit status {done.returncode}"
        raise EnvironmentLacking(what, where=" ".join(command[:4]), found=said, hint=hint)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Exclusive between processes; the system lets go of it however the holder ends."""
    import fcntl  # not at the top: other platforms get as far as the error that names them

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
