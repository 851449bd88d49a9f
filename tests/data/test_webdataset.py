"""WebDataset shards: samples by key, labels from .cls, any order, broken members and broken archives."""

import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source
from gpusq_onnx.errors import UnsupportedDataError

SPEC = InputSpec("x", np.dtype(np.float32), ("batch", 3, 8, 8))


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return path


def samples(first: int, count: int) -> dict[str, bytes]:
    found = {}
    for value in range(first, first + count):
        found |= {
            f"{value:04}.json": b"{}",
            f"{value:04}.cls": str(value % 5).encode(),
            f"{value:04}.png": encoded(value),
        }
    return found


def opened(path: Path, **options: object) -> Source:
    return open_source(DataOptions(path=path, mean=(0.0,), std=(1.0,), **options), [SPEC])  # type: ignore[arg-type]


def values(source: Source) -> list[int]:
    return [round(float(row[0, 0, 0]) * 255) for b in source.batches(4) for row in b.feed["x"][: b.size]]


def test_samples_in_order_and_by_index_with_labels(tmp_path: Path) -> None:
    source = opened(shard(tmp_path / "d.tar", samples(0, 12)))
    assert (source.kind, len(source), source.labelled, source.croppable) == ("webdataset", 12, True, True)
    assert values(source) == list(range(12))
    found = source.read([11, 0, 0])
    assert [round(float(row[0, 0, 0]) * 255) for row in found.feed["x"]] == [11, 0, 0]
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0, 0]


def test_a_folder_of_shards_and_samples_spread_over_the_classes(tmp_path: Path) -> None:
    shard(tmp_path / "b.tar", samples(20, 20))
    shard(tmp_path / "a.tar", samples(0, 20))
    assert values(opened(tmp_path)) == list(range(40))
    source = opened(tmp_path, samples=10)
    chosen = values(source)
    assert chosen == sorted(chosen)
    assert np.bincount(np.array(chosen) % 5).tolist() == [2] * 5
    assert source.digest() == opened(tmp_path, samples=10).digest() != opened(tmp_path).digest()


def test_without_labels_and_with_some(tmp_path: Path) -> None:
    plain = {name: data for name, data in samples(0, 4).items() if name.endswith(".png")}
    assert not opened(shard(tmp_path / "a.tar", plain)).labelled
    some = opened(shard(tmp_path / "b.tar", {**plain, "0001.cls": b"3"}))
    assert not some.labelled
    assert "3 of 4 images have no label: labels are not used" in some.notes


def test_a_broken_image_is_named_and_left_out(tmp_path: Path) -> None:
    members = samples(0, 200) | {"0017.png": b"no image"}
    source = opened(shard(tmp_path / "d.tar", members))
    found = source.read([16, 17, 18])
    assert found.indices is not None
    assert found.indices.tolist() == [16, 18]
    assert source.skipped[0].startswith("d.tar/0017.png: ")


@pytest.mark.parametrize(
    ("members", "says"),
    [({"a.txt": b"x"}, "no images"), ({"a.png": encoded(1), "a.cls": b"cat"}, "cannot read"), (None, "cannot read")],
)
def test_shards_that_cannot_be_used(tmp_path: Path, members: dict[str, bytes] | None, says: str) -> None:
    path = tmp_path / "d.tar"
    if members is None:
        path.write_bytes(b"not a tar file" * 100)
    else:
        shard(path, members)
    with pytest.raises(UnsupportedDataError, match=says):
        opened(path)
