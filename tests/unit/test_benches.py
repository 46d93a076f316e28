"""A trial with a goal on the real runtime: the same numbers as without, from fewer samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from trimtab import Dataset, Split
from trimtab.experiments.finish import finish_search
from trimtab.experiments.preparation import prepare
from trimtab.experiments.spec_file import load_spec
from trimtab.hw_profiles.latency import Latency
from trimtab.search.budget import Budget
from trimtab.search.goal import Goal
from trimtab.search.record import Record, Status
from trimtab.spaces.policy import Policy
from trimtab.spaces.treatment import QUANTIZE_OPTIONS, Treatment

N_VALIDATION = 400
GOAL = Goal("latency", Budget(accuracy_drop=0.03))
GOOD = Policy({"0": QUANTIZE_OPTIONS["int8_dynamic"], "2": QUANTIZE_OPTIONS["int8"]})
BAD = Policy({"0": Treatment(sparsity=0.97)})


def model():
    weights = np.random.default_rng(0)
    layers = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4)).eval()
    for parameter in layers.parameters():
        parameter.data = torch.from_numpy(weights.normal(size=tuple(parameter.shape)).astype(np.float32))
    layers.example_inputs = {"input": torch.zeros(2, 16)}
    return layers


def data():
    def split(n, seed):
        vectors = np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)
        with torch.no_grad():
            return Split({"input": vectors}, model()(torch.from_numpy(vectors)).argmax(1).numpy())

    return Dataset(split(8, 1), split(N_VALIDATION, 2), split(50, 3))


@pytest.fixture(scope="module")
def preparation():
    parts = {
        "model": model, "data": data, "target": {"runtime": "onnxruntime", "batch_size": 8},
        "space": [{"layers": "*", "quantize": ["none", "int8", "int8_dynamic"], "sparsify": [0, 0.97]}],
        "graph": {"fusion": ["none"]},
    }  # fmt: skip
    return prepare(load_spec(parts))


@pytest.fixture(scope="module")
def bench(preparation):
    return preparation.benches().workbench()


def test_a_policy_that_can_win_comes_to_the_same_measurement_as_without_a_goal(bench):
    # dynamic quantisation in batches of eight: the scale depends on the other samples of the batch
    artifact, first = bench.compress_and_score(GOOD, seed=0, goal=GOAL)
    assert (first.stopped, first.measurement.accuracy.n, len(first.scores)) == ("", 200, 200)
    rest = bench.score_rest(artifact, first.scores, goal=GOAL)
    whole = bench.compress_and_score(GOOD, seed=0)[1]
    assert (rest.stopped, rest.scores) == ("", None)
    assert rest.measurement == whole.measurement
    assert whole.measurement.is_scored_on(N_VALIDATION)


def test_a_policy_that_breaks_the_bound_is_stopped_at_the_first_look(bench):
    _, progress = bench.compress_and_score(BAD, seed=0, goal=GOAL)
    assert progress.stopped.startswith("stopped after 104 of 400 samples: an accuracy drop of ")
    assert progress.scores is None
    assert progress.measurement.accuracy_drop.n == 104
    assert progress.measurement.size_bytes > 0


def test_a_goal_without_a_bound_on_accuracy_stops_nothing(bench):
    _, progress = bench.compress_and_score(BAD, seed=0, goal=Goal("latency", Budget()))
    assert (progress.stopped, len(progress.scores)) == ("", 200)


def test_the_original_has_the_scores_that_running_it_gives(preparation, bench):
    artifact, progress = bench.compress_and_score(Policy({}), seed=0, goal=GOAL)
    run = preparation.validation.score(preparation.device.load(artifact))
    assert (progress.measurement.accuracy, progress.measurement.accuracy_drop) == (run.accuracy, run.accuracy_drop)
    assert (progress.scores, progress.stopped) == (None, "")


def test_the_end_of_a_search_scores_in_full_what_the_search_did_not(preparation, bench):
    whole = bench.compress_and_score(Policy({}), seed=0)[1].measurement
    part = bench.compress_and_score(GOOD, seed=0, goal=GOAL)[1].measurement
    timings = {0: 0.010, 1: 0.011}  # when searched, the second was slower, so it was not scored in full
    records = [
        Record(i, policy, Status.COMPLETE, replace(known, latency=Latency(timings[i], 0.0, 30)), 1.0, 0, "tpe")
        for i, (policy, known) in enumerate([(Policy({}), whole), (GOOD, part)])
    ]

    def compare(artifacts):
        """Timed together, it is the faster one."""
        return [Latency(0.010, 0.0, 30), *[Latency(0.009, 0.0, 30) for _ in artifacts], Latency(1.0, 0.0, 30)]

    final = finish_search(preparation, records, Budget(accuracy_drop=0.5), compare)
    assert final.winner.policy == GOOD
    expected = bench.compress_and_score(GOOD, seed=0)[1].measurement
    measured = final.measurements[1]
    assert (measured.accuracy, measured.accuracy_drop) == (expected.accuracy, expected.accuracy_drop)
    assert final.measurements[0].accuracy == whole.accuracy
    # with a bound that it breaks, the original wins
    tight = Budget(accuracy_drop=expected.accuracy_drop.mean / 2)
    assert finish_search(preparation, records, tight, compare).winner.policy == Policy({})
