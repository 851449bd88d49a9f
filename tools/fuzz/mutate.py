"""Mutations: of bytes, of protobuf messages by their descriptors, of JSON values. All randomness is passed in."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

NUMBERS = (0, 1, -1, 2, 3, 4, 7, 16, 21, 64, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-7, 3e38, -3e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", "x", "../x", "/etc/passwd", "\x00", "\x1b[31m", "a\nb", "::error::x", "<b>", "|", "ÿ", "\u202e", "1" * 5000
)  # fmt: skip


def bytes_of(random: Random, data: bytes) -> bytes:
    """A copy with one to six edits: flipped, overwritten, cut, doubled, inserted."""
    made = bytearray(data)
    for _ in range(random.randint(1, 6)):
        if not made:
            break
        at = random.randrange(len(made))
        length = min(random.choice((1, 1, 2, 4, 16, 200)), len(made) - at)
        edit = random.randrange(6)
        if edit == 0:
            made[at] ^= 1 << random.randrange(8)
        elif edit == 1:
            made[at : at + length] = random.randbytes(length)
        elif edit == 2:
            del made[at : at + length]
        elif edit == 3:
            made[at:at] = made[at : at + length]
        elif edit == 4:
            made[at : at + length] = bytes([random.choice((0, 0x7F, 0x80, 0xFF))]) * length
        elif random.random() < 0.3:
            del made[at:]
    return bytes(made)


def message(random: Random, root: Message, edits: int | None = None) -> None:
    """One to four edits of random fields at random depth, in place."""
    for _ in range(edits or random.choice((1, 1, 1, 2, 3, 4))):
        owner = _descend(random, root)
        fields = owner.ListFields()
        if fields and random.random() < 0.85:
            field, value = random.choice(fields)
        else:
            field, value = random.choice(owner.DESCRIPTOR.fields), None
        try:
            _edit(random, root, owner, field, value)
        except (ValueError, TypeError):
            continue  # out of the field's range: no mutation


def _descend(random: Random, root: Message) -> Message:
    owner = root
    while True:
        inner = [item for field, value in owner.ListFields() if field.type == FieldDescriptor.TYPE_MESSAGE
                 for item in ([value] if isinstance(value, Message) else value)]  # fmt: skip
        if not inner or random.random() < 0.12:
            return owner
        owner = random.choice(inner)


def _edit(random: Random, root: Message, owner: Message, field: Any, value: Any) -> None:
    name = field.name
    if isinstance(value, Message) or value is None or isinstance(value, (int, float, str, bytes)):
        if value is not None and random.random() < 0.15:
            owner.ClearField(name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            target = getattr(owner, name)
            (target.add() if not isinstance(target, Message) else target).SetInParent()
        elif value is None and not isinstance(getattr(owner, name), (int, float, str, bytes)):
            getattr(owner, name).append(_scalar(random, root, field, None))
        else:
            setattr(owner, name, _scalar(random, root, field, value))
        return
    at = random.randrange(len(value))
    edit = random.randrange(5)
    if edit == 0:
        del value[at]
    elif edit == 1 and isinstance(value[at], Message):
        value.add().CopyFrom(random.choice(value))
    elif edit == 1:
        value.append(value[at])
    elif edit == 2 and isinstance(value[at], Message):
        other, kept = random.randrange(len(value)), copy.deepcopy(value[at])
        value[at].CopyFrom(value[other])
        value[other].CopyFrom(kept)
    elif isinstance(value[at], Message):
        message(random, value[at], 1)
    else:
        value[at] = _scalar(random, root, field, value[at])


def _scalar(random: Random, root: Message, field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return random.choice((*TEXTS, *_names(root))) if random.random() < 0.4 else random.choice(_names(root) or TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes_of(random, value or b"") if random.random() < 0.7 else random.randbytes(random.randrange(40))
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return random.choice(FLOATS)
    nearby = [value - 1, value + 1, value * 2, -value] if isinstance(value, int) else []
    return random.choice((*NUMBERS, *nearby, *range(30)))


def _names(root: Message) -> list[str]:
    """Names in the model: taking one for another makes circles, unknown operands and wrong operators."""
    graph = getattr(root, "graph", None)
    if graph is None:
        return []
    found = [name for node in graph.node for name in (*node.input, *node.output, node.op_type)]
    return [name for name in found + [tensor.name for tensor in graph.initializer] if isinstance(name, str)]


def value_of(random: Random, value: Any) -> Any:
    """A JSON value with one part replaced, removed, doubled or nested."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        made = dict(value)
        choice = random.random()
        if choice < 0.15:
            del made[key]
        elif choice < 0.25:
            made[random.choice(TEXTS)] = made.pop(key)
        else:
            made[key] = value_of(random, value[key])
        return made
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        if random.random() < 0.2:
            return [*value[:at], *value[at + 1 :]]
        return [*value[:at], value_of(random, value[at]), *value[at + 1 :]]
    others = (None, True, False, [], {}, [[]], {"a": {}}, value, [value], 10**400)
    return random.choice((*others, *NUMBERS, *FLOATS[:7], *TEXTS))
