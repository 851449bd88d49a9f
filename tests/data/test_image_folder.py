import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpusq_onnx.data.listing import list_images, read_classes, sample_order
from gpusq_onnx.data.opening import open_source
from gpusq_onnx.data.options import DataOptions
from gpusq_onnx.data.source import InputSpec, Source
from gpusq_onnx.errors import UnsupportedDataError, UsageError

SPEC = InputSpec("x", np.dtype(np.float32), ("batch", 3, 8, 8))
PLAIN = {"mean": (0.0,), "std": (1.0,)}


def put(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)


def values(source: Source, batch: int = 4) -> list[int]:
    """The grey level that names each image, in the order in which they come."""
    rows = [row for b in source.batches(batch) for row in b.feed["x"][: b.size]]
    return [round(float(row[0, 0, 0]) * 255) for row in rows]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """3 classes of 4 images under data/, grey level 10 * class + number; and a classes file with Windows line ends."""
    for number, name in enumerate(["n03", "n01", "n02"]):
        for image in range(4):
            put(tmp_path / "data" / name / f"{image}.{['png', 'BMP', 'webp', 'png'][image]}", 10 * number + image)
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfn00\r\nn03\r\nn01\r\nn02\r\n")
    return tmp_path


def test_labels_are_the_lines_of_the_classes_file(tree: Path) -> None:
    options = DataOptions(path=tree / "data", classes=tree / "classes.txt", **PLAIN)
    source = open_source(options, [SPEC])
    assert source.labelled
    labels = np.concatenate([b.labels for b in source.batches(5) if b.labels is not None])
    assert labels.dtype == np.int64
    assert list(labels) == [1 + value // 10 for value in values(source)]
    assert len(labels) == len(source) == 12


def test_without_a_classes_file_nothing_is_numbered(tree: Path) -> None:
    source = open_source(DataOptions(path=tree / "data"), [SPEC])
    assert not source.labelled
    assert [b.labels for b in source.batches(12)] == [None]


def test_samples_are_spread_and_a_prefix_of_more_samples(tree: Path) -> None:
    chosen = {n: values(open_source(DataOptions(path=tree / "data", samples=n, **PLAIN), [SPEC])) for n in (3, 6, 12)}
    assert sorted(value // 10 for value in chosen[3]) == [0, 1, 2]
    assert sorted(value // 10 for value in chosen[6]) == [0, 0, 1, 1, 2, 2]
    assert chosen[12][:6] == chosen[6]
    assert chosen[6][:3] == chosen[3]
    assert len(set(chosen[12])) == 12


def test_order_depends_on_names_and_seed_only(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def order(seed: int) -> list[int]:
        return values(open_source(DataOptions(path=tree / "data", samples=7, seed=seed, **PLAIN), [SPEC]))

    first = order(0)
    walk, shuffler = os.walk, random.Random(1)

    def shuffled(top: object, **kwargs: object) -> object:
        for folder, below, names in walk(top, **kwargs):  # type: ignore[call-overload]
            shuffler.shuffle(below)
            shuffler.shuffle(names)
            yield folder, below, names

    monkeypatch.setattr(os, "walk", shuffled)
    assert order(0) == first
    assert any(order(seed) != first for seed in (1, 2, 3))


def test_order_is_pinned() -> None:
    """Every machine, NumPy and Python must choose the same: to change this list is to change users' models."""
    files = [f"{folder}/{number}.jpg" for folder in "abc" for number in range(3)]
    assert sample_order(files, seed=0) == [6, 5, 0, 7, 3, 2, 8, 4, 1]


def test_batch_size_changes_nothing_else(tree: Path) -> None:
    source = open_source(DataOptions(path=tree / "data", **PLAIN), [SPEC])
    assert values(source, 1) == values(source, 5) == values(source, 100)
    assert [b.size for b in source.batches(5)] == [5, 5, 2]


@pytest.mark.parametrize(("static", "sizes"), [(1, [1] * 12), (5, [5, 5, 2])])
def test_static_batch_is_kept_and_filled(tree: Path, static: int, sizes: list[int]) -> None:
    spec = InputSpec("x", np.dtype(np.float32), (static, 3, 8, 8))
    options = DataOptions(path=tree / "data", classes=tree / "classes.txt", **PLAIN)
    source = open_source(options, [spec])
    batches = list(source.batches(64))
    assert [b.size for b in batches] == sizes
    assert all(b.feed["x"].shape == (static, 3, 8, 8) for b in batches)
    assert all(b.labels is not None and len(b.labels) == b.size for b in batches)
    assert values(source) == values(open_source(options, [SPEC]))


def test_digest_follows_the_files_used(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def digest(root: Path = tree, **more: object) -> str:
        return open_source(DataOptions(path=root / "data", **more), [SPEC]).digest()  # type: ignore[arg-type]

    before = digest()
    assert digest() == before
    assert digest(samples=3) != before
    elsewhere = tmp_path_factory.mktemp("copy")
    for file in (tree / "data").rglob("*.*"):
        target = elsewhere / "data" / file.relative_to(tree / "data")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    assert digest(elsewhere) == before
    put(tree / "data" / "n01" / "0.png", 200)
    assert digest() != before


def test_other_files_are_left_alone_and_counted(tree: Path) -> None:
    (tree / "data" / "README.txt").write_text("hello")
    (tree / "data" / "n01" / "._0.png").write_bytes(b"macOS")
    (tree / "data" / "n01" / ".cache").mkdir()
    put(tree / "data" / "n01" / ".cache" / "thumb.png", 99)
    source = open_source(DataOptions(path=tree / "data", **PLAIN), [SPEC])
    assert len(source) == 12
    assert "ignored 1 other file: images are files ending in .jpg, .jpeg, .png, .bmp, .webp" in source.notes


def test_nested_class_folders(tmp_path: Path) -> None:
    put(tmp_path / "data" / "train" / "n01" / "images" / "a.png", 1)
    put(tmp_path / "data" / "val" / "n02" / "b.png", 2)
    (tmp_path / "classes.txt").write_text("n02\nn01\n")
    source = open_source(DataOptions(path=tmp_path / "data", classes=tmp_path / "classes.txt", **PLAIN), [SPEC])
    (batch,) = source.batches(2)
    assert batch.labels is not None
    assert dict(zip(values(source), batch.labels.tolist(), strict=True)) == {1: 1, 2: 0}


def test_linked_folders_are_followed_once(tree: Path) -> None:
    (tree / "linked").mkdir()
    (tree / "linked" / "n01").symlink_to(tree / "data" / "n01")
    (tree / "linked" / "n01" / "loop").symlink_to(tree / "linked")
    assert list_images(tree / "linked")[0] == ["n01/0.png", "n01/1.BMP", "n01/2.webp", "n01/3.png"]


def test_unknown_class_folders_are_named(tree: Path) -> None:
    put(tree / "data" / "n04" / "a.png", 1)
    put(tree / "data" / "loose.png", 1)
    with pytest.raises(UnsupportedDataError) as error:
        open_source(DataOptions(path=tree / "data", classes=tree / "classes.txt"), [SPEC])
    assert "(no folder), n04" in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"n01\nn02\nn01\n", b"\xff\xfe"])
def test_unusable_classes_file(tree: Path, content: bytes | None) -> None:
    file = tree / "other.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=r"other\.txt"):
        open_source(DataOptions(path=tree / "data", classes=file), [SPEC])


def test_blank_line_inside_a_classes_file_keeps_its_number(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a\n\nb\n\n")
    assert read_classes(tmp_path / "c.txt")["b"] == 2


def corrupt_folder(root: Path, good: int, bad: int) -> None:
    for number in range(good):
        put(root / f"{number:03}.png", number % 256)
    for number in range(bad):
        Image.new("RGB", (64, 64), (9, 9, 9)).save(root / f"bad{number}.jpg")
        os.truncate(root / f"bad{number}.jpg", 400)


@pytest.mark.parametrize("static", ["batch", 1])
def test_a_corrupt_image_is_named_skipped_and_counted(tmp_path: Path, static: str | int) -> None:
    corrupt_folder(tmp_path, good=99, bad=1)
    spec = InputSpec("x", np.dtype(np.float32), (static, 3, 8, 8))
    source = open_source(DataOptions(path=tmp_path, **PLAIN), [spec])
    for _ in range(2):  # a second pass counts nothing twice
        assert sorted(values(source, 16)) == list(range(99))
        assert [name.partition(":")[0] for name in source.skipped] == ["bad0.jpg"]
    assert source.describe()["skipped"] == source.skipped


def test_past_one_percent_corrupt_is_an_error(tmp_path: Path) -> None:
    corrupt_folder(tmp_path, good=100, bad=2)
    source = open_source(DataOptions(path=tmp_path), [SPEC])
    with pytest.raises(UnsupportedDataError, match=r"at least \d of 102 images cannot be read(?s:.)*bad\d\.jpg"):
        list(source.batches(16))


@pytest.mark.parametrize(("good", "bad"), [(0, 2), (1, 8)])
def test_corrupt_images_are_counted_to_the_end(tmp_path: Path, good: int, bad: int) -> None:
    """And not to the first one that is too many."""
    corrupt_folder(tmp_path, good, bad)
    source = open_source(DataOptions(path=tmp_path), [SPEC])
    with pytest.raises(UnsupportedDataError, match=f"{bad} of {good + bad} images cannot be read") as caught:
        list(source.batches(1))
    assert "at least" not in str(caught.value)
    assert str(caught.value).count(".jpg: ") == min(bad, 5)
    assert ("and 3 more" in str(caught.value)) == (bad == 8)


def test_notes_say_what_was_done_to_odd_sizes(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 1)
    Image.new("RGB", (4, 4)).save(tmp_path / "small.png")
    source = open_source(DataOptions(path=tmp_path, samples=5), [SPEC])
    list(source.batches(2))
    assert source.notes == [
        "5 samples asked for, 2 there are: all of them are used",
        "cropped and not resized: 1 of 2 images, a side of them no longer than 9 px",
        "enlarged to the crop 8x8: 1 of 2 images, smaller than it",
    ]


def test_memory_is_three_batches_whatever_the_number_of_images(tmp_path: Path) -> None:
    for number in range(64):
        put(tmp_path / f"{number}.png", number)
    source = open_source(DataOptions(path=tmp_path), [InputSpec("x", np.dtype(np.float32), ("batch", 3, 256, 256))])
    batch_bytes = 4 * 3 * 256 * 256 * 4
    tracemalloc.start()
    for _ in source.batches(4):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch_bytes < peak < 3.3 * batch_bytes


def test_leaving_early_leaves_no_thread(tree: Path) -> None:
    import threading

    source = open_source(DataOptions(path=tree / "data"), [SPEC])
    before = threading.active_count()
    stream = source.batches(2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("other", [False, True])
def test_a_folder_without_images(tmp_path: Path, other: bool) -> None:
    if other:
        (tmp_path / "labels.csv").write_text("a,b")
    with pytest.raises(UnsupportedDataError, match=r"1 other file\n.*convert" if other else "empty folder"):
        open_source(DataOptions(path=tmp_path), [SPEC])
