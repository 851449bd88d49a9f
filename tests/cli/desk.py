"""A folder in which nothing may appear: what a bad command must leave exactly as it was."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ONNXRUNTIME_S_OWN = ".ses"  # importing it leaves this in $TMPDIR


def names(folder: Path) -> list[str]:
    """What lies in a folder, by name."""
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with the digest of its bytes; folders with an empty one."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if path.name != ONNXRUNTIME_S_OWN
    }


@contextmanager
def unchanged(*folders: Path) -> Iterator[None]:
    """What happens inside neither adds, changes nor removes a file."""
    before = [contents(folder) for folder in folders]
    yield
    after = [contents(folder) for folder in folders]
    assert after == before
