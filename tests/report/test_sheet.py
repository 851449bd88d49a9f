"""A result in words: the same parts as a screen of any width, and as Markdown."""

import pytest

from gpusq_onnx.report.sheet import Answer, Commands, Grid, Heading, Item, Line, markdown, screen

LONG = "encoder.layers.11." + "a" * 60
PARTS = [
    Heading("b.onnx against a.onnx"),
    Answer("gates: min_ap = 1: NOT MET"),
    Item("AP | `x`"),
    Grid(["tensor", "empty", "distance"], [[f"{LONG}.{number}", "", "0.5"] for number in range(200)]),
    Line("a sentence"),
    Heading("Kernels", 2),
    Grid(["kernel"], [["sparse INT8"]]),
    Commands("the same again", ["gpusq-onnx check a.onnx b.onnx"]),
]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_screen_is_no_wider_than_the_terminal_nor_longer_than_a_screen(width: int) -> None:
    lines = screen(PARTS, width, "--report FILE.json")
    assert len(lines) <= 60 and max(map(len, lines)) <= width
    assert lines[:2] == ["b.onnx against a.onnx", "gates: min_ap = 1: NOT MET"]
    assert "lines more: --report FILE.json" in "\n".join(lines) and "empty" not in "\n".join(lines)
    assert lines[-2:] == ["the same again:", "  gpusq-onnx check a.onnx b.onnx"] and "Kernels:" in lines


def test_without_a_word_on_what_shows_more_all_is_shown() -> None:
    text = "".join("".join(screen(PARTS, 80)).split())
    assert text.count("encoder.layers.11.") == 200 and "lines more" not in text


def test_many_columns_find_room() -> None:
    grid = Grid([f"column {n}" for n in range(9)], [["1,234.56 (8.00x)"] * 9])
    assert max(map(len, screen([grid], 80))) <= 9 * 8 + 2 * 8


def test_markdown_keeps_lists_together_and_text_as_text() -> None:
    text = markdown([Heading("a"), Answer("met"), Item("`b`"), Item("c"), *PARTS[4:]])
    assert text == (
        "# a\n\n**met**\n\n- \\`b\\`\n- c\n\na sentence\n\n## Kernels\n\n| kernel      |\n| ----------- |\n"
        "| sparse INT8 |\n\nthe same again:\n\n```\ngpusq-onnx check a.onnx b.onnx\n```\n"
    )
    assert markdown([Grid(["a"], [])]) == "(none)\n"
