"""The child process in which a TensorRT parser meets a model, so that its crash is not ours.

`parser.parser_verdict` starts it with one JSON request and reads one JSON answer from the file that the request names.
The answer names the library as soon as that has started, so that a crash of a TensorRT that cannot run here is reported
from a crash over the model. Networks are strongly typed, as TensorRT 11's always are; the builder looks for sparse
weights; dynamic dimensions of the one profile are batch 1 or what the request says.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from gpusq_onnx.runtime.child import serve

_HARNESS_NOISE = "catchCudaError"
"""Marks the line that TensorRT adds to an error on a machine with no driver; it says nothing about the model."""


class ParseRequest(TypedDict):
    """What the parent asks: `site` goes to the start of sys.path (the harness), `shapes` fixes inputs of the build."""

    model: str
    site: str | None
    build: bool
    shapes: dict[str, list[int]]
    answer: str


class ParseAnswer(TypedDict, total=False):
    """What the child found. No `library`: TensorRT did not start, `unusable` says why. No `errors`: it did not finish.

    `shapes` is what is wrong with the shapes that the request gave, or did not give.
    """

    unusable: str
    library: str
    errors: list[str]
    built: bool
    shapes: str


def main() -> None:
    """Answer the request in argv[1]."""
    serve(_work)


def _work(request: ParseRequest) -> Iterator[ParseAnswer]:
    """The answer as it grows; the last one counts."""
    try:
        import tensorrt as trt
        from polygraphy.backend.trt import create_network, util
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER

        G_LOGGER.module_severity = G_LOGGER.ERROR
        builder, network = create_network(strongly_typed=True)
    except Exception as error:  # whatever TensorRT raises where it cannot start: ImportError, OSError, TypeError, …
        yield {"unusable": f"{type(error).__name__}: {error}"}
        return
    library = str(getattr(trt, "LIBRARY", "TensorRT " + ".".join(trt.__version__.split(".")[:2])))
    yield {"library": library}

    errors = parse(trt, util.get_trt_logger(), network, request["model"])
    if errors or not request["build"]:
        yield {"library": library, "errors": errors, "built": False}
        return
    shapes = {tensor.name: list(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs))}
    if complaint := _complaint(shapes, request["shapes"]):
        yield {"library": library, "shapes": complaint}
        return
    try:
        _build((builder, network), shapes | request["shapes"])
        yield {"library": library, "errors": [], "built": True}
    except PolygraphyException as error:
        yield {"library": library, "errors": [f"builder: {error}"], "built": False}


def parse(trt: Any, logger: Any, network: Any, model: str) -> list[str]:
    """Fill `network` from the file; the errors. (Polygraphy's own loader leaves only their text, on the console.)"""
    trt.init_libnvinfer_plugins(logger, "")
    parser = trt.OnnxParser(network, logger)
    accepted = parser.parse_from_file(model)
    errors = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
    if not errors and not accepted:
        return ["the parser refused the file without naming an error"]
    if not errors and network.num_outputs == 0:  # protobuf reads much that is no model at all
        return ["the file holds no graph with outputs"]
    return errors


def _complaint(inputs: Mapping[str, Sequence[int]], given: Mapping[str, Sequence[int]]) -> str:
    """What keeps the shapes from making a profile; empty where nothing does."""
    if unknown := sorted(set(given) - set(inputs)):
        return f"no input is named {', '.join(unknown)}; the inputs are {', '.join(inputs)}"
    for name, shape in inputs.items():
        if name not in given and any(size < 0 for size in shape[1:]):
            return f"input {name} {list(shape)} has dynamic dimensions besides the batch and no shape was given"
    return ""


def _build(network: tuple[Any, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    from polygraphy.backend.trt import CreateConfig, Profile, engine_bytes_from_network

    profile = Profile()
    for name, shape in shapes.items():
        fixed = [1 if size < 0 else size for size in shape]
        profile.add(name, min=fixed, opt=fixed, max=fixed)
    engine_bytes_from_network(network, config=CreateConfig(profiles=[profile], sparse_weights=True))


def _describe(error: Any) -> str:
    """One parser error as one text: node, operator, code, the parser's own words."""
    words = [line for line in error.desc().strip().splitlines() if _HARNESS_NOISE not in line]
    code = str(error.code()).rpartition(".")[2]
    message = (
        "operator not supported" if code.startswith("UNSUPPORTED_NODE") and words == ["false"] else " | ".join(words)
    )
    if not error.node_operator():
        return f"{code}: {message}"
    return f"node {error.node_name() or error.node()} ({error.node_operator()}): {code}: {message}"


if __name__ == "__main__":
    main()
