"""Parquet files of images: columns by type, labels, order, random access, broken rows, the missing library."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded

from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source
from gpusq_onnx.errors import EnvironmentLacking, UnsupportedDataError

pa = pytest.importorskip("pyarrow", reason="pip install 'gpusq-onnx[data]'")
pq = pytest.importorskip("pyarrow.parquet")

SPEC = InputSpec("x", np.dtype(np.float32), ("batch", 3, 8, 8))
CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10" / "test.parquet"


def write(path: Path, first: int, count: int, **columns: Any) -> Path:
    images = [{"bytes": encoded(first + row), "path": f"{row}.png"} for row in range(count)]
    labels = [(first + row) % 5 for row in range(count)]
    pq.write_table(pa.table({"img": images, "label": labels, **columns}), path, row_group_size=7)
    return path


def opened(path: Path, **options: Any) -> Source:
    return open_source(DataOptions(path=path, mean=(0.0,), std=(1.0,), **options), [SPEC])


def values(source: Source, batch: int = 4) -> list[int]:
    return [round(float(row[0, 0, 0]) * 255) for b in source.batches(batch) for row in b.feed["x"][: b.size]]


def test_rows_come_in_order_with_their_labels(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "d.parquet", 0, 40))
    assert (source.kind, len(source), source.labelled) == ("parquet", 40, True)
    for _ in range(2):
        assert values(source) == list(range(40))
    labels = np.concatenate([b.labels for b in source.batches(16) if b.labels is not None])
    assert labels.dtype == np.int64
    assert labels.tolist() == [row % 5 for row in range(40)]


def test_rows_by_index(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "d.parquet", 0, 40))
    found = source.read([33, 2, 2, 39])
    assert [round(float(row[0, 0, 0]) * 255) for row in found.feed["x"]] == [33, 2, 2, 39]
    assert found.labels is not None
    assert found.labels.tolist() == [3, 2, 2, 4]
    assert source.croppable


def test_a_folder_of_files_is_one_source(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", 10, 5)
    write(tmp_path / "a.parquet", 0, 10)
    source = opened(tmp_path)
    assert values(source) == list(range(15))
    assert source.read([14]).feed["x"][0, 0, 0, 0] == np.float32(14 / 255)


def test_samples_are_spread_over_the_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", 0, 40)
    chosen = {seed: values(opened(path, samples=10, seed=seed)) for seed in (0, 1)}
    assert chosen[0] == sorted(chosen[0]) != chosen[1]
    assert np.bincount(np.array(chosen[0]) % 5).tolist() == [2] * 5
    source = opened(path, samples=10)
    found = source.read(list(range(10))[::-1])
    assert [round(float(row[0, 0, 0]) * 255) for row in found.feed["x"]] == chosen[0][::-1]
    assert found.labels is not None
    assert found.labels.tolist() == [value % 5 for value in chosen[0][::-1]]
    assert source.digest() != opened(path).digest() == opened(path).digest()


def test_binary_columns_and_no_labels(tmp_path: Path) -> None:
    table = pa.table({"note": ["a", "b"], "picture": [encoded(3), encoded(4)]})
    pq.write_table(table, tmp_path / "d.parquet")
    source = opened(tmp_path / "d.parquet")
    assert not source.labelled
    assert values(source) == [3, 4]
    assert source.read([1]).labels is None


def test_a_broken_row_is_named_and_left_out(tmp_path: Path) -> None:
    images = [encoded(1)] * 60 + [b"no image", None] + [encoded(2)] * 160
    pq.write_table(
        pa.table({"image": pa.array(images, pa.binary()), "label": list(range(222))}), tmp_path / "d.parquet"
    )
    source = opened(tmp_path / "d.parquet")
    found = source.read([59, 60, 61, 62])
    assert found.labels is not None
    assert (found.size, found.labels.tolist()) == (2, [59, 62])
    assert [name.partition(":")[0] for name in source.skipped] == ["row 60", "row 61"]
    assert len(values(source)) == 220


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(UnsupportedDataError, match="cannot read"):
        opened(tmp_path / "a.parquet")
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(UnsupportedDataError, match="no column of"):
        opened(tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "c.parquet")
    with pytest.raises(UnsupportedDataError, match="no rows"):
        opened(tmp_path / "c.parquet")


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "d.parquet", 0, 4)
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError("No module named 'pyarrow'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(EnvironmentLacking, match=r"pip install 'gpusq-onnx\[data\]'") as caught:
        opened(path)
    assert caught.value.exit_code == 5


@pytest.mark.skipif(not CIFAR.is_file(), reason="needs ../shared/data/cifar10")
def test_cifar10_as_it_comes() -> None:
    spec = InputSpec("x", np.dtype(np.float32), ("batch", 3, 32, 32))
    source = open_source(DataOptions(path=CIFAR, samples=50), [spec])
    batch = next(source.batches(50))
    assert (batch.size, source.labelled) == (50, True)
    assert batch.labels is not None
    assert np.bincount(batch.labels).tolist() == [5] * 10
    np.testing.assert_array_equal(source.read([30, 4]).feed["x"], batch.feed["x"][[30, 4]])
