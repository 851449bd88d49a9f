"""Setting the parser harness up, with a pip that downloads nothing."""

import platform
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpusq_onnx.errors import EnvironmentLacking
from gpusq_onnx.runtime.trt_cpu import harness, prepare, ready

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the harness is for Linux on x86_64"
)


@pytest.fixture
def fake_python(tmp_path: Path):
    """An interpreter whose `-m pip` only makes the target folder, counts its calls, and ends as the test says."""

    def make(install: str = "exit 0", version: str = "exit 0") -> Path:
        script = tmp_path / "python"
        script.write_text(
            textwrap.dedent(f"""\
                #!/bin/sh
                if [ "$3" = --version ]; then {version}; fi
                echo call >> {tmp_path}/calls
                echo "$@" > {tmp_path}/words
                while [ "$1" != --target ]; do shift; done
                mkdir -p "$2" && touch "$2/wheel"
                {install}
                """)
        )
        script.chmod(0o755)
        return script

    return make


def calls(tmp_path: Path) -> int:
    file = tmp_path / "calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_sets_up_once(tmp_path: Path, fake_python) -> None:
    folder, steps = tmp_path / "cache", list[str]()
    assert ready(folder) is None
    site = prepare(folder, python=str(fake_python()), progress=steps.append)
    assert len(steps) == 2
    assert ready(folder) == site
    assert (site / "tensorrt.py").is_file()
    assert sorted(file.name for file in (site.parent / "lib").iterdir()) == [
        "libnvinfer.so.11",
        "libnvinfer_plugin.so.11",
        "libnvonnxparser.so.11",
    ]
    assert prepare(folder, python="/nowhere/python") == site
    assert calls(tmp_path) == 1


def test_only_wheels_of_known_bytes_are_installed(tmp_path: Path, fake_python) -> None:
    site = prepare(tmp_path / "cache", python=str(fake_python()))
    assert "--require-hashes" in (tmp_path / "words").read_text().split()
    pinned = (site.parent / "requirements.txt").read_text().splitlines()
    assert [line.split()[0] for line in pinned] == list(harness.WHEELS)
    for line in pinned:
        digests = [word.removeprefix("--hash=sha256:") for word in line.split()[1:]]
        assert digests and all(len(digest) == 64 and int(digest, 16) for digest in digests)


def test_a_folder_that_everyone_can_write_to_is_not_executed_from(tmp_path: Path, fake_python) -> None:
    folder = tmp_path / "cache"
    prepare(folder, python=str(fake_python()))
    folder.chmod(0o777)
    with pytest.raises(EnvironmentLacking, match="chmod o-w"):
        prepare(folder)


def test_a_download_that_fails_leaves_nothing_and_says_what_pip_said(tmp_path: Path, fake_python) -> None:
    folder = tmp_path / "cache"
    with pytest.raises(EnvironmentLacking, match=r"(?s)No matching distribution.*tensorrt-cu13-bindings==") as caught:
        prepare(folder, python=str(fake_python("echo ERROR: No matching distribution >&2; exit 1")))
    assert caught.value.exit_code == 5
    assert ready(folder) is None
    assert [file.name for file in folder.iterdir()] == [".lock"]


def test_a_setup_that_was_killed_is_swept_away(tmp_path: Path, fake_python) -> None:
    folder = tmp_path / "cache"
    (folder / ".partial" / "site").mkdir(parents=True)
    (folder / ".partial" / "site" / "half").touch()
    assert ready(folder) is None
    site = prepare(folder, python=str(fake_python()))
    assert not (site / "half").exists()
    assert not (folder / ".partial").exists()


def test_of_two_processes_at_once_one_sets_up_and_both_find_it(tmp_path: Path, fake_python) -> None:
    folder, python = tmp_path / "cache", fake_python("sleep 1")
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from pathlib import Path; "
        "from gpusq_onnx.runtime.trt_cpu import prepare; print(prepare(Path(sys.argv[1]), python=sys.argv[2]))"
    )

    def start(_: int) -> str:
        command = [sys.executable, "-c", code, str(folder), str(python)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(start, range(2))
    assert first == second == str(ready(folder))
    assert calls(tmp_path) == 1


def test_no_compiler_is_told_before_anything_is_downloaded(tmp_path: Path, fake_python) -> None:
    with pytest.raises(EnvironmentLacking, match="apt-get install gcc") as caught:
        prepare(tmp_path / "cache", python=str(fake_python()), compilers=["no-such-compiler"])
    assert caught.value.exit_code == 5
    assert calls(tmp_path) == 0


def test_no_pip_is_told_before_anything_is_downloaded(tmp_path: Path, fake_python) -> None:
    with pytest.raises(EnvironmentLacking, match="ensurepip"):
        prepare(tmp_path / "cache", python=str(fake_python(version="exit 1")))
    assert calls(tmp_path) == 0


def test_a_compiler_that_fails_is_told(tmp_path: Path, fake_python) -> None:
    with pytest.raises(EnvironmentLacking, match="could not be compiled"):
        prepare(tmp_path / "cache", python=str(fake_python()), compilers=["false"])
    assert ready(tmp_path / "cache") is None


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, fake_python) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentLacking, match="choose a folder that is writable"):
        prepare(tmp_path / "file" / "cache", python=str(fake_python()))


def test_the_command_prints_the_folder_or_says_what_is_wrong(harness: Path) -> None:
    command = [sys.executable, "-m", "gpusq_onnx.runtime.trt_cpu"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([*command, str(harness)], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == str(ready(harness))
    wrong = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert wrong.returncode == 2
    assert "one folder is needed" in wrong.stderr
