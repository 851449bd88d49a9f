"""docs/images/house.svg: the areas of gpusq_onnx on their floors, with the arrows that the imports really are.

tests/packaging/arrows.py walks the imports. An arrow is left out where a longer way through other areas has it already
(`passes` reaches `graph` through `learn`). Areas that are one file on the ground floor (`errors`) have no arrows: every
area may import them.
"""

from itertools import pairwise, permutations

from tests.packaging.arrows import CORE, FLOORS, area, imports, modules
from tools.docs.svg import arrow, picture, rectangle, text

WHAT = {
    "cli": "options in, words out",
    "workflows": "one verb a file",
    "passes": "one pass a file",
    "learn": "distillation and QAT",
    "report": "documents, page, pictures",
    "calibration": "ranges, scales, rounding",
    "tuning": "sensitivity and tune",
    "pipeline": "the engine of passes",
    "torchgraph": "ONNX ↔ trainable torch",
    "graph": "model, sites, QDQ, rules",
    "data": "images into tensors",
    "runtime": "onnxruntime, TensorRT",
    "sparsity": "patterns, SparseGPT",
    "quant": "formats, scales, clips",
    "tasks": "outputs and metrics",
}
WIDTH, BOX, HIGH, FLOOR, LEFT, ROAD = 960, 176, 54, 104, 20, 28  # px; ROAD: the lane of an arrow that passes a floor
MOST_TRIED = 6  # things on a floor whose every order is tried; more are put in the order of their neighbours
FILES = [name for name, floor in FLOORS.items() if not floor and (CORE / f"{name}.py").exists()]

Edge = tuple[str, str]


def drawing() -> str:
    """The whole picture."""
    edges = reduced(found_edges())
    areas = [name for name in FLOORS if name != "__main__" and name not in FILES]
    levels = sorted({FLOORS[name] for name in areas}, reverse=True)
    floors = [[name for name in areas if FLOORS[name] == level] for level in levels]
    chains = {edge: _chain(edge, levels) for edge in edges}
    for lane in (dummy for chain in chains.values() for dummy in chain[1:-1]):
        floors[levels.index(int(lane.rpartition("@")[2]))].append(lane)
    places = _places(floors, list(chains.values()))
    top = {level: 46 + FLOOR * number for number, level in enumerate(levels)}
    shapes = [text(WIDTH / 2, 28, "An import goes down, or stays on its floor; never up", "big")]
    shapes += [rectangle(LEFT, top[level] - 8, WIDTH - 2 * LEFT, HIGH + 16, "band") for level in levels]
    shapes += [arrow(_points(chain, places, top)) for chain in chains.values()]
    for name in areas:
        x, y = places[name], top[FLOORS[name]]
        shapes += [rectangle(x - BOX / 2, y, BOX, HIGH, "box"), text(x, y + 23, name, "name")]
        shapes.append(text(x, y + 42, WHAT.get(name, ""), "note"))
    ground = top[levels[-1]] + HIGH + 20
    shapes.append(rectangle(LEFT, ground, WIDTH - 2 * LEFT, 36, "box"))
    shapes.append(text(WIDTH / 2, ground + 23, f"for all: {'  ·  '.join(FILES)}", "name"))
    return picture(WIDTH, ground + 52, "The areas of gpusq_onnx and their imports", shapes)


def found_edges() -> set[Edge]:
    """(importing area, imported area) wherever one imports the other's modules."""
    found = {(area(i.source), area(i.target)) for name, path in modules() for i in imports(name, path)
             if i.target.startswith("gpusq_onnx.")}  # fmt: skip
    drawn = {name for name in FLOORS if name != "__main__" and name not in FILES}
    return {(a, b) for a, b in found if {a, b} <= drawn and a != b and FLOORS[a] >= FLOORS[b]}


def reduced(edges: set[Edge]) -> list[Edge]:
    """The edges that no longer way replaces.

    >>> reduced({("a", "b"), ("b", "c"), ("a", "c")})
    [('a', 'b'), ('b', 'c')]
    """
    below: dict[str, set[str]] = {}
    for a, b in edges:
        below.setdefault(a, set()).add(b)

    def reach(name: str) -> set[str]:
        return below.get(name, set()).union(*(reach(other) for other in below.get(name, ())))

    return sorted((a, b) for a, b in edges if not any(b in reach(c) for c in below[a] - {b}))


def _chain(edge: Edge, levels: list[int]) -> list[str]:
    """The edge's ends with a lane's name for each floor between them."""
    a, b = edge
    between = [level for level in levels if FLOORS[b] < level < FLOORS[a]]
    return [a, *(f"{a}>{b}@{level}" for level in between), b]


def _places(floors: list[list[str]], chains: list[list[str]]) -> dict[str, float]:
    """The middle of each box and lane, in px: floor by floor, the order in which its arrows are shortest."""
    steps = [(a, b) for chain in chains for a, b in pairwise(chain)]
    places: dict[str, float] = {}
    for floor in floors:
        places.update(_spread(floor))
    for _ in range(6):
        for floor in (*floors, *reversed(floors)):
            near = [step for step in steps if set(step) & set(floor)]

            def length(order: tuple[str, ...], near: list[Edge] = near) -> float:
                trial = {**places, **_spread(order)}
                return sum((trial[a] - trial[b]) ** 2 for a, b in near)

            def middle(name: str, near: list[Edge] = near) -> float:
                found = [places[other] for step in near if name in step for other in step if other != name]
                return sum(found) / len(found) if found else places[name]

            orders = permutations(floor) if len(floor) <= MOST_TRIED else [sorted(floor, key=middle)]
            places.update(_spread(min(orders, key=length)))
    return places


def _spread(order: list[str] | tuple[str, ...]) -> dict[str, float]:
    """Boxes and lanes from left to right with equal gaps."""
    sizes = [ROAD if "@" in name else BOX for name in order]
    assert sum(sizes) < WIDTH - 2 * LEFT, f"too many areas for the width of the picture: {order}"
    gap = (WIDTH - 2 * LEFT - sum(sizes)) / (len(order) + 1)
    places, x = {}, LEFT + gap
    for name, size in zip(order, sizes, strict=True):
        places[name] = x + size / 2
        x += size + gap
    return places


def _points(chain: list[str], places: dict[str, float], top: dict[int, int]) -> list[tuple[float, float]]:
    a, b = chain[0], chain[-1]
    if FLOORS[a] == FLOORS[b]:
        side = BOX / 2 if places[a] < places[b] else -BOX / 2
        return [(places[a] + side, top[FLOORS[a]] + HIGH / 2), (places[b] - side, top[FLOORS[b]] + HIGH / 2)]
    points = [(places[a], top[FLOORS[a]] + HIGH)]
    for lane in chain[1:-1]:
        y = top[int(lane.rpartition("@")[2])]
        points += [(places[lane], y), (places[lane], y + HIGH)]
    return [*points, (places[b], top[FLOORS[b]])]
