"""The steps of `make gpu`, in the order of their worth, and their sizes: whole on a GPU, tiny for a rehearsal on a CPU.

    exact      every kernel against the reference
    linears    single Linears, all formats side by side
    networks   whole networks of the paper's shapes, all formats side by side
    graphs     real ONNX graphs, compressed, through `bench --backend torch`
    tuning     ViT-Tiny, the whole recipe of fine-tuning: top-1 and minutes
    tests      pytest -m gpu

Seconds are guesses until a GPU has run them: they decide only what still fits into a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.gpu.runner import Step
from tools.zoo.exports import ROOT

SECTIONS = ("exact", "linears", "networks", "graphs", "tuning", "tests")
ASSETS = ROOT / "tests" / "assets"
KERNELS = ("dense", "fused", "sparse", "fp8", "attention")
COMPRESSED = {
    "int8-24": "prune24{method=magnitude},qdq-int8,fp16",
    "int8-24-outputs": "prune24{method=magnitude},qdq-int8{profile=sparse-int8},fp16",
}
"""What a graph is timed as, beside its dense formats; magnitudes choose, since accuracy is not looked at here."""


@dataclass(frozen=True)
class Graph:
    """An ONNX model to be timed: a file, or one that timm exports (`tools.gpu.export`)."""

    name: str
    file: Path | None = None
    timm: str = ""


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        ways: the kernels that are checked, a process for each text.
        models, batches: of Linears and networks (`tools.bench.gpu`); the first of each are the most wanted.
        timing: options of `tools.bench.gpu`.
        compressed: of `COMPRESSED`, which.
        backend, rounds: of `bench`.
        learned: recipes of fine-tuning by name.
        model, data, score: what is fine-tuned; options of the images to train and to score on; files that these name.
        tests: where the tests are that want a GPU.
        scale: what the expected seconds are multiplied by.
    """

    device: str
    ways: tuple[str, ...]
    models: tuple[str, ...]
    batches: tuple[int, ...]
    timing: tuple[str, ...]
    graphs: tuple[Graph, ...]
    compressed: tuple[str, ...]
    backend: str
    rounds: int
    learned: dict[str, str]
    model: Path
    data: tuple[str, ...]
    score: tuple[str, ...]
    tests: tuple[str, ...]
    scale: float = 1.0


def recipe(epochs: int) -> str:
    """The whole recipe at a batch of 128, eight times the default: learning rates grow by the root of that."""
    distill = f"distill{{epochs={epochs} batch=128 lr=1.4e-3 precision=bf16}}"
    return (
        f"prune24{{method=sparsegpt}},{distill},qdq-int8,qat{{epochs={max(3, epochs // 10)} batch=128 precision=bf16}}"
    )


def full(shared: Path) -> Size:
    """What a GPU is borrowed for."""
    data = shared / "data"
    images, prepared = data / "imagenet", ("--resize", "248", "--crop", "224", "--mean", "0.5", "--std", "0.5")
    model = data / "vit_tiny_imagenet.onnx"
    return Size(
        device="cuda",
        ways=KERNELS,
        models=("vit_base", "deit_base", "deit_small", "swin_tiny"),
        batches=(256, 32, 1),
        timing=(),
        graphs=(Graph("vit_tiny", file=model), Graph("deit_base", timm="deit_base_patch16_224")),
        compressed=tuple(COMPRESSED),
        backend="torch",
        rounds=20,
        learned={f"{epochs} epochs": recipe(epochs) for epochs in (40, 150)},
        model=model,
        data=("--data", str(images / "train"), *prepared, "--calibrate", "1024"),
        score=("--data", str(images / "val"), "--classes", str(images / "classes.txt"), *prepared),
        tests=tuple(marked_tests()),
    )


def rehearsal() -> Size:
    """The same on a CPU, on the embedded model."""
    model, images = ASSETS / "digits_vit.onnx", ("--data", str(ASSETS / "digits_test.npz"), "--samples", "4")
    distill = "distill{steps=1 batch=2}"
    return Size(
        device="cpu",
        ways=(",".join(KERNELS),),
        models=("tiny",),
        batches=(1,),
        timing=("--device", "cpu", "--rounds", "2", "--warm", "0.001", "--least", "0.0001"),
        graphs=(Graph("digits", file=model),),
        compressed=("int8-24",),
        backend="torch-cpu",
        rounds=3,
        learned={"1 step": f"prune24{{method=magnitude}},{distill},qdq-int8,qat{{steps=1 batch=2 images=2}}"},
        model=model,
        data=images,
        score=images,
        tests=("tests/runtime/test_engine.py",),
        scale=0.1,
    )


def marked_tests() -> list[str]:
    """The test files that have tests for a GPU."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]


def steps(size: Size, work: Path, newer: Path | None = None) -> list[Step]:
    """All steps, the most wanted first.

    Args:
        work: where models and tables go.
        newer: another cuSPARSELt (libcusparseLt.so.0) to try, beside the one that torch brings.
    """
    first, rest = size.models[0], size.models[1:]
    linears = [_timed(size, work, "linears", m, b) for m in size.models for b in sorted(size.batches, key=_by_worth)]
    networks = [_timed(size, work, "networks", m, b) for m in size.models for b in size.batches]
    some = {f"{kind}-{first}-{b}" for kind in ("linears", "networks") for b in size.batches}
    return [
        *_exactness(size, work),
        *(step for step in (linears[0], *networks) if step.name in some),
        *(step for name in rest for step in networks if step.name.startswith(f"networks-{name}-")),
        *_graphs(size, work),
        *_tuning(size, work),
        _tests(size),
        *linears[1:],
        *([] if newer is None else _newer(size, work, newer)),
    ]


def _by_worth(batch: int) -> tuple[bool, int]:
    return batch != 32, -batch  # 32 tells most of a Linear in least time


def _exactness(size: Size, work: Path) -> list[Step]:
    model, batches = size.models[0], ",".join(str(b) for b in sorted(size.batches)[:2])
    found = []
    for way in size.ways:
        name = f"exact-{'all' if ',' in way else way}"
        out = work / f"{name}.json"
        arguments = ("-m", "tools.gpu.exact", "--way", way, "--models", model, "--batch", batches)
        arguments = (*arguments, "--device", size.device, "--out", str(out))
        found.append(Step(name, "exact", arguments, 60 * size.scale, result=out))
    return found


def _timed(size: Size, work: Path, section: str, model: str, batch: int) -> Step:
    name = f"{section}-{model}-{batch}"
    arguments = ("-m", "tools.bench.gpu", "--part", section, "--models", model, "--batch", str(batch), *size.timing)
    arguments = (*arguments, "--store", str(work / "kernels.json"), "--out", str(work / name))
    return Step(name, section, arguments, 120 * size.scale, result=work / name / "gpu.json")


def _newer(size: Size, work: Path, library: Path) -> list[Step]:
    """With another cuSPARSELt; kernels are kept under its version, so that both are searched."""
    wanted = [_timed(size, work, "linears", size.models[0], b) for b in size.batches]
    wanted += [_timed(size, work, "networks", size.models[0], b) for b in size.batches]
    return [
        Step(f"{s.name}-newer", s.section, s.arguments, s.expected, (library,), None, s.result, _preload(library))
        for s in wanted
    ]


def _preload(library: Path) -> dict[str, str]:
    return {"LD_PRELOAD": str(library)}


def _gpusq(*arguments: str) -> tuple[str, ...]:
    return ("-m", "gpusq_onnx", *arguments)


def _graphs(size: Size, work: Path) -> list[Step]:
    found = []
    for graph in size.graphs:
        dense = graph.file or work / f"{graph.name}.onnx"
        if graph.file is None:
            arguments = ("-m", "tools.gpu.export", graph.timm, str(dense))
            found.append(Step(f"export-{graph.name}", "graphs", arguments, 40 * size.scale, makes=dense))
        models = [dense]
        for form in size.compressed:
            small = work / f"{graph.name}.{form}.onnx"
            arguments = _gpusq("apply", "-q", "--force", "-p", COMPRESSED[form], "-o", str(small), str(dense))
            name = f"compress-{graph.name}-{form}"
            found.append(Step(name, "graphs", arguments, 60 * size.scale, (dense,), small))
            models.append(small)
        for batch in size.batches:
            report = work / f"bench-{graph.name}-{batch}.json"
            options = ("--backend", size.backend, "--batch", str(batch), "--rounds", str(size.rounds), "-q")
            options = (*options, "--cache", str(work / "cache"), "--report", str(report))
            arguments = _gpusq("bench", *options, *map(str, models))
            name = f"bench-{graph.name}-{batch}"
            found.append(Step(name, "graphs", arguments, 240 * size.scale, tuple(models), None, report))
    return found


def _tuning(size: Size, work: Path) -> list[Step]:
    found = []
    for recipe_name, passes in size.learned.items():
        name = recipe_name.replace(" ", "-")
        small, report, check = (work / f"tuned-{name}{end}" for end in (".onnx", ".json", ".check.json"))
        options = ("-q", "--force", "-p", passes, *size.data, "--report", str(report), "-o", str(small))
        arguments = _gpusq("apply", *options, str(size.model))
        seconds = (400 if "150" in name else 200) * size.scale
        found.append(Step(f"tune-{name}", "tuning", arguments, seconds, _named(size.model, size.data), small, report))
        arguments = _gpusq("check", "-q", *size.score, "--report", str(check), str(size.model), str(small))
        found.append(Step(f"score-{name}", "tuning", arguments, 40 * size.scale, (small,), None, check))
    return found


def _named(model: Path, data: tuple[str, ...]) -> tuple[Path, ...]:
    return (model, Path(data[data.index("--data") + 1]))


def _tests(size: Size) -> Step:
    arguments = ("-m", "pytest", "-m", "gpu", "-q", "-ra", "-p", "no:cacheprovider", *size.tests)
    return Step("pytest", "tests", arguments, 120 * size.scale)
