import subprocess
import sys
from dataclasses import replace

import pytest
from trimtab.core.errors import RunError, SpecError
from trimtab.search.budget import Budget
from trimtab.search.controller import SearchPlan, SilentObserver, run_search
from trimtab.search.inline_pool import InlinePool
from trimtab.search.journal import Journal
from trimtab.search.pools import build_pool
from trimtab.search.problem import Problem
from trimtab.search.record import Status
from trimtab.search.testing import REFERENCE_S, FakeBenchFactory, small_space
from trimtab.search.worker_pool import Limits
from trimtab.spaces.policy import Policy
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

SPACE = small_space()
BASELINES = (
    ("untouched", Policy({})),
    ("int8", SPACE.uniform(QUANTIZE_OPTIONS["int8"])),
    ("untouched again", Policy({})),
)
PLAN = SearchPlan(
    problem=Problem(SPACE, Budget(accuracy_drop=0.03, reference_s=REFERENCE_S)),
    baselines=BASELINES,
    algorithm="random",
    n_trials=22,
    seed=3,
)


class Interrupting(SilentObserver):
    """Interrupts after some records, as a user's Ctrl-C would."""

    def __init__(self, n_records):
        self.n_left = n_records

    def on_record(self, record, best):
        self.n_left -= 1
        if self.n_left == 0:
            raise KeyboardInterrupt


class Noting(SilentObserver):
    def __init__(self):
        self.events = []

    def on_start(self, n_planned, n_done):
        self.events.append(("start", n_planned, n_done))

    def on_record(self, record, best):
        self.events.append(("record", record.id, best and best.id))

    def on_stop(self, reason):
        self.events.append(("stop", reason))


class BackwardsPool(InlinePool):
    def run(self, jobs):
        yield from reversed(list(super().run(jobs)))


def search(path, plan=PLAN, *, observer=None, factory=None, pool_class=InlinePool):
    journal = Journal.open(path) if path.exists() else Journal.create(path, {})
    pool = pool_class(factory or FakeBenchFactory(SPACE), Limits(timeout_s=None))
    with journal:
        return run_search(plan, pool, journal, observer or SilentObserver())


def trace(records):
    return [replace(record, cost_s=0.0) for record in records]


def stop_reason(path, plan):
    observer = Noting()
    search(path, plan, observer=observer)
    return observer.events[-1][1]


def test_baselines_come_first_in_order_and_equivalent_ones_once(tmp_path):
    records = search(tmp_path / "j")
    assert [(r.id, r.origin) for r in records[:3]] == [(0, "baseline:untouched"), (1, "baseline:int8"), (2, "random")]
    assert len({record.policy for record in records}) == 22


def test_all_baselines_run_even_when_they_exceed_the_trials(tmp_path):
    assert len(search(tmp_path / "j", replace(PLAN, n_trials=1))) == 2


def test_search_stops_after_its_trials(tmp_path):
    assert stop_reason(tmp_path / "j", PLAN) == "trials"


def test_search_stops_at_its_time_limit_and_resumes_where_it_stood(tmp_path):
    assert stop_reason(tmp_path / "j", replace(PLAN, time_limit_s=1e-9)) == "time limit"
    assert trace(search(tmp_path / "j")) == trace(search(tmp_path / "whole"))


def test_search_stops_when_the_space_is_exhausted(tmp_path):
    tiny = small_space(n_groups=2, n_options=2)
    plan = replace(PLAN, problem=replace(PLAN.problem, space=tiny), baselines=(("untouched", Policy({})),), n_trials=50)
    assert stop_reason(tmp_path / "j", plan) == "space exhausted"
    with Journal.open(tmp_path / "j") as journal:
        assert len(journal.records) == tiny.size


def test_search_stops_without_progress(tmp_path):
    records = search(tmp_path / "whole", replace(PLAN, n_trials=100))
    feasible = [r for r in records if PLAN.problem.budget.violation(r.measurement) == 0.0]
    best = min(feasible, key=lambda r: r.measurement.latency.median_s)
    assert best.id < 80  # else the 20 trials below could not pass without progress
    plan = replace(PLAN, n_trials=100, patience=20)
    assert stop_reason(tmp_path / "j", plan) == "no progress"
    with Journal.open(tmp_path / "j") as journal:
        assert journal.records == trace_ids(journal.records, records)


def trace_ids(some, all_records):
    """The records of a shorter run, taken from the longer one but with their own costs."""
    return [replace(all_records[r.id], cost_s=r.cost_s) for r in some]


@pytest.mark.parametrize("n_records", [1, 4, 7, 21])
@pytest.mark.parametrize("algorithm", ["random", "tpe", "nsga2"])
def test_resumed_search_equals_an_uninterrupted_one(tmp_path, algorithm, n_records):
    plan = replace(PLAN, algorithm=algorithm)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "j", plan, observer=Interrupting(n_records))
    with Journal.open(tmp_path / "j") as journal:
        assert len(journal.records) == n_records
    assert trace(search(tmp_path / "j", plan)) == trace(search(tmp_path / "whole", plan))


def test_resumed_gp_search_equals_an_uninterrupted_one(tmp_path):
    pytest.importorskip("torch")
    plan = replace(PLAN, algorithm="gp", n_trials=14, batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "j", plan, observer=Interrupting(12))
    assert trace(search(tmp_path / "j", plan)) == trace(search(tmp_path / "whole", plan))


def test_finished_trials_survive_the_death_of_the_process(tmp_path):
    whole = search(tmp_path / "whole", replace(PLAN, algorithm="tpe"))
    script = (
        "from pathlib import Path\n"
        "from trimtab.search.testing import *\n"
        "from trimtab.search.controller import *\n"
        "from trimtab.search.inline_pool import InlinePool\n"
        "from trimtab.search.worker_pool import Limits\n"
        "from trimtab.spaces.treatment import QUANTIZE_OPTIONS\n"
        "space = small_space()\n"
        "baselines = (('untouched', Policy({})), ('int8', space.uniform(QUANTIZE_OPTIONS['int8'])))\n"
        "budget = Budget(accuracy_drop=0.03, reference_s=REFERENCE_S)\n"
        "plan = SearchPlan(Problem(space, budget), baselines=baselines, algorithm='tpe', n_trials=22, seed=3)\n"
        f"factory = FakeBenchFactory(space, {{{whole[16].policy.id!r}: 'device_crash'}})\n"
        f"journal = Journal.create(Path({str(tmp_path / 'j')!r}), {{}})\n"
        "run_search(plan, InlinePool(factory, Limits()), journal, SilentObserver())\n"
    )
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (died.returncode, died.stderr) == (13, "")
    with Journal.open(tmp_path / "j") as journal:
        assert trace(journal.records) == trace(whole[:16])
    assert trace(search(tmp_path / "j", replace(PLAN, algorithm="tpe"))) == trace(whole)


def test_order_in_which_outcomes_arrive_does_not_change_the_trace(tmp_path):
    plan = replace(PLAN, algorithm="tpe")
    backwards = search(tmp_path / "backwards", plan, pool_class=BackwardsPool)
    assert trace(backwards) == trace(search(tmp_path / "forwards", plan))


def test_batch_finished_in_part_is_completed_without_repeating_trials(tmp_path):
    plan = replace(PLAN, algorithm="nsga2")
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "j", plan, observer=Interrupting(4), pool_class=BackwardsPool)
    with Journal.open(tmp_path / "j") as journal:
        assert [record.id for record in journal.records] == [0, 1, 4, 5]
    observer = Noting()
    records = search(tmp_path / "j", plan, observer=observer)
    assert [event[:2] for event in observer.events[1:4]] == [("record", 2), ("record", 3), ("record", 6)]
    assert trace(records) == trace(search(tmp_path / "whole", plan))


def test_finished_search_can_be_extended(tmp_path):
    for n_trials in (11, 22):
        records = search(tmp_path / "j", replace(PLAN, algorithm="tpe", n_trials=n_trials))
    assert trace(records) == trace(search(tmp_path / "whole", replace(PLAN, algorithm="tpe")))


@pytest.mark.parametrize("change", [{"seed": 4}, {"batch_size": 3, "algorithm": "tpe"}, {"baselines": BASELINES[1:]}])
def test_journal_of_another_plan_is_refused(tmp_path, change):
    search(tmp_path / "j", replace(PLAN, algorithm="tpe"))
    with pytest.raises(RunError, match="was written by another version, spec or seed: trial"):
        search(tmp_path / "j", replace(PLAN, **change))


def test_failures_are_journaled_with_their_cause_and_the_search_goes_on(tmp_path):
    whole = search(tmp_path / "whole")
    factory = FakeBenchFactory(SPACE, {whole[5].policy.id: "bug", whole[6].policy.id: "infeasible"})
    records = search(tmp_path / "j", factory=factory)
    assert (records[5].status, records[5].error) == (Status.FAILED, "ZeroDivisionError: the fake has a bug")
    assert (records[6].status, records[6].error) == (Status.INFEASIBLE, "the fake cannot build this policy")
    assert len(records) == 22


def test_observer_hears_of_start_records_with_the_best_so_far_and_stop(tmp_path):
    observer = Noting()
    search(tmp_path / "j", replace(PLAN, n_trials=2), observer=observer)
    # int8 everywhere is faster than the original, and with this budget it is accurate enough
    assert observer.events == [("start", 2, 0), ("record", 0, 0), ("record", 1, 1), ("stop", "trials")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_trials": 0}, "n_trials must be greater than 0, got 0"),
        ({"time_limit_s": -1.0}, "time_limit_s must be greater than 0"),
    ],
)
def test_plan_refuses_what_makes_no_sense(change, message):
    with pytest.raises(SpecError, match=message):
        replace(PLAN, **change)


def test_problem_refuses_an_unknown_objective():
    with pytest.raises(SpecError, match="unknown objective 'speed'"):
        Problem(SPACE, objective="speed")


@pytest.mark.parametrize("address", ["", "remote", "http://x", "host:", "host:123456", ":8000:x y"])
def test_bad_worker_address_is_refused(address):
    with pytest.raises(SpecError, match=r"workers\.address must be"):
        build_pool(address, FakeBenchFactory(SPACE), Limits(), n_workers=1)


def test_pool_without_workers_is_refused():
    with pytest.raises(SpecError, match="at least 1"):
        build_pool("inline", FakeBenchFactory(SPACE), Limits(), n_workers=0)
