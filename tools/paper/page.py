"""The tables of docs/paper.md from the records, each between its marks; the prose around them is written by hand.

    <!-- table1 -->  ...  <!-- end -->        what stands between is written anew by `python -m tools.paper`

What was not run is shown as such. Tables 5 and 6 are quoted from docs/benchmarks.md, where their numbers live.
tests/tools/test_paper.py holds the committed page to the committed records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gpusq_onnx.report.markdown import table
from tools.paper import columns
from tools.paper.quoted import ablation, four_bits, label_free
from tools.paper.rows import CAM, FORMATS, REAL, ROWS, SOURCES, Format, Row

Record = Mapping[str, Any]
Records = Mapping[str, Record]

NOT_RUN = "not run"
END = "<!-- end -->"


def filled(text: str, records: Records) -> str:
    """The page with every block written anew from the records of steps that ended well, by "MODEL.KIND".

    Raises:
        ValueError: a block's mark is not there, or has no end.
    """
    for name, lines in BLOCKS.items():
        mark = f"<!-- {name} -->"
        begin = text.find(mark)
        end = text.find(END, begin)
        if begin < 0 or end < 0:
            raise ValueError(f"the page has no block between {mark} and {END}")
        made = "\n".join([mark, "", *lines(records), ""])
        text = f"{text[:begin]}{made}\n{text[end:]}"
    return text


def must_hold(records: Records) -> list[tuple[Row, str, str]]:
    """The rows of Table 1 that were counted, each with the reasons why Params and FLOPs are not as published ("")."""
    found = [(row, records.get(f"{row.model}.shapes")) for row in ROWS if row.table == 1]
    return [
        (row, columns.params_difference(row, record), columns.flops_difference(row, record))
        for row, record in found
        if record is not None
    ]


def _summary(done: Records) -> list[str]:
    steps = [f"{row.model}.{kind}" for row in ROWS for kind in ("shapes", *FORMATS)]
    judged = must_hold(done)
    near = sum(not params and not flops for _, params, flops in judged)
    commits = ", ".join(sorted({record["commit"] for record in done.values()})) or "none"
    return [
        f"{sum(step in done for step in steps)} of {len(steps)} steps (18 models: counted, INT8, INT4) have run.",
        f"Of the {len(judged)} rows of Table 1 that were counted, {near} have the published dense Params and FLOPs",
        "within 2 %; where one has not, the difference is named.",
        f"Last commit of the code that counted and compressed: {commits}.",
    ]


def _table(number: int) -> Callable[[Records], list[str]]:
    rows = [row for row in ROWS if row.table == number]

    def lines(done: Records) -> list[str]:
        parts = (_dense, _counted, _bytes, _legal)
        return [line for part in parts for line in (*part(rows, done), "")][:-1]

    return lines


def _dense(rows: Sequence[Row], done: Records) -> list[str]:
    cells = []
    for row in rows:
        record = done.get(f"{row.model}.shapes")
        published = [_number(row.params), _number(row.macs)]
        if record is None:
            cells.append([row.name, published[0], NOT_RUN, "", published[1], NOT_RUN, "", ""])
            continue
        params, macs = record["dense"]["parameters"] / 1e6, columns.dense_macs(record) / 1e9
        reasons = {"Params": columns.params_difference(row, record), "FLOPs": columns.flops_difference(row, record)}
        named = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
        said = named[0].split(": ", 1)[1] if len(set(reasons.values())) == 1 and named else "; ".join(named)
        cells.append(
            [
                row.name, published[0], f"{params:.2f}", _apart(params, row.params),
                published[1], f"{macs:.2f}", _apart(macs, row.macs), said,
            ]
        )  # fmt: skip
    header = ["dense", "Params (M) published", "counted", "", "FLOPs (10⁹ MACs) published", "counted", "", "difference"]
    return table(header, cells)


def _counted(rows: Sequence[Row], done: Records) -> list[str]:
    cells = [_counts(row, form, done) for row in rows for form in FORMATS.values()]
    header = [
        "compressed", "format", "Params (M) all compressed", "as stored", "times smaller", "without what stays FP32",
        "the paper's", "FLOPs (G) all compressed", "as stored", "times less", "of compressed products", "the paper's",
    ]  # fmt: skip
    return table(header, cells)


def _counts(row: Row, form: Format, done: Records) -> list[str]:
    dense, found = done.get(f"{row.model}.shapes"), done.get(f"{row.model}.{form.key}")
    flops = f"{form.flops[0]}-{form.flops[1]} x" if row.table == 1 else "30.3-62 x"
    params = f"{form.params} x"
    if dense is None:
        return [row.name, form.name, NOT_RUN, "", "", "", params, NOT_RUN, "", "", "", flops]
    all_params = columns.paper_params(dense["dense"]["parameters"], form) / 1e6
    all_flops = columns.paper_flops(dense["dense"]["dense_macs"], form) / 1e9
    known = found or dense["planned"][form.key]
    ratios, after, mark = columns.ratios(dense, known), known["after"], "" if found else " (planned)"
    return [
        row.name, form.name,
        _small(all_params), f"{_small(after['stored_parameters'] / 1e6)}{mark}",
        _times(ratios["params"]), _times(ratios["weights"]), params,
        _small(all_flops), f"{_small(columns.stored_flops(after['bit_operations']) / 1e9)}{mark}",
        _times(ratios["flops"]), _times(ratios["products"]), flops,
    ]  # fmt: skip


def _bytes(rows: Sequence[Row], done: Records) -> list[str]:
    cells = []
    for row, form, dense, found in _compressed(rows, done):
        after, before = found["after"], dense["dense"]
        sizes = (dense["file_bytes"], found["file_bytes"], found["packed_bytes"])
        cells.append(
            [
                row.name, form.name, *(f"{size:,}" for size in sizes),
                _times(dense["file_bytes"] / found["packed_bytes"]),
                f"{before['dense_macs'] / 1e9:.2f}", f"{after['sparse_macs'] / 1e9:.2f}",
                f"{dense['attention_macs'] / 1e9:.2f}", f"{before['bit_operations'] / 1e9:,.0f}",
                f"{after['bit_operations'] / 1e9:,.1f}",
            ]
        )  # fmt: skip
    header = [
        "bytes and operations", "format", "dense file", "written file", "packed", "smaller", "dense MACs (10⁹)",
        "sparse MACs (10⁹)", "attention MACs (10⁹)", "bit operations before (10⁹)", "after (10⁹)",
    ]  # fmt: skip
    return table(header, cells) if cells else ["Bytes and operations: not run."]


def _legal(rows: Sequence[Row], done: Records) -> list[str]:
    cells = []
    for row, form, dense, found in _compressed(rows, done):
        codes = found["codes"]
        cosines = [value for value in found["check"]["cosines"].values() if value is not None]
        cells.append(
            [
                row.name, form.name, str(codes["quantised"]), f"{codes['follow']} {form.rule}",
                str(len(codes["off_grid"])), _verdict(dense["parser"]), _verdict(found["parser"]),
                f"{min(cosines):.3f}" if cosines else "-", str(found["check"]["nonfinite"]),
            ]
        )  # fmt: skip
    header = [
        "legality", "format", "weights with codes", "that follow the pattern", "off their grid", "parser, dense",
        "parser and engine, compressed", "lowest cosine, random weights", "not finite",
    ]  # fmt: skip
    return table(header, cells) if cells else ["Legality: not run."]


def _compressed(
    rows: Sequence[Row], done: Records
) -> Iterator[tuple[Row, Format, Mapping[str, Any], Mapping[str, Any]]]:
    for row in rows:
        for form in FORMATS.values():
            dense, found = done.get(f"{row.model}.shapes"), done.get(f"{row.model}.{form.key}")
            if dense is not None and found is not None:
                yield row, form, dense, found


def _real(done: Records) -> list[str]:
    cells = []
    for row in REAL:
        for form in FORMATS.values():
            found = done.get(f"{row.model}.{form.key}")
            if found is None:
                cells.append([row.name, form.name, NOT_RUN, "", "", "", ""])
                continue
            check = found["check"]
            key, label = ("top1", "top-1") if "top1" in check["dense"] else ("AP", "AP")
            agreement = check["agreement"]
            cells.append(
                [
                    row.name, f"{form.name}: `{found['pipeline']}`", f"{label} {check['dense'][key]:.1%}",
                    f"{label} {check['compressed'][key]:.1%}", "-" if agreement is None else f"{agreement:.1%}",
                    str(check["samples"]), _verdict(found["parser"]),
                ]
            )  # fmt: skip
    header = ["model", "format, passes", "dense", "compressed", "agreement", "images", "engine"]
    return table(header, cells)


def _table2(done: Records) -> list[str]:
    cells = []
    for row in (row for row in ROWS if row.table == 1):
        dense = done.get(f"{row.model}.shapes")
        if dense is None:
            continue
        rest = ["-", "-", "-"]
        before = dense["dense"]
        flops = columns.stored_flops(before["bit_operations"]) / 1e9
        cells.append([row.name, "FP32", _small(before["stored_parameters"] / 1e6), _small(flops), *rest])
        for form in FORMATS.values():
            found = done.get(f"{row.model}.{form.key}")
            if found is not None:
                after = found["after"]
                flops = columns.stored_flops(after["bit_operations"]) / 1e9
                cells.append([row.name, form.name, _small(after["stored_parameters"] / 1e6), _small(flops), *rest])
    header = [
        "model", "format", "params (M)", "FLOPs (G)", "latency, batch 1 (ms)", "throughput, batch 256 (images/s)",
        "x dense INT8",
    ]  # fmt: skip
    return table(header, cells)


def _maps(done: Records) -> list[str]:
    found = done.get(f"{CAM}.figures")
    if found is None:
        return [f"Not run: `python -m tools.paper --only {CAM}`."]
    cells = [
        [place, f"`{look['layer']}`", *(f"{look['agreement'][key]:.3f}" for key in FORMATS)]
        for place, look in found["looks"].items()
    ]
    same = ["the same class is seen", "", *(f"{found['same'][key]:.0%}" for key in FORMATS)]
    return [
        f"{found['images']} images:",
        "",
        *table(["Grad-CAM at", "tensor", *(form.name for form in FORMATS.values())], [*cells, same]),
    ]


def _sources(_: Records) -> list[str]:
    used = dict.fromkeys(row.source for row in ROWS)
    rows = [[SOURCES[name], ", ".join(row.name for row in ROWS if row.source == name)] for name in used]
    return table(["source", "rows"], rows)


def _missing(done: Records) -> list[str]:
    steps = [(row.model, kind) for row in (*ROWS, *REAL) for kind in ("shapes", *FORMATS)]
    missing = [(model, kind) for model, kind in steps if f"{model}.{kind}" not in done]
    if not missing:
        return ["Nothing."]
    names = ", ".join(f"`{model}.{kind}`" for model, kind in missing)
    return [
        f"{len(missing)} steps: {names}. This goes on with them:",
        "",
        "```console",
        "$ python -m tools.paper",
        "```",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _apart(found: float, published: float | None) -> str:
    return "" if published is None else f"{columns.away(found, published):+.1%}"


def _times(value: float) -> str:
    return f"{value:.2f} x"


def _small(value: float) -> str:
    return f"{value:.3g}"


def _verdict(found: Mapping[str, Any]) -> str:
    if found["ok"] is None:
        return "not asked"
    if found["ok"]:
        return "built" if found["built"] else "parsed"
    return f"refused: {found['errors'][0][:80]}"


BLOCKS: Mapping[str, Callable[[Records], list[str]]] = {
    "summary": _summary,
    "table1": _table(1),
    "table3": _table(3),
    "table4": _table(4),
    "accuracy": _real,
    "table2": _table2,
    "table5": lambda _: label_free(),
    "table5 four bits": lambda _: four_bits(),
    "table6": lambda _: ablation(),
    "maps": _maps,
    "sources": _sources,
    "missing": _missing,
}
"""What stands between the marks of a name."""
