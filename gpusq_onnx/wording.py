"""Errors and warnings in the caller's words: options on the command line, `--min-top1`; parameters in Python.

Errors are raised with the option's name, wherever that is known. Text that holds a command to type stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from gpusq_onnx.errors import GpusqError

P = ParamSpec("P")
T = TypeVar("T")

_OPTIONS: ContextVar[bool] = ContextVar("options", default=False)
_OPTION = re.compile(r"(?<![\w/-])--([a-z][a-z0-9-]*)")
_COMMAND = re.compile(r"gpusq-onnx |python -m |pip install|on the command line")
_OTHERS = {"set": "overrides", "method": "methods", "model": "models", "artefacts": "look.artefacts"}
_REPLACED = (
    (re.compile(r"another -o/--output"), "another output"),
    (re.compile(r" with -o(/--output)?"), ""),
    (re.compile(r" and quote the whole for the shell"), ""),
    (re.compile(r"quote the text, --passes ('.*?') \(the shell.*"), r"e.g. \1"),
)


@contextmanager
def as_options() -> Iterator[None]:
    """Around a command line: errors keep the names of options."""
    token = _OPTIONS.set(True)
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def worded(workflow: Callable[P, T]) -> Callable[P, T]:
    """The workflow; its errors name parameters where no command line is under way."""

    @wraps(workflow)
    def run(*args: P.args, **named: P.kwargs) -> T:
        try:
            return workflow(*args, **named)
        except GpusqError as error:
            if not _OPTIONS.get():
                error.reword(in_python)
            raise

    return run


def in_callers_words(texts: Iterable[str]) -> tuple[str, ...]:
    """Sentences of a result, such as warnings, as errors are worded."""
    return tuple(texts) if _OPTIONS.get() else tuple(map(in_python, texts))


def in_python(text: str) -> str:
    """The text with parameters in place of options."""
    if _COMMAND.search(text):
        return text
    for pattern, words in _REPLACED:
        text = pattern.sub(words, text)
    return _OPTION.sub(lambda found: _OTHERS.get(found[1], found[1].replace("-", "_")), text)
