"""Which channels may change places: classes of channels that every operator treats alike.

A *channel* is one output channel of a site; each has a number. A tensor that is made of channels carries two arrays of
its own shape: the channel of each element, and its *place*, what else distinguishes it (the token, the pixel). Two
channels may change places if every operator on their way sees them at the same places, and nothing else sees them.
What is known of that is kept here, and only ever grows:

    refine     channels that an operator sees differently come into different classes
    tie        channels that meet elementwise (gate and up) move together from then on
    pin        channels that an operator mixes with others stay where they are, with the reason

Limits: arrays of one image's size; no graph is known here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ChannelLabels:
    """What a tensor is made of.

    Attributes:
        channel: of each element, of the tensor's shape.
        place: of each element, of the same shape.
        seen: an elementwise operator has seen all these elements: another one tells nothing new.
    """

    channel: Ints
    place: Ints
    seen: bool = False

    @classmethod
    def fresh(cls, channels: Ints, shape: tuple[int, ...], axis: int) -> ChannelLabels:
        """Of a tensor whose `axis` counts these channels: all that shares the other indices is one place."""
        others = tuple(1 if a == axis % len(shape) else size for a, size in enumerate(shape))
        place = np.arange(np.prod(others, dtype=np.int64)).reshape(others)
        along = channels.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
        return cls(np.broadcast_to(along, shape), np.broadcast_to(place, shape))

    def moved(self, channel: Ints, place: Ints, *, whole: bool) -> ChannelLabels:
        """The same elements in another layout; `whole`: none is missing or there twice."""
        return ChannelLabels(channel, place, self.seen and whole)

    def rows(self, axis: int) -> ChannelLabels:
        """As [rows, k] with k along `axis`."""
        channel, place = (np.moveaxis(a, axis, -1) for a in (self.channel, self.place))
        k = channel.shape[-1]
        return replace(self, channel=channel.reshape(-1, k), place=place.reshape(-1, k))


class Channels:
    """The classes of `count` channels.

    Args:
        owner: by channel, a number of what makes it: channels of different makers never change places.
    """

    def __init__(self, owner: Ints) -> None:
        self._part = owner.copy()
        self._root = np.arange(len(owner))
        self._slot = np.zeros(len(owner), np.int64)  # which member of its root's cohort a channel is
        self._reason: dict[int, str] = {}
        self._pinned = np.zeros(len(owner), np.bool_)

    def pin(self, channels: Ints, reason: str) -> None:
        """Leave these channels where they are."""
        new = np.unique(channels)
        new = new[~self._pinned[new]]
        self._pinned[new] = True
        self._reason.update(dict.fromkeys(new.tolist(), reason))

    def why(self, channels: Ints) -> str | None:
        """Why one of these channels, or one that it is tied to, is pinned; None: none is."""
        members = np.isin(self._root, self._root[channels])
        pinned = np.nonzero(members & self._pinned)[0]
        return self._reason[int(pinned[0])] if len(pinned) else None

    def refine(self, channel: Ints, *signs: Ints) -> None:
        """Tell channels apart by what lies at their elements, in the elements' order.

        Args:
            channel: of elements.
            signs: arrays of the same shape; channels whose sequences differ come into different classes.
        """
        fixed = _constant_axes(channel)
        flat = _as_rows(channel, fixed)[0]
        by_channel = np.argsort(flat, kind="stable")
        present, counts = np.unique(flat, return_counts=True)
        sequences = np.concatenate([_as_rows(np.broadcast_to(s, channel.shape), fixed) for s in signs])[:, by_channel]
        starts = np.cumsum(counts) - counts
        fresh = int(self._part.max()) + 1
        for count in np.unique(counts):
            chosen = present[counts == count]
            places = starts[counts == count, None] + np.arange(count)
            kinds = _kinds(np.ascontiguousarray(sequences[:, places].swapaxes(0, 1)).reshape(len(places), -1))
            _, kind = np.unique(np.stack([self._part[chosen], kinds], axis=1), axis=0, return_inverse=True)
            self._part[chosen] = fresh + kind.ravel()
            fresh += int(kind.max()) + 1

    def tie(self, a: ChannelLabels, b: ChannelLabels) -> bool:
        """Let the channels of two tensors that meet elementwise move together; False where they do not pair up."""
        one, other = meetings(a.channel, b.channel)
        if len(np.unique(one)) != len(one) or len(np.unique(other)) != len(other):
            return False
        self.refine(a.channel, a.place, b.place)
        self.refine(b.channel, a.place, b.place)
        roots, old = self._root[one], self._root[other]
        if (roots == old).all():  # a channel with itself, or with one that moves with it already
            self.refine(a.channel, self._slot[b.channel])
            return True
        if np.isin(old, roots).any() or len(np.unique(roots)) != len(roots) or len(np.unique(old)) != len(old):
            return False
        new = np.full(len(self._root), -1)
        new[old] = roots
        members = new[self._root] >= 0
        self._slot[members] += 1 + int(self._slot.max())
        self._root[members] = new[self._root[members]]
        return True

    def cohorts(self) -> list[Ints]:
        """Arrays [members, n]: the n columns of each may change places, members of a column together."""
        order = np.lexsort((self._slot, self._root))
        _, starts, counts = np.unique(self._root[order], return_index=True, return_counts=True)
        kinds: dict[tuple[tuple[int, int], ...], list[Ints]] = {}
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            members = order[start : start + count]
            if not self._pinned[members].any():
                sign = tuple(zip(self._slot[members].tolist(), self._part[members].tolist(), strict=True))
                kinds.setdefault(sign, []).append(members)
        return [np.stack(found, axis=1) for found in kinds.values() if len(found) > 1]


def meetings(a: Ints, b: Ints) -> Ints:
    """The different pairs of values at the same elements of two arrays of one shape, [2, n], in order."""
    both = [axis for axis in _constant_axes(a) if axis in _constant_axes(b)]
    return np.unique(np.stack([_as_rows(a, both)[0], _as_rows(b, both)[0]]), axis=1)


def _constant_axes(array: Ints) -> list[int]:
    """The axes along which nothing changes."""
    found = []
    for axis, (size, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
        if size == 1 or stride == 0 or (array == array.take([0], axis)).all():
            found.append(axis)
    return found


def _as_rows(array: Ints, axes: list[int]) -> Ints:
    """As [rows, k]: the given axes first, and as one."""
    others = [axis for axis in range(array.ndim) if axis not in axes]
    rows = int(np.prod([array.shape[axis] for axis in axes], dtype=np.int64))
    return array.transpose(*axes, *others).reshape(rows, -1)


def _kinds(table: Ints) -> Ints:
    """A number for each row of table[n, length], the same for equal rows."""
    kind = np.full(len(table), -1)
    while (left := np.nonzero(kind < 0)[0]).size:
        kind[left[(table[left] == table[left[0]]).all(axis=1)]] = left[0]
    return kind


def sources(labels: Ints, moved: Ints) -> NDArray[np.intp]:
    """Where the elements of an axis come from once channels have changed places.

    Args:
        labels: the channel of each element along the axis.
        moved: by channel, the one that comes to its place.

    Returns:
        [len(labels)]; of a channel's several elements, the first comes from the other's first, and so on.
    """
    by_channel = np.argsort(labels, kind="stable")
    present, starts, counts = np.unique(labels[by_channel], return_index=True, return_counts=True)
    index = np.empty(int(present.max()) + 1, np.intp)
    index[present] = np.arange(len(present))
    number = np.empty(len(labels), np.intp)
    number[by_channel] = np.arange(len(labels)) - np.repeat(starts, counts)
    found: NDArray[np.intp] = by_channel[starts[index[moved[labels]]] + number]
    return found
