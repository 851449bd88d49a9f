"""What the benchmarks measure with, held against processes whose cost is known."""

import resource
import sys

import pytest

from tools.bench.cases import Line
from tools.bench.measure import Usage, peak_of, python, seconds_of


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_peak_memory_counts_what_was_touched_and_freed_again() -> None:
    own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # a child starts with its parent's peak
    size = own + 300_000_000
    peak = python("-c", f"b'x' * {size}; print('freed')").peak
    assert size < peak < size + 40e6


def test_wall_time_counts_sleep_and_cpu_time_does_not() -> None:
    slept = python("-c", "import time; time.sleep(0.5); print('awake')")
    assert slept.seconds > 0.5
    assert slept.cpu < slept.seconds - 0.3
    assert slept.output == "awake\n"


def test_a_process_that_fails_is_an_error_with_what_it_said() -> None:
    with pytest.raises(RuntimeError, match="ended with 3:\nno luck"):
        python("-c", "import sys; print('no luck'); sys.exit(3)")


def test_medians_and_the_bar() -> None:
    runs = [Usage(seconds, 0.0, int(seconds), "") for seconds in (1.0, 9.0, 2.0)]
    assert (seconds_of(runs), peak_of(runs)) == (2.0, 2)
    assert Line("", 1.5, 1.0, 1.5, "s", "").met
    assert not Line("", 1.51, 1.0, 1.5, "s", "").met


def test_the_batch_is_that_of_calibration() -> None:
    from gpusq_onnx.calibration import image_bytes
    from tools.bench import cases

    assert cases.BATCH == image_bytes.BATCH
