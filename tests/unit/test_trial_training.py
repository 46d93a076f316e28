"""A training that is scored on the way gives what the finished policy gives, and leaves its model where it is found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from trimtab import Dataset, Split
from trimtab.core.errors import SpecError
from trimtab.experiments.preparation import prepare
from trimtab.experiments.spec_file import load_spec
from trimtab.spaces.policy import Policy
from trimtab.spaces.recovery import Recovery
from trimtab.spaces.treatment import Treatment

RECOVERY = Recovery("finetune", epochs=4, batch_size=32)
POLICY = Policy({"0": Treatment(sparsity=0.8)}, recovery=RECOVERY)


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

    return Dataset(split(8, 1), split(100, 2), split(8, 3), split(256, 4))


def make_spec(**parts):
    return load_spec(
        {
            "model": model, "data": data, "target": {"runtime": "onnxruntime"},
            "space": [{"layers": "0", "sparsify": [0.8]}], "recovery": [RECOVERY.to_json()],
            "graph": {"fusion": ["none"]}, **parts,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield prepare(make_spec(budget={"accuracy_drop": 0.05})).benches()


def test_a_training_is_scored_as_its_policy_will_be(benches):
    bench = replace(benches, enough_drop=None).workbench()
    training = bench.open_training(POLICY)
    assert (training.n_done, training.n_steps) == (0, 32)
    training.advance(16)
    halfway = training.score()
    # the state was kept with the score: another process goes on from there
    assert replace(benches, enough_drop=None).workbench().open_training(POLICY).n_done == 16
    training.advance(16)
    final = training.score()
    assert final != halfway
    training.finish()
    assert bench.open_training(POLICY) is None
    artifact, progress = bench.compress_and_score(POLICY, seed=0)
    assert progress.measurement.accuracy.mean == pytest.approx(final)
    # that it was scored on the way changes nothing
    alone = replace(benches, training=replace(benches.training, folder=None)).workbench()
    assert alone.compress_and_score(POLICY, seed=0)[0].model == artifact.model


def test_what_is_better_than_the_budget_asks_counts_as_equal(benches):
    assert benches.enough_drop == 0.05  # of accuracy 1
    trained = Policy({"0": Treatment(sparsity=0.2)}, recovery=RECOVERY)
    strict = replace(benches, enough_drop=None).workbench().open_training(trained)
    assert strict.score() > 0.95
    assert benches.workbench().open_training(trained).score() == pytest.approx(0.95)


def test_what_does_not_train_or_could_not_be_found_again_opens_no_training(benches):
    assert benches.workbench().open_training(POLICY.untrained) is None
    homeless = replace(benches, training=replace(benches.training, folder=None))
    assert homeless.workbench().open_training(POLICY) is None


def test_a_scheduler_of_trainings_needs_a_recovery_that_trains():
    spec = make_spec(recovery=["none"], search={"scheduler": "asha"})
    with pytest.raises(SpecError, match="add finetune or distill to recovery"):
        prepare(spec)
