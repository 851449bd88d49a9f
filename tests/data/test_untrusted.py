"""Data that nobody vouches for: pipes, devices, bombs, headers that lie, scripts that raise anything."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpusq_onnx.data.coco import read_annotations
from gpusq_onnx.data.listing import list_images
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec
from gpusq_onnx.errors import UnsupportedDataError, UsageError

IMAGE = InputSpec("image", np.dtype(np.float32), ("N", 3, 8, 8))
ROWS = InputSpec("x", np.dtype(np.float32), ("N", "K"))


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    Image.new("RGB", size, (3, 4, 5)).save(path)


def test_what_is_no_regular_file_is_no_image(tmp_path: Path) -> None:
    """A pipe named x.png hung `apply` for ever."""
    picture(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    (tmp_path / "d.png").symlink_to("a.png")
    (tmp_path / "e.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    picture(tmp_path / "folder.png" / "f.png")
    assert list_images(tmp_path) == (["a.png", "d.png", "folder.png/f.png"], 3)


def test_a_file_that_becomes_a_pipe_is_corrupt_and_hangs_nothing(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png")
    source = open_source(DataOptions(path=tmp_path), [IMAGE])
    (tmp_path / "1.png").unlink()
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(UnsupportedDataError, match="no regular file"):
        list(source.batches(3))


@pytest.mark.parametrize("name", ["d.npy", "d.npz", "d.tar", "d.parquet", "d.py"])
def test_a_pipe_is_no_data_file(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match="a device or a pipe"):
        open_source(DataOptions(path=tmp_path / name), [IMAGE])


@pytest.mark.parametrize("name", ["d.parquet", "d.tar", "d.npy", "d.py"])
def test_an_empty_folder_with_the_name_of_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UnsupportedDataError, match="no "):
        open_source(DataOptions(path=tmp_path / name), [IMAGE])


@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
def test_a_pipe_among_shards_is_none_of_them(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"a{suffix}")
    with pytest.raises(UnsupportedDataError, match="no image"):
        open_source(DataOptions(path=tmp_path), [IMAGE])
    (tmp_path / f"b{suffix}").write_bytes(b"not what its name says")
    with pytest.raises(UnsupportedDataError, match=f"b{suffix}"):
        next(iter(open_source(DataOptions(path=tmp_path), [IMAGE]).batches(1)))


def test_options_and_classes_are_no_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="not a regular file"):
        DataOptions.from_toml(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        open_source(DataOptions(path=tmp_path, classes=tmp_path / "pipe"), [IMAGE])


@pytest.mark.parametrize(
    "data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EOF\n", b"GIF89a", b"II*\x00", b""], ids=repr
)
def test_only_the_named_formats_are_opened(data: bytes, tmp_path: Path) -> None:
    """An EPS called .jpg started Ghostscript."""
    (tmp_path / "a.jpg").write_bytes(data + bytes(100))
    with pytest.raises(UnsupportedDataError, match="not one of JPEG, PNG, BMP, WEBP"):
        list(open_source(DataOptions(path=tmp_path), [IMAGE]).batches(1))


def test_an_image_of_too_many_pixels_is_corrupt(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (101, 100))
    with pytest.raises(UnsupportedDataError, match=r"101 x 100 pixels, more than max_pixels 10000"):
        list(open_source(DataOptions(path=tmp_path, max_pixels=10_000), [IMAGE]).batches(1))
    assert len(list(open_source(DataOptions(path=tmp_path, max_pixels=10_100), [IMAGE]).batches(1))) == 1


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': ()}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1, 4)}",
        "{'descr': 7, 'fortran_order': False, 'shape': (1, 4)}",
        "{'descr': '<f4'}",
        "(" * 3000,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ", 4)}",
        "__import__('os').system('true')",
        "",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_lies(text: str, packed: bool, tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / ("d.npz" if packed else "d.npy")
    data = header(text) + bytes(64)
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", data)
    else:
        path.write_bytes(data)
    with pytest.raises(UnsupportedDataError):
        list(open_source(DataOptions(path=path), [ROWS]).batches(1))


@pytest.mark.parametrize("label", [b"1" * 5000, b"-1", b"1.5", b"\xff", b"", b"9" * 18])
def test_a_label_that_is_no_class(label: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        for name, data in (("a.png", b"x"), ("a.cls", label)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(UnsupportedDataError, match="no class index"):
        open_source(DataOptions(path=tmp_path / "d.tar"), [IMAGE])


def test_a_member_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.png")
    member.size = 2**40
    (tmp_path / "d.tar").write_bytes(member.tobuf() + bytes(10240))
    with pytest.raises(UnsupportedDataError, match="past the end"):
        open_source(DataOptions(path=tmp_path / "d.tar"), [IMAGE])


GOOD = {
    "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "thing"}],
}


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("images", "id", "x"), ("images", "id", 10**400), ("images", "id", None), ("images", "id", True),
        ("images", "file_name", 7), ("images", "width", 0), ("images", "height", "8"),
        ("annotations", "bbox", [0, 0, 4]), ("annotations", "bbox", [0, 0, 4, "4"]), ("annotations", "bbox", {}),
        ("annotations", "bbox", [0, 0, 4, float("nan")]), ("annotations", "image_id", [1]),
        ("annotations", "category_id", 1.5), ("annotations", "iscrowd", "no"), ("annotations", "area", float("inf")),
        ("categories", "id", {}), ("categories", "name", 3),
    ],
)  # fmt: skip
def test_a_field_of_another_type(table: str, key: str, value: object, tmp_path: Path) -> None:
    document = json.loads(json.dumps(GOOD))
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert read_annotations(tmp_path / "a.json") == GOOD
    document[table][0][key] = value
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedDataError) as caught:
        read_annotations(tmp_path / "a.json")
    assert f'"{table}", entry 0, "{key}"' in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 99999, "1" * 5000, "{", "[]", "\udcff"])
def test_annotations_that_no_parser_likes(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UnsupportedDataError):
        read_annotations(tmp_path / "a.json")


@pytest.mark.parametrize(
    "body",
    [
        "class E(BaseException): pass\ndef load_data():\n    raise E('x')\n    yield",
        "import sys\ndef load_data():\n    sys.exit(0)\n    yield",
        "def load_data():\n    raise GeneratorExit\n    yield",
        "raise BaseException('while it is loaded')",
        "def load_data(): return 7",
        "def load_data(): yield {'x': [[1], [2, 3]]}",
        "class M(dict):\n    def __getitem__(self, key): 1 / 0\ndef load_data(): yield M(x=1)",
        "class E(Exception):\n    def __str__(self): raise ValueError\ndef load_data():\n    raise E\n    yield",
        "def load_data():\n    load_data()",
        "this is no python",
        "\0",
    ],
)
def test_scripts_that_raise_anything(body: str, tmp_path: Path) -> None:
    (tmp_path / "d.py").write_text(body)
    with pytest.raises(UnsupportedDataError, match=r"d\.py failed"):
        open_source(DataOptions(path=tmp_path / "d.py"), [ROWS])


@pytest.mark.parametrize(
    "text",
    ["samples = " + "1" * 5000, "mean = " + "[" * 5000, "seed = 9223372036854775808", "resize = 999999999", "\x00"],
)
def test_options_that_no_parser_likes(text: str, tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(UsageError):
        DataOptions.from_toml(tmp_path / "d.toml")
