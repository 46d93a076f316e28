"""What a kernel table says of its observations, and whose it is."""

import math
import time

import numpy as np
import pytest
from trimtab.core.errors import TableError
from trimtab.hw_profiles.kernels.kernel import KernelTiming
from trimtab.hw_profiles.kernels.kernel_table import (
    MAX_GRAPHS,
    MAX_OBSERVATIONS,
    GraphObservation,
    KernelTable,
    Observation,
)
from trimtab.hw_profiles.kernels.table_identity import TableIdentity
from trimtab.hw_profiles.latency import Latency
from trimtab.hw_profiles.profile import identify_cpu
from trimtab.hw_profiles.target import Target
from trimtab.hw_profiles.testing import synthetic_identity, synthetic_kernel, synthetic_table

KERNEL, OTHER = synthetic_kernel(8), synthetic_kernel(16)


def table_of(*observations):
    """A table with observations (median, iqr, runs) of one kernel, from sources a, b, c …"""
    table = KernelTable(synthetic_identity())
    for source, (median_s, iqr_s, runs) in zip("abcdefgh", observations, strict=False):
        table.add([KernelTiming(KERNEL, median_s, iqr_s, runs)], source)
    return table


def graph_of(*kernels, latency_s=1e-3, model="m", source="s"):
    counts = dict.fromkeys(kernels, 1)
    return GraphObservation.of(counts, Latency(latency_s, 1e-5, 50), model=model, source=source)


def test_a_kernel_that_was_never_timed_has_no_latency():
    table = table_of((1e-5, 1e-7, 30))
    assert (table.latency(OTHER), OTHER in table, table.observations(OTHER)) == (None, False, ())


def test_one_observation_is_the_latency():
    assert table_of((1e-5, 1e-7, 30)).latency(KERNEL) == Latency(1e-5, 1e-7, 30, source="table")


def test_the_median_is_weighted_by_runs():
    assert table_of((1e-5, 0, 10), (2e-5, 0, 10), (9e-5, 0, 100)).latency(KERNEL).median_s == 9e-5


def test_the_median_of_equal_halves_lies_between_them():
    assert table_of((1e-5, 0, 20), (3e-5, 0, 10), (5e-5, 0, 10)).latency(KERNEL).median_s == pytest.approx(2e-5)


def test_runs_are_summed():
    assert table_of((1e-5, 0, 20), (3e-5, 0, 10)).latency(KERNEL).runs == 30


def test_spread_between_observations_widens_the_iqr():
    rng = np.random.default_rng(0)
    # 200 measurements, each with its own offset: the IQR of all their samples together is what is asked for
    offsets = rng.normal(1e-3, 3e-5, MAX_OBSERVATIONS)
    samples = [rng.normal(offset, 1e-5, 4000) for offset in offsets]
    table = KernelTable(synthetic_identity())
    for number, sample in enumerate(samples):
        iqr_s = float(np.subtract(*np.percentile(sample, [75, 25])))
        table.add([KernelTiming(KERNEL, float(np.median(sample)), iqr_s, 4000)], f"#{number}")
    expected_s = 1.34898 * np.std(np.concatenate(samples) - np.median(offsets))
    assert table.latency(KERNEL).iqr_s == pytest.approx(expected_s, rel=0.1)


def test_a_new_observation_replaces_the_cached_latency():
    table = table_of((1e-5, 0, 10))
    before = table.latency(KERNEL)
    table.add([KernelTiming(KERNEL, 5e-5, 0, 1000)], "late")
    assert (before.median_s, table.latency(KERNEL).median_s) == (1e-5, 5e-5)


def test_a_kernel_at_several_places_keeps_the_sum_over_the_graph():
    table = KernelTable(synthetic_identity())
    table.add([KernelTiming(KERNEL, median_s, 0, 30) for median_s in (1e-5, 1e-5, 4e-5)], "s")
    assert table.observations(KERNEL)[0].median_s * 3 == pytest.approx(6e-5)
    assert table.observations(KERNEL)[0].runs == 90
    assert table.latency(KERNEL).iqr_s > 0


def test_nothing_is_added_when_one_timing_is_wrong():
    table = KernelTable(synthetic_identity())
    with pytest.raises(TableError, match="median_s"):
        table.add([KernelTiming(KERNEL, 1e-5, 0, 30), KernelTiming(OTHER, math.nan, 0, 30)], "s")
    assert len(table) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e-9, 1e9, 10**400, "1", None, True])
@pytest.mark.parametrize("field", ["median_s", "iqr_s"])
def test_seconds_that_are_none_are_refused(field, value):
    numbers = {"median_s": 1e-5, "iqr_s": 1e-6, "runs": 3, "source": "s", field: value}
    with pytest.raises(TableError, match=f"{field} must be a number of seconds"):
        Observation(**numbers)


@pytest.mark.parametrize("runs", [0, -1, 2.5, True, None, 10**12])
def test_runs_that_are_none_are_refused(runs):
    with pytest.raises(TableError, match="runs must be a whole number"):
        Observation(1e-5, 0, runs, "s")


@pytest.mark.parametrize("source", ["", "two\nlines", "x" * 201, None])
def test_sources_that_name_nothing_are_refused(source):
    with pytest.raises(TableError, match="source must be"):
        Observation(1e-5, 0, 1, source)


def test_numbers_of_numpy_are_taken():
    observation = Observation(np.float32(0.25), np.float64(0.5), np.int64(3), "s")
    assert observation == Observation(0.25, 0.5, 3, "s")
    assert type(observation.runs) is int


def test_a_graph_without_kernels_is_refused():
    with pytest.raises(TableError, match="have one"):
        GraphObservation((), 1e-3, 0, 1, "m", "s")


def test_observations_of_most_runs_stay_when_there_are_too_many():
    table = KernelTable(synthetic_identity())
    for number in range(MAX_OBSERVATIONS + 5):
        table.add([KernelTiming(KERNEL, 1e-5, 0, number + 1)], f"#{number}")
    assert sorted(each.runs for each in table.observations(KERNEL)) == list(range(6, MAX_OBSERVATIONS + 6))


def test_graphs_are_capped_per_model():
    table = KernelTable(synthetic_identity())
    for number in range(MAX_GRAPHS + 3):
        table.add_graph(graph_of(KERNEL, source=f"#{number}"))
    table.add_graph(graph_of(KERNEL, model="other"))
    assert len(table.graphs) == MAX_GRAPHS + 1


def test_a_graph_says_which_kernels_its_ids_are():
    table = KernelTable(synthetic_identity())
    table.add_graph(graph_of(KERNEL), [KERNEL])
    assert (table.kernel(KERNEL.id), KERNEL in table, len(table)) == (KERNEL, False, 0)


def test_filters_hide_timings_and_keep_the_graphs():
    table = synthetic_table(4, 2)
    first, *rest = (kernel.id for kernel in table.kernels())
    held_out = table.without([first])
    assert [kernel.id for kernel in held_out.kernels()] == rest
    assert held_out.kernel(first) == table.kernel(first)
    assert held_out.graphs == table.graphs
    assert [kernel.id for kernel in table.only([first]).kernels()] == [first]
    assert len(table) == 4


def test_a_source_can_be_held_out():
    table = table_of((1e-5, 0, 10), (2e-5, 0, 10))
    table.add_graph(graph_of(KERNEL, source="a"))
    rest = table.without_source("a")
    assert ([each.source for each in rest.observations(KERNEL)], rest.graphs) == (["b"], ())


def test_graphs_can_be_held_out_by_model():
    table = synthetic_table()
    table.add_graph(graph_of(KERNEL, model="other"))
    assert [graph.model for graph in table.without_graphs(lambda graph: graph.model == "imaginary").graphs] == ["other"]


def test_tables_of_other_devices_are_not_merged():
    mine, other = synthetic_table(), synthetic_table(identity=synthetic_identity("1.30.0"))
    with pytest.raises(TableError, match=r"onnxruntime 1\.31\.1 here, 1\.30\.0 in the table"):
        mine.merge(other)
    assert mine == synthetic_table()


def test_an_identity_leaves_out_what_kernel_times_do_not_depend_on():
    identities = {
        TableIdentity.of(identify_cpu(Target("onnxruntime", batch_size=batch_size), "1.31.1")).id
        for batch_size in (1, 8)
    }
    assert len(identities) == 1


def test_an_identity_holds_threads_and_further_settings():
    profile = identify_cpu(Target("openvino", threads=2), "2026.4")
    identity = TableIdentity.of(profile, {"precision": "bfloat16"})
    assert identity.settings == {"device": "cpu", "precision": "bfloat16", "threads": 2}
    assert TableIdentity.from_json(identity.to_json()) == identity


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"device": "Other"}, "device Imaginary CPU here, Other in the table"),
        ({"runtime_version": "1.30.0"}, "onnxruntime 1.31.1 here, 1.30.0 in the table"),
        ({"runtime": "openvino"}, "runtime onnxruntime 1.31.1 here, openvino 1.31.1 in the table"),
        ({"settings": {"device": "cpu", "threads": 4}}, "threads 1 here, 4 in the table"),
        ({"settings": {"device": "cpu", "threads": True}}, "threads 1 here, True in the table"),
        ({"settings": {"device": "cpu"}}, "threads 1 here, not set in the table"),
        (
            {"features": ["avx2", "amx_int8"]},
            "instruction sets differ (only here: avx512f; only in the table: amx_int8)",
        ),
    ],
)
def test_a_difference_is_said_in_words(changes, words):
    here = synthetic_identity()
    assert here.describe_difference(TableIdentity.from_json({**here.to_json(), **changes})) == words


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"a": float("inf")}},
        {"features": "avx2"},
        {"features": [1]},
        {"settings": []},
        {"settings": {"a": []}},
        {"device": 1},
    ],
)
def test_a_malformed_identity_is_refused(changes):
    with pytest.raises(TableError, match=r"identity must have|settings must be finite"):
        TableIdentity.from_json({**synthetic_identity().to_json(), **changes})


def test_a_hundred_thousand_lookups_take_less_than_a_second():
    table = synthetic_table(100)
    kernels = table.kernels()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(100):
            for kernel in kernels:
                table.latency(kernel)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1  # for 10,000
