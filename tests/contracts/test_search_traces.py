"""Every registered search algorithm gives one trace: for 1 and 4 workers, and after kill -9."""

import importlib.util
import logging
import signal
import subprocess
import sys
from contextlib import closing

import pytest
import ray
from trimtab.search.inline_pool import InlinePool
from trimtab.search.ray_pool import RayPool
from trimtab.search.searcher import SEARCHERS
from trimtab.search.testing import FakeBenchFactory
from trimtab.search.trace_contract import PROBLEM, check_goes_on_after_death, check_traces_agree, plan_of
from trimtab.search.worker_pool import Limits

FACTORY = FakeBenchFactory(PROBLEM.space)
#: a record of the second batch of suggestions, not its last
N_BEFORE_DEATH = 9


@pytest.fixture(scope="module")
def pools():
    """An inline pool and Ray pools of one and of four workers, in one Ray: starting it costs seconds."""
    ray.init(
        address="local",
        num_cpus=8,
        resources={"trimtab_device": 2},  # each pool holds one
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    with (
        closing(RayPool(FACTORY, Limits(), n_workers=1)) as one,
        closing(RayPool(FACTORY, Limits(), n_workers=4)) as four,
    ):
        yield [InlinePool(FACTORY, Limits(timeout_s=None)), one, four]
    ray.shutdown()


@pytest.fixture(scope="module")
def dead_journals(tmp_path_factory):
    """Algorithm → the journal of a search that was killed; each in a process forked from one that has all imported."""
    folder = tmp_path_factory.mktemp("dead")
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from trimtab.search.controller import run_search\n"
        "from trimtab.search.inline_pool import InlinePool\n"
        "from trimtab.search.journal import Journal\n"
        "from trimtab.search.testing import FakeBenchFactory\n"
        "from trimtab.search.trace_contract import PROBLEM, Dying, plan_of\n"
        "from trimtab.search.worker_pool import Limits\n"
        "for algorithm in sys.argv[2:]:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        journal = Journal.create(Path(sys.argv[1]) / algorithm, {})\n"
        "        pool = InlinePool(FakeBenchFactory(PROBLEM.space), Limits(timeout_s=None))\n"
        f"        run_search(plan_of(algorithm), pool, journal, Dying({N_BEFORE_DEATH}))\n"
        "        os._exit(0)\n"
        "    print(algorithm, -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    has_torch = importlib.util.find_spec("torch") is not None
    algorithms = [algorithm for algorithm in SEARCHERS if algorithm != "gp" or has_torch]
    done = subprocess.run([sys.executable, "-c", script, str(folder), *algorithms], capture_output=True, text=True)
    assert (done.stderr, done.stdout.split()[1::2]) == ("", [str(int(signal.SIGKILL))] * len(algorithms))
    return {algorithm: folder / algorithm for algorithm in algorithms}


@pytest.mark.parametrize("algorithm", list(SEARCHERS))
def test_number_of_workers_does_not_change_the_trace(algorithm, pools, tmp_path):
    if algorithm == "gp":
        pytest.importorskip("torch")
    n_trials = 12 if algorithm == "gp" else 14  # each of its proposals is dear
    check_traces_agree(plan_of(algorithm, n_trials=n_trials), pools, tmp_path)


@pytest.mark.parametrize("algorithm", list(SEARCHERS))
def test_killed_search_goes_on_with_the_same_trace(algorithm, dead_journals, tmp_path):
    if algorithm == "gp":
        pytest.importorskip("torch")
    pool = InlinePool(FACTORY, Limits(timeout_s=None))
    check_goes_on_after_death(plan_of(algorithm), pool, dead_journals[algorithm], tmp_path)
