"""Trials that train: who is stopped, who goes on, and what a searcher is told of it. The trainings are scripted."""

import logging
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import ray
from trimtab.core.errors import SpecError
from trimtab.search.asha import AshaPool
from trimtab.search.budget import Budget
from trimtab.search.controller import SearchPlan, SilentObserver, run_search
from trimtab.search.inline_pool import InlinePool
from trimtab.search.journal import Journal
from trimtab.search.pools import build_pool
from trimtab.search.problem import Problem
from trimtab.search.ray_pool import RayPool
from trimtab.search.record import Status
from trimtab.search.searcher import Verdict, build_searcher
from trimtab.search.testing import REFERENCE_S, FakeBenchFactory, fake_measurement, policy_of, small_space
from trimtab.search.worker_pool import Job, Limits, Outcome
from trimtab.spaces.policy import Policy
from trimtab.spaces.recovery import Recovery
from trimtab.spaces.space import GraphOptions

SPACE = replace(small_space(), graph=GraphOptions(recovery=(Recovery(), Recovery("finetune"))))


def make_jobs(n):
    """Jobs over different policies that train, and one more that does not."""
    policies = [
        Policy(dict(policy_of(SPACE, [i % 4, i // 4, 1]).groups), recovery=Recovery("finetune")) for i in range(n)
    ]
    return [Job(i, policy, seed=i) for i, policy in enumerate([*policies, policy_of(SPACE, [2, 2])])]


@pytest.fixture(scope="module")
def running_ray():
    ray.init(
        address="local", num_cpus=1, resources={"trimtab_device": 1}, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.mark.slow
def test_the_worse_trials_are_stopped_and_a_killed_one_goes_on_from_its_checkpoint(running_ray, tmp_path, capfd):
    jobs = make_jobs(8)
    curves = [(0.5, 0.6), (0.4, 0.9), (0.7, 0.8), (0.6, 0.5), *[(0.9, 0.9)] * 4]
    behaviours = {4: "crash_once", 5: "infeasible", 6: "hang", 7: "transient"}
    factory = FakeBenchFactory(
        SPACE,
        {jobs[i].policy.id: f"training_{behaviour}" for i, behaviour in behaviours.items()},
        str(tmp_path),
        curves={jobs[i].policy.id: [first, second, second, second] for i, (first, second) in enumerate(curves)},
    )
    state = np.random.get_state()[1].tolist()
    with closing(AshaPool(RayPool(factory, Limits(timeout_s=4.0), n_workers=1))) as pool:
        outcomes = {outcome.id: outcome for outcome in pool.run(jobs)}

    # one after the other, so that each is compared with those before it (Li et al., algorithm 2)
    assert {i: outcome.status for i, outcome in outcomes.items()} == {
        0: Status.COMPLETE,  # the first has nothing to be compared with
        1: Status.PRUNED,  # 0.4 < 0.5
        2: Status.COMPLETE,  # 0.7 and 0.8 are the best so far
        3: Status.PRUNED,  # 0.6 is the median of 0.5, 0.4, 0.7 … but 0.5 is below the median of 0.6 and 0.8
        4: Status.COMPLETE,  # killed once
        5: Status.INFEASIBLE,
        6: Status.FAILED,
        7: Status.FAILED,
        8: Status.COMPLETE,  # does not train
    }
    assert outcomes[1].error == "stopped after 25% of its training: a score of 0.4 is below the median so far"
    assert outcomes[3].error == "stopped after 50% of its training: a score of 0.5 is below the median so far"
    assert outcomes[5].error == "the fake cannot build this policy"
    assert outcomes[6].error == "given up after 2 attempts: time limit: not finished after 4 s"
    assert outcomes[7].error.startswith("given up after 2 attempts: ")
    assert "the fake lost its connection" in outcomes[7].error

    # eight steps each: a quarter, another, and the rest
    whole = [(0, 2), (2, 4), (4, 8)]
    first, second = whole[:1], whole[:2]
    expected = [whole, first, whole, second, whole, second, second, second, []]
    assert [factory.steps(job.policy) for job in jobs] == expected
    for i in (0, 2, 4, 8):
        assert outcomes[i].measurement == fake_measurement(SPACE, jobs[i].policy)

    # nobody but Ray's own daemon, on the crash, says anything
    assert [line for line in "".join(capfd.readouterr()).splitlines() if line and "(raylet)" not in line] == []
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.slow
def test_a_bench_that_cannot_be_set_up_ends_the_search(running_ray, tmp_path):
    jobs = make_jobs(2)
    curves = {job.policy.id: [1.0] * 4 for job in jobs}
    factory = FakeBenchFactory(SPACE, {}, str(tmp_path), setup_error="the fake model is missing", curves=curves)
    pool = AshaPool(RayPool(factory, Limits(), n_workers=1))
    with closing(pool), pytest.raises(SpecError, match="the worker cannot be set up: the fake model is missing"):
        list(pool.run(jobs))


def test_a_search_keeps_what_was_stopped_and_tells_that_it_was_bad(tmp_path):
    plan = SearchPlan(
        Problem(SPACE, Budget(accuracy_drop=0.03, reference_s=REFERENCE_S)), algorithm="random", n_trials=8, seed=1
    )

    class Stopping(InlinePool):
        """Stops the first of each batch."""

        def run(self, jobs):
            yield Outcome(jobs[0].id, Status.PRUNED, error="stopped")
            yield from super().run(jobs[1:])

    path = tmp_path / "journal"
    with Journal.create(path, {}) as journal:
        records = run_search(plan, Stopping(FakeBenchFactory(SPACE), Limits()), journal, SilentObserver())
    assert [record.status for record in records] == ([Status.PRUNED] + [Status.COMPLETE] * 3) * 2
    # going on replays it: nothing is run again
    with Journal.open(path) as journal:
        assert run_search(replace(plan, n_trials=8), InlinePool(None, Limits()), journal, SilentObserver()) == records


def test_a_search_by_tpe_avoids_what_was_stopped():
    def share_after(violation):
        """The share of suggestions with option 0 in the first layer, after half of the trials with it were ended."""
        searcher = build_searcher("tpe", Problem(SPACE), seed=0)
        told = []
        for _ in range(15):
            suggestions = searcher.ask(4)
            ended = [SPACE.encode(s.policy)[0] == 0 for s in suggestions]
            told += ended
            searcher.tell(
                [
                    Verdict(s.id, None, violation) if end else Verdict(s.id, (1.0,), 0.0)
                    for s, end in zip(suggestions, ended, strict=True)
                ]
            )
        return np.mean(told[20:])

    assert share_after(np.inf) < share_after(0.0)


@pytest.mark.parametrize(
    ("address", "message"),
    [("inline", "set workers.address: local"), ("ray://10.0.0.1:10001", "with workers.address: auto")],
)
def test_asha_is_refused_where_it_cannot_run(address, message):
    with pytest.raises(SpecError, match=message):
        build_pool(address, FakeBenchFactory(SPACE), Limits(), n_workers=1, scheduler="asha")


def test_asha_without_ray_tune_names_the_extra(monkeypatch):
    find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pandas" else find_spec(name))
    with pytest.raises(SpecError, match=r"not installed \(no pandas\); pip install 'trimtab\[tune\]'"):
        build_pool("local", FakeBenchFactory(SPACE), Limits(), n_workers=1, scheduler="asha")
