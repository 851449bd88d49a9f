"""Data: folders of images, arrays, archives, Parquet, annotations and scripts, broken; for a short calibration."""

from __future__ import annotations

import io
import json
import os
import tarfile
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tools.fuzz import mutate, seeds
from tools.fuzz.arena import OUT, Target

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "EPS", "PPM")
_COCO = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 8, "height": 8} for n in range(4)],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "thing"}],
}


def make(random: Random, folder: Path) -> list[str]:
    """A broken data set and a command that calibrates with it."""
    (folder / "seed.onnx").write_bytes(_model())
    (folder / OUT).mkdir()
    data = folder / "data"
    kind = random.choice((_images, _images, _npy, _npz, _tar, _parquet, _script, _odd))
    path, more = kind(random, data)
    verb = ["check", str(folder / "seed.onnx"), str(folder / "seed.onnx")]
    if random.random() < 0.8:
        verb = ["apply", str(folder / "seed.onnx"), "-p", "qdq-int8", "-o", str(folder / OUT / "made.onnx")]
    return [*verb, "--data", str(path), "--samples", str(random.choice((1, 2, 3, 100))), *more]


@lru_cache(maxsize=1)
def _model() -> bytes:
    return bytes(seeds.block().SerializeToString())


@lru_cache(maxsize=64)
def _picture(kind: str, side: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def _some_picture(random: Random) -> bytes:
    data = _picture(random.choice(_FORMATS[: random.choice((2, 4, 8))]), random.choice((1, 8, 12)), random.randrange(3))
    return mutate.bytes_of(random, data) if random.random() < 0.6 else data


def _images(random: Random, data: Path) -> tuple[Path, list[str]]:
    data.mkdir()
    for number in range(4):
        (data / f"{number}.png").write_bytes(_some_picture(random))
    if random.random() < 0.3:
        odd = data / random.choice(("x.jpg", "x\n::error::.png", "\x1b[31m.png", "a.webp"))
        random.choice((os.mkfifo, lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to(p), Path.mkdir))(odd)
    if random.random() < 0.3:
        text = json.dumps(mutate.value_of(random, _COCO)).encode(errors="replace")
        (data.parent / "a.json").write_bytes(mutate.bytes_of(random, text) if random.random() < 0.3 else text)
        return data, ["--annotations", str(data.parent / "a.json"), "--fit", "stretch"]
    if random.random() < 0.2:
        (data.parent / "classes").write_bytes(random.choice((b"", b"a\na", b"\xff", b"data\n", b"0\n" * 9999)))
        return data, ["--classes", str(data.parent / "classes")]
    if random.random() < 0.2:
        (data.parent / "maps").mkdir()
        for number in range(4):
            (data.parent / "maps" / f"{number}.png").write_bytes(_some_picture(random))
        return data, ["--masks", str(data.parent / "maps")]
    return data, []


def _array(random: Random) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((4, 3, 8, 8), random.choice((np.float32, np.float32, np.float64, np.int64))))
    data = stream.getvalue()
    if random.random() < 0.5:
        at = random.randrange(128)
        return data[:at] + mutate.bytes_of(random, data[at:128]) + data[128:]
    return mutate.bytes_of(random, data)


def _npy(random: Random, data: Path) -> tuple[Path, list[str]]:
    data.with_suffix(".npy").write_bytes(_array(random))
    return data.with_suffix(".npy"), []


def _npz(random: Random, data: Path) -> tuple[Path, list[str]]:
    stream = io.BytesIO()
    save = random.choice((np.savez, np.savez_compressed))
    save(stream, image=np.zeros((4, 3, 8, 8), np.float32), labels=np.arange(4))
    data.with_suffix(".npz").write_bytes(mutate.bytes_of(random, stream.getvalue()))
    return data.with_suffix(".npz"), []


def _tar(random: Random, data: Path) -> tuple[Path, list[str]]:
    stream = io.BytesIO()
    form = random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for number in range(3):
            for suffix, content in (("png", _some_picture(random)), ("cls", str(number).encode())):
                member = tarfile.TarInfo(f"{'d' * random.choice((1, 90))}/{number}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    made = bytearray(stream.getvalue())
    at = random.choice((0, 512, 1024, 1536)) + random.randrange(512)
    made[at : at + 12] = random.choice(
        (b"77777777777\0", b"\x80" + b"\xff" * 11, random.randbytes(12), b"-1         \0")
    )
    data.with_suffix(".tar").write_bytes(bytes(made) if random.random() < 0.6 else mutate.bytes_of(random, bytes(made)))
    return data.with_suffix(".tar"), []


def _parquet(random: Random, data: Path) -> tuple[Path, list[str]]:
    data.with_suffix(".parquet").write_bytes(mutate.bytes_of(random, _table()))
    return data.with_suffix(".parquet"), []


@lru_cache(maxsize=1)
def _table() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    rows = [{"bytes": _picture("PNG", 8, seed), "path": None} for seed in range(4)]
    pq.write_table(pa.table({"image": rows, "label": list(range(4))}), stream)
    return stream.getvalue()


_BODIES = (
    "raise {error}", "yield 1 / 0", "yield {{'image': np.zeros((1, 3, 8, 8), np.float32)}}\n    raise {error}",
    "yield {{'image': {error}}}", "yield [{error}]", "yield {{}}", "return {error}", "load_data()",
    "yield {{'image': np.full((1, 3, 8, 8), np.nan, np.float32)}}", "yield {{'image': [[1], [2, 3]]}}",
    "yield {{'image': np.zeros((1, 3, 8, 8), object)}}", "yield {{'image': np.zeros((0, 3, 8, 8), np.float32)}}",
)  # fmt: skip
_ERRORS = (
    "BaseException()", "SystemExit(0)", "GeneratorExit", "StopIteration", "type('E', (), {})",
    "OSError(28, 'full')", "RecursionError", "UnicodeDecodeError('x', b'', 0, 1, 'y')", "7", "None",
)  # fmt: skip


def _script(random: Random, data: Path) -> tuple[Path, list[str]]:
    body = random.choice(_BODIES).format(error=random.choice(_ERRORS))
    text = f"import numpy as np\n\n\ndef load_data():\n    {body}\n".encode()
    data.with_suffix(".py").write_bytes(text if random.random() < 0.9 else b"\xff" + text)
    return data.with_suffix(".py"), []


def _odd(random: Random, data: Path) -> tuple[Path, list[str]]:
    path = data.with_suffix(random.choice((".npy", ".npz", ".tar", ".parquet", ".py", ".png", "")))
    random.choice((os.mkfifo, lambda p: p.symlink_to("/dev/zero"), Path.touch, Path.mkdir, lambda p: p.symlink_to(p)))(
        path
    )
    return path, []


TARGET = Target("data", make)
