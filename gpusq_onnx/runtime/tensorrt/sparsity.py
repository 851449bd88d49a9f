"""What the build log says of sparse kernels: which layers could have had one, and which got one.

Two wordings:

    8.x-9.x   (Sparsity) Layers eligible for sparse math: A, B + C
              (Sparsity) TRT inference plan picked sparse implementation for layers: A
    10.x on   (Sparsity) Found 2 layer(s) eligible to use sparse tactics: A, B
              (Sparsity) Chose 1 layer(s) using sparse tactics: A

The newer one is printed once a region, with the names only in the verbose log: names are united, and where there are
none the counts are added up (regions share no layer). Of several profiles the first counts.

Sources: developer guide, "Structured Sparsity"; the text in TensorRT-RTX 1.7's library. Limits: *eligible* says that
the weights fit; *chosen* that a sparse kernel was timed faster.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_ELIGIBLE = (r"Layers eligible for sparse math:()(.*)", r"Found (\d+) layer\(s\) eligible to use sparse tactics:?(.*)")
_CHOSEN = (
    r"TRT inference plan picked sparse implementation for layers:()(.*)",
    r"Chose (\d+) layer\(s\) using sparse tactics:?(.*)",
)

_OTHER_PROFILE = re.compile(r" \[profile [1-9]\d*\]")


@dataclass(frozen=True)
class SparsityLog:
    """The union over all regions.

    Attributes:
        said: the log speaks of sparsity at all; if not, nothing is known.
        eligible, chosen: layer names, in the log's order, each once.
        eligible_count, chosen_count: as many as there are names, or the counts where there are none.
    """

    said: bool
    eligible: tuple[str, ...]
    chosen: tuple[str, ...]
    eligible_count: int
    chosen_count: int


def read_sparsity(lines: Iterable[str]) -> SparsityLog:
    """Read a build log.

    >>> log = read_sparsity(["[I] (Sparsity) Found 2 layer(s) eligible to use sparse tactics: a, b + c"])
    >>> log.eligible, log.eligible_count, log.chosen_count
    (('a', 'b + c'), 2, 0)
    """
    relevant = [line for line in lines if "(Sparsity)" in line]
    eligible, could = _union(relevant, _ELIGIBLE)
    chosen, did = _union(relevant, _CHOSEN)
    eligible = tuple(dict.fromkeys((*eligible, *chosen)))  # what was chosen was eligible
    said = any(re.search(pattern, line) for line in relevant for pattern in (*_ELIGIBLE, *_CHOSEN))
    return SparsityLog(said, eligible, chosen, len(eligible) or could, len(chosen) or did)


def _union(lines: Iterable[str], patterns: Iterable[str]) -> tuple[tuple[str, ...], int]:
    """(names, count): the count is the sum of those that came without names."""
    names: dict[str, None] = {}
    count = 0
    for match in filter(None, (re.search(pattern, line) for line in lines for pattern in patterns)):
        listed = [name.strip() for name in match[2].split(", ") if name.strip()]
        names.update(dict.fromkeys(name for name in listed if not _OTHER_PROFILE.search(name)))
        count += int(match[1] or 0) if not listed else 0
    return tuple(names), count
