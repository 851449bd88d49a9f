"""The page of `report` in a real browser, Chromium without a window: cards, pictures, sorting, narrow, dark, printed.

The digits' page is looked at where there is a Chromium, a ViT-Tiny's where there is ../shared, too.
Screenshots and the printed page are left in out/browser, for a person to look at. The page runs under its own
content security policy; what the tests add to it runs in copies without one.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpusq_onnx.cli import main
from tools.zoo.exports import shared_folder

pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("jinja2", reason="needs the extra report")
pytest.importorskip("matplotlib", reason="needs the extra report")

ASSETS = Path(__file__).parents[1] / "assets"
OUT = Path("out/browser")
NAMES = ("chromium", "chromium-browser", "google-chrome")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
DARK = "--blink-settings=preferredColorScheme=0"

Browser = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """Runs Chromium once with the options given, on a page."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium ({', '.join(NAMES)}): apt-get install chromium")
    profile = tmp_path_factory.mktemp("profile")

    def run(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
        fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        fixed += ["--force-device-scale-factor=1", "--enable-logging=stderr", "--virtual-time-budget=4000"]
        command = [str(found), *fixed, *options, page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)

    return run


@pytest.fixture(
    scope="module",
    params=[pytest.param("digits", marks=pytest.mark.long), pytest.param("vit-tiny", marks=pytest.mark.slow)],
)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a dense, a sparse, and a sparse and quantised model, on example images."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "digits":
        model, more = ASSETS / "digits_vit.onnx", ["--data", ASSETS / "digits_test.npz"]
        asked, few = ["--min-agreement", "0.5"], ["--samples", "32"]
    else:
        data = shared_folder() / "data"
        if not data.is_dir():
            pytest.skip(f"no test data at {data}: set GPUSQ_SHARED to the folder that holds data/ and zoo/")
        model, more = data / "vit_tiny_imagenet.onnx", ["--data", data / "imagenet" / "val", "--resize", "248"]
        more += ["--crop", "224", "--mean", "0.5", "--std", "0.5", "--classes", data / "imagenet" / "classes.txt"]
        asked, few = ["--max-top1-drop", "1"], ["--samples", "32"]
    sparse, small = folder / "sparse.onnx", folder / "small.onnx"
    run(0, "apply", "--passes", "prune24", *more, *few, "-o", sparse, model)
    run(0, "apply", "--passes", "prune24,qdq-int8", *more, *few, "-o", small, "--report", folder / "a.json", model)
    run(None, "check", *more, *few, *asked, "--report", folder / "c.json", model, small)
    models = ["--model", model, "--model", sparse, "--model", small]
    made = folder / f"page-{request.param}.html"
    run(0, "report", folder / "a.json", folder / "c.json", *models, *more, "--samples", "6", "-o", made)
    return made


def run(code: int | None, *words: object) -> None:
    found = main([*map(str, words), "-q"])
    assert found == code or code is None


def shot(browser: Browser, page: Path, name: str, width: int, height: int, *options: str) -> np.ndarray:
    """A screenshot in out/browser, as pixels; a frame lets the page be narrower than the window may be."""
    OUT.mkdir(parents=True, exist_ok=True)
    frame, target = page.with_name("frame.html"), OUT / f"{page.stem}-{name}.png"
    size = f"width:{width}px;height:{height}px"
    frame.write_text(f'<body style="margin:0"><iframe src="{page.name}" style="border:0;{size}"></iframe>')
    browser(frame, f"--window-size={width},{height}", f"--screenshot={target.resolve()}", *options)
    return np.asarray(Image.open(target).convert("RGB"))


def test_cards_and_pictures_are_there_and_nothing_is_refused(browser: Browser, page: Path) -> None:
    done = browser(page, "--dump-dom")
    assert "Content Security Policy" not in done.stderr and "Refused to" not in done.stderr
    cards = re.findall(r'<span class="name">(.*?)</span><span class="value">(.*?)</span>', done.stdout)
    assert {name for name, _ in cards} >= {"verdict", "size", "top-1", "agreement", "kernels"}
    shots = re.findall(r'<figure class="shot"><img src="data:image/jpeg;base64,', done.stdout)
    assert len(shots) == 6 * (1 + 3 * 2)
    assert "agrees" in done.stdout and done.stdout.count('<figure class="chart"') >= 7
    assert done.stdout.count('<button type="button">') > 20, "the page's own script did not run"


def test_a_click_sorts(browser: Browser, page: Path) -> None:
    clicks = """<script>
    const table = [...document.querySelectorAll("table")].find((t) => t.rows.length > 8);
    const rows = () => [...table.tBodies[0].rows].map((row) => row.cells[5].textContent).join(" ");
    const button = table.tHead.rows[0].cells[5].querySelector("button");
    const seen = [];
    for (let i = 0; i < 2; i++) { button.click(); seen.push(rows()); }
    document.body.dataset.seen = seen.join("|");
    </script></body>"""
    copy = page.with_name("sorted.html")
    copy.write_text(POLICY.sub("", page.read_text(encoding="utf-8")).replace("</body>", clicks), encoding="utf-8")
    found = re.search(r'data-seen="(.*?)"', browser(copy, "--dump-dom").stdout)
    assert found is not None
    up, down = ([float(cell.rstrip("%")) for cell in side.split()] for side in found[1].split("|"))
    assert up == sorted(up) and down == sorted(down, reverse=True) and up[0] < up[-1]


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_screen(browser: Browser, page: Path, width: int) -> None:
    speak = "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script></body>"
    copy, frame = page.with_name("speaking.html"), page.with_name("listening.html")
    copy.write_text(POLICY.sub("", page.read_text(encoding="utf-8")).replace("</body>", speak), encoding="utf-8")
    listen = "<script>onmessage = (event) => { document.body.dataset.width = event.data; }</script>"
    frame.write_text(f'<body>{listen}<iframe src="{copy.name}" style="border:0;width:{width}px;height:900px"></iframe>')
    found = re.search(r'data-width="(\d+)"', browser(frame, "--window-size=1400,1000", "--dump-dom").stdout)
    assert found is not None and int(found[1]) <= width


def test_screens_in_both_themes_are_drawn(browser: Browser, page: Path) -> None:
    for width, height in ((400, 5000), (1200, 5000)):
        light = shot(browser, page, f"{width}", width, height)
        dark = shot(browser, page, f"{width}-dark", width, height, DARK)
        assert light.shape == dark.shape == (height, width, 3)
        assert light[:40].mean() > 200 and dark[:40].mean() < 80, "the paper follows the theme"
        colours = light.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        assert len(np.unique(colours)) > 5000, "pictures are drawn"


def test_it_prints_with_everything_opened(browser: Browser, page: Path) -> None:
    target = OUT / f"{page.stem}.pdf"
    OUT.mkdir(parents=True, exist_ok=True)
    browser(page, f"--print-to-pdf={target.resolve()}", "--no-pdf-header-footer")
    assert target.read_bytes().startswith(b"%PDF")
    pages = len(re.findall(rb"/Type /Page\b", target.read_bytes()))
    closed = page.with_name("closed.html")
    text = re.sub(r"<details.*?</details>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    closed.write_text(text, encoding="utf-8")
    browser(closed, f"--print-to-pdf={closed.with_suffix('.pdf')}", "--no-pdf-header-footer")
    assert pages > len(re.findall(rb"/Type /Page\b", closed.with_suffix(".pdf").read_bytes()))
