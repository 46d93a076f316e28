"""What every test relies on: a cache of its own, few threads, a quiet Ray."""

import os
import tempfile

import pytest

# set at import, before anything under test reads it
_CACHE = tempfile.TemporaryDirectory(prefix="trimtab-tests-")
os.environ.setdefault("TRIMTAB_CACHE", _CACHE.name)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many tests run at a time as there are cores
# threads that spin at a barrier make torch ten times slower as soon as another process wants a core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items):
    """Puts files with slow tests first: two run at a time, and none should begin a long one when all else is done.

    Times are a machine's, and other people's work on it comes and goes: a test that looks at a clock is tried three
    times, any other once more when it could not measure.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.get_closest_marker("alone"):
            item.add_marker(pytest.mark.flaky(reruns=2))
        else:
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=["MeasurementError"]))
