"""Every worker pool keeps the contract; a new one is one line in FACTORIES."""

import logging
import socket
from contextlib import closing
from dataclasses import replace

import pytest
import ray
from trimtab.core.errors import SpecError
from trimtab.search.budget import Budget
from trimtab.search.controller import SearchPlan, SilentObserver, run_search
from trimtab.search.inline_pool import InlinePool
from trimtab.search.journal import Journal
from trimtab.search.pool_contract import POOL_CHECKS, PROCESS_POOL_CHECKS, outcome_of_every_kind
from trimtab.search.pools import build_pool
from trimtab.search.problem import Problem
from trimtab.search.ray_pool import RayPool
from trimtab.search.testing import REFERENCE_S, FakeBenchFactory, small_space
from trimtab.search.worker_pool import Limits
from trimtab.spaces.policy import Policy

FACTORIES = {
    "inline": InlinePool,
    "ray": lambda factory, limits: RayPool(factory, limits, n_workers=2),
}


@pytest.fixture(scope="module", autouse=True)
def running_ray():
    # one Ray for the module: starting it costs seconds
    ray.init(
        address="local",
        num_cpus=4,
        resources={"trimtab_device": 1},
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.mark.parametrize("check", POOL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", FACTORIES)
def test_pool_keeps_the_contract(name, check, tmp_path):
    check(FACTORIES[name], tmp_path)


@pytest.mark.parametrize("check", PROCESS_POOL_CHECKS, ids=lambda check: check.__name__)
def test_ray_pool_keeps_the_contract_of_processes(check, tmp_path):
    check(FACTORIES["ray"], tmp_path)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_ray_pool_gives_the_outcomes_of_the_inline_pool(n_workers, tmp_path):
    for folder in ("inline", "ray"):
        (tmp_path / folder).mkdir()
    expected = outcome_of_every_kind(InlinePool, tmp_path / "inline")
    found = outcome_of_every_kind(lambda f, limits: RayPool(f, limits, n_workers=n_workers), tmp_path / "ray")
    assert found == expected


def test_number_of_workers_does_not_change_the_trace(tmp_path):
    traces = []
    for n_workers in (1, 4):
        space = small_space()
        plan = SearchPlan(
            Problem(space, Budget(accuracy_drop=0.03, reference_s=REFERENCE_S)),
            baselines=(("untouched", Policy({})),),
            algorithm="tpe",
            n_trials=30,
        )
        with (
            Journal.create(tmp_path / f"{n_workers}", {}) as journal,
            closing(RayPool(FakeBenchFactory(space), Limits(), n_workers=n_workers)) as pool,
        ):
            records = run_search(plan, pool, journal, SilentObserver())
        traces.append([replace(record, cost_s=0.0) for record in records])
    assert traces[0] == traces[1]


def test_address_where_nothing_listens_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: nobody else can answer there
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(SpecError, match=f"workers.address '{address}': nothing answers there"):
            build_pool(address, FakeBenchFactory(small_space()), Limits(), n_workers=1)
