"""The engine's layers, from the engine inspector's JSON or from the log: what runs where, how precise, by which kernel.

    8.x-10.x  tensors have "Format/Datatype": "Half", "Thirty-two wide channel vectorized row major Int8 format."
    11.x      the same split: "Format", "DataType" (or "Datatype"); "Bindings" became "I/O Tensors"
    log       the builder's most verbose message "Layers:" has the same without quotes, a line a layer (seen in
              TensorRT-RTX 1.7); read where no inspector can be had: without a GPU

A kernel is sparse when its `TacticName` holds `sparse_gemm`, `sparse_conv`, `sptensor` or `spmma`. `HasSparseWeights`
only repeats that the weights fit. Sources: developer guide, "Engine Inspector" and the 10.x to 11.x migration guide.

Limits: engines built without detailed profiling verbosity have names only. Types of tensors with dynamic shapes are
known only with an execution context; without, the precision is read off the weights or the tactic's name.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LAYERS = "] Layers:"  # how the line before the printed layers ends
SPARSE_TACTIC = re.compile(r"sparse_gemm|sparse_conv|sptensor|spmma", re.IGNORECASE)

# Longer names first: "BFloat16" holds "Float".
_TYPES = {
    "bfloat16": "BF16", "bf16": "BF16", "float16": "FP16", "half": "FP16", "fp16": "FP16",
    "float8": "FP8", "fp8": "FP8", "e4m3": "FP8", "fp4": "FP4", "int8": "INT8", "int4": "INT4",
    "int32": "INT32", "int64": "INT64", "bool": "BOOL", "float32": "FP32", "fp32": "FP32", "float": "FP32",
}  # fmt: skip
_TACTIC_TYPES = {"i8": "INT8", "e4m3": "FP8", "f16": "FP16", "bf16": "BF16", "f32": "FP32", "tf32": "FP32"}
_TACTIC = re.compile(r"(?:gemm|conv|fprop)\w*?_(i8|e4m3|bf16|tf32|f16|f32)\w*?_")
_PRINTED = re.compile(r"Name: (.*?), LayerType: ([^,]*), (.*)")
_REGION = re.compile(r"_myl\d*_\d+|ForeignNode\[")
_SUFFIX = re.compile(r"( \[profile \d+\])?(_myl\d*_\d+)?( \[profile \d+\])?$")
_OTHER_PROFILE = re.compile(r" \[profile [1-9]\d*\]")
_NARROW = ("FP4", "INT4", "INT8", "FP8", "FP16", "BF16", "FP32")


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name, kind: its name and `LayerType`.
        nodes: names of the ONNX nodes that it was made of, as far as they are reported.
        precision: "INT8", "FP16", …: what it computes in; "" where nothing tells.
        output: type of its first output; "" where nothing tells.
        tactic: the kernel's name; "" for layers that have none.
        sparse: the kernel is a sparse one.
        region: it was compiled by Myelin, which fuses regions of the graph.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    precision: str
    output: str
    tactic: str
    sparse: bool
    region: bool


def read_layers(inspector: str) -> list[Layer]:
    """The layers in execution order; of several profiles, the first one's.

    Raises:
        ValueError: not the inspector's JSON.
    """
    document = json.loads(inspector)
    if not isinstance(document, dict) or not isinstance(document.get("Layers"), list):
        raise ValueError('the engine inspector\'s JSON has no list "Layers"')
    entries = (entry if isinstance(entry, dict) else {"Name": str(entry)} for entry in document["Layers"])
    return _of_first_profile(map(_layer, entries))


def read_printed_layers(log: Iterable[str]) -> list[Layer]:
    """The layers that the log lists last; none where it lists none."""
    found: list[Layer] = []
    for line in log:
        if line.endswith(LAYERS):
            found = []
        elif match := _PRINTED.match(line):
            found.append(_layer(_printed(match)))
    return _of_first_profile(found)


def nodes_of(name: str) -> tuple[str, ...]:
    """The ONNX nodes that a layer's name lists.

    >>> nodes_of("/fc1/MatMul + /fc1/Add_myl0_7")
    ('/fc1/MatMul', '/fc1/Add')
    """
    inner = re.sub(r"^\{?ForeignNode\[(.*)\]\}?$", r"\1", _SUFFIX.sub("", name.strip()))
    parts = re.split(r"\s*\+\s*|\s*\|\|\s*|\.\.\.", inner)
    return tuple(part.strip() for part in parts if part.strip())


def _of_first_profile(layers: Iterable[Layer]) -> list[Layer]:
    """Without other profiles' layers: those marked so, and all of their Myelin regions, where not every layer is."""
    found = list(layers)
    marked = [layer for layer in found if _OTHER_PROFILE.search(layer.name)]
    others = {match[1] for layer in marked if (match := re.search(r"_myl(\d+)_\d+$", layer.name))}
    regions = [(layer, re.search(r"_myl(\d+)_\d+$", layer.name)) for layer in found]
    return [layer for layer, match in regions if layer not in marked and not (match and match[1] in others)]


def _layer(entry: Mapping[str, Any]) -> Layer:
    name, tactic = str(entry.get("Name", "")), str(entry.get("TacticName") or "")
    reported = re.findall(r"\[ONNX Layer: ([^\]\x1e]*)\]", str(entry.get("Metadata") or ""))
    return Layer(
        name=name,
        kind=str(entry.get("LayerType", "")),
        nodes=tuple(dict.fromkeys((*reported, *nodes_of(name)))),
        precision=_precision(entry, tactic),
        output=next(iter(_tensor_types(entry.get("Outputs"))), ""),
        tactic=tactic,
        sparse=bool(SPARSE_TACTIC.search(tactic)),
        region=bool(_REGION.search(name)) or str(entry.get("LayerType", "")).lower() in ("myelin", "kgen", "gemm"),
    )


def _printed(match: re.Match[str]) -> dict[str, Any]:
    """A printed layer as the JSON has it."""
    entry: dict[str, Any] = {"Name": match[1], "LayerType": match[2]}
    for key, end in (("Inputs", "Constants|Outputs"), ("Outputs", "ParameterType|TacticName|$")):
        listed = re.search(rf"{key}: \[(.*?)\](?:, (?:{end})|$)", match[3])
        types = re.findall(r"(?:Format/Datatype|Data[tT]ype): ([^,}\]]+)", listed[1]) if listed else []
        entry[key] = [{"DataType": kind} for kind in types]
    for key, pattern in (("TacticName", r"TacticName: ([^,]*)"), ("Metadata", r"Metadata: (.*)")):
        reported = re.search(pattern, match[3])
        entry[key] = reported[1] if reported else ""
    weights = re.search(r'Weights: \{"Type": "(\w+)"', match[3])
    return entry | ({"Weights": {"Type": weights[1]}} if weights else {})


def _precision(entry: Mapping[str, Any], tactic: str) -> str:
    """The weights' type, else the narrowest type among the first two inputs, else what the tactic's name says."""
    weights = entry.get("Weights")
    if isinstance(weights, dict) and (kind := _type_in(str(weights.get("Type", "")))):
        return kind
    read = set(list(_tensor_types(entry.get("Inputs")))[:2])
    if known := [kind for kind in _NARROW if kind in read]:
        return known[0]
    match = _TACTIC.search(tactic)
    return _TACTIC_TYPES[match[1]] if match else ""


def _tensor_types(tensors: Any) -> Iterable[str]:
    for tensor in tensors if isinstance(tensors, list) else []:
        if isinstance(tensor, dict):
            reported = tensor.get("DataType") or tensor.get("Datatype") or tensor.get("Format/Datatype") or ""
            yield _type_in(str(reported))


def _type_in(text: str) -> str:
    lower = text.lower()
    return next((name for word, name in _TYPES.items() if re.search(rf"(?<![a-z]){word}", lower)), "")
