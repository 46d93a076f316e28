"""A search on a cluster of two nodes, one of which may measure and one of which goes away."""

import logging
from contextlib import closing
from dataclasses import replace

import pytest
import ray
from ray.cluster_utils import Cluster
from trimtab.core.errors import SpecError, TransientError
from trimtab.search.budget import Budget
from trimtab.search.controller import SearchPlan, SilentObserver, run_search
from trimtab.search.inline_pool import InlinePool
from trimtab.search.journal import Journal
from trimtab.search.problem import Problem
from trimtab.search.ray_pool import RayPool
from trimtab.search.testing import REFERENCE_S, FakeBenchFactory, small_space
from trimtab.search.worker_pool import Limits
from trimtab.spaces.policy import Policy

pytestmark = pytest.mark.slow

SPACE = small_space()
PLAN = SearchPlan(
    Problem(SPACE, Budget(accuracy_drop=0.03, reference_s=REFERENCE_S)),
    baselines=(("untouched", Policy({})),),
    algorithm="tpe",
    n_trials=24,
)


class At(SilentObserver):
    """Does something once, when so many records are there."""

    def __init__(self, n_records, act):
        self.n_records, self.act = n_records, act

    def on_record(self, record, best):
        self.n_records -= 1
        if self.n_records == 0:
            self.act()


@pytest.fixture
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def connect(cluster):
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)


def search(path, pool, observer=None):
    journal = Journal.open(path) if path.exists() else Journal.create(path, {})
    with journal, closing(pool):
        records = run_search(PLAN, pool, journal, observer or SilentObserver())
    return [replace(record, cost_s=0.0) for record in records]


def test_finished_trials_survive_the_loss_of_nodes(cluster, tmp_path):
    factory = FakeBenchFactory(SPACE)
    expected = search(tmp_path / "inline", InlinePool(factory, Limits()))

    # no node may measure: refused, with the remedy
    with pytest.raises(SpecError, match=r"ray start --address=.*trimtab_device"):
        RayPool(factory, Limits(), n_workers=2, address=cluster.address)

    device_node = cluster.add_node(num_cpus=1, resources={"trimtab_device": 1})
    worker_node = cluster.add_node(num_cpus=2)
    connect(cluster)

    # a node with workers goes: its jobs are retried elsewhere, and the trace is the same
    pool = RayPool(factory, Limits(), n_workers=4, address=cluster.address)
    found = search(tmp_path / "workers", pool, At(9, lambda: cluster.remove_node(worker_node)))
    assert found == expected

    # the device's node goes: the search stops, what was finished stays
    pool = RayPool(factory, Limits(), n_workers=2, address=cluster.address, grace_s=1.0)
    with pytest.raises(TransientError, match="no node offers a place for a device"):
        search(tmp_path / "device", pool, At(9, lambda: cluster.remove_node(device_node)))
    with Journal.open(tmp_path / "device") as journal:
        kept = [replace(record, cost_s=0.0) for record in journal.records]
    assert len(kept) >= 9
    assert kept == [expected[record.id] for record in kept]

    # another device joins: the search goes on where it stopped
    cluster.add_node(num_cpus=1, resources={"trimtab_device": 1})
    cluster.wait_for_nodes()
    pool = RayPool(factory, Limits(), n_workers=2, address=cluster.address)
    assert search(tmp_path / "device", pool) == expected
