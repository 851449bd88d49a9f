"""Exports of the paper's backbones with random weights, made once and kept in a cache folder.

The models and the exporters are those of `../shared/zoo/zoo.py`. It runs in an environment of its own, since
torchvision, timm and transformers are no dependency of this project: `.venv-zoo`, made on first use from PyPI.

    GPUSQ_SHARED    the folder with the test data and the zoo (default: ../shared)
    GPUSQ_ZOO       the folder of the exports, MODEL_EXPORTER.onnx (default: .zoo); those that are there are used
    GPUSQ_ZOO_VENV  the environment that exports (default: .venv-zoo)
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (
    ["torch==2.13.0"],
    ["--no-deps", "torchvision==0.28.0"],
    ["timm", "transformers", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow", "scipy"],
    ["onnxsim", "onnxslim"],
)


def shared_folder() -> Path:
    """Where the test data beside the project lies; it may be absent."""
    return Path(os.environ.get("GPUSQ_SHARED") or ROOT.parent / "shared")


@dataclass(frozen=True)
class Zoo:
    """A cache of exports.

    Attributes:
        script: zoo.py.
        folder: where the exports are kept.
        venv: the environment that runs the script.
    """

    script: Path
    folder: Path
    venv: Path

    @classmethod
    def default(cls) -> Zoo:
        """As the environment variables say."""
        folder = Path(os.environ.get("GPUSQ_ZOO") or ROOT / ".zoo")
        venv = Path(os.environ.get("GPUSQ_ZOO_VENV") or ROOT / ".venv-zoo")
        return cls(shared_folder() / "zoo" / "zoo.py", folder, venv)

    def exported(self, model: str, exporter: str) -> Path:
        """The file of e.g. ("deit_tiny_224", "legacy17"); made when it is not there.

        Raises:
            FileNotFoundError: neither the file nor the script is there.
            subprocess.CalledProcessError: the environment cannot be made, or the export failed.
        """
        path = self.folder / f"{model}_{exporter}.onnx"
        if path.is_file():
            return path
        if not self.script.is_file():
            raise FileNotFoundError(f"{path} is not there, and neither is {self.script}, which would make it")
        partial = self.folder / ".partial"
        partial.mkdir(parents=True, exist_ok=True)
        subprocess.run([str(self.python()), str(self.script), model, exporter, str(partial)], check=True)
        (partial / path.name).replace(path)
        return path

    def foreign(self, export: str) -> Path:
        """The file of e.g. "segformer_legacy17" of the foreign corpus (`tools.zoo.foreign`); made when it is not there.

        Raises:
            FileNotFoundError: the shared folder, whose torchvision stand-in the exporter needs, is not there.
            RuntimeError: it does not export; says why.
        """
        folder = self.folder / "foreign"
        path, reason = folder / f"{export}.onnx", folder / f"{export}.txt"
        if not path.is_file() and not reason.is_file():
            if not self.script.is_file():
                raise FileNotFoundError(f"{path} is not there, and neither is {self.script.parent}, to make it with")
            command = [str(self.python().absolute()), "-W", "ignore", "-m", "tools.zoo.foreign"]
            subprocess.run([*command, str(folder.resolve()), export], check=True, cwd=ROOT)
        if not path.is_file():
            raise RuntimeError(reason.read_text(encoding="utf-8").strip())
        return path

    def python(self) -> Path:
        """The interpreter of the environment that exports, which is made when it is not there."""
        python, stamp = self.venv / "bin" / "python", self.venv / ".installed"
        if not stamp.is_file():
            subprocess.run([sys.executable, "-m", "venv", str(self.venv)], check=True)
            for packages in PACKAGES:
                subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
            stamp.touch()
        return python
