"""A training that is interrupted goes on from what was kept of it, and ends as one that was left alone."""

import numpy as np
import pytest
from torch import nn
from trimtab.compressors.kept_session import KeptSession
from trimtab.compressors.recovery.data import TrainingData
from trimtab.compressors.recovery.train import RecoveryPlan, RecoverySession
from trimtab.compressors.source import ModelSource
from trimtab.compressors.trained_bank import TrainedBank
from trimtab.spaces.recovery import Recovery
from trimtab.spaces.treatment import Treatment

RNG = np.random.default_rng(0)
DATA = TrainingData({"input": RNG.normal(size=(64, 8)).astype(np.float32)}, RNG.integers(0, 4, 64))
PLAN = RecoveryPlan({"0": Treatment(sparsity=0.5)}, Recovery("finetune", epochs=5, batch_size=16))


def make_session(n_inner=8):
    module = nn.Sequential(nn.Linear(8, n_inner), nn.BatchNorm1d(n_inner), nn.Dropout(0.2), nn.Linear(n_inner, 4))
    fixed = np.random.default_rng(1)
    for parameter in module.parameters():
        parameter.data = parameter.data.new_tensor(fixed.normal(size=tuple(parameter.shape)))
    return RecoverySession(module, DATA, PLAN)


@pytest.fixture
def bank(tmp_path):
    return TrainedBank(tmp_path)


def test_an_interrupted_training_ends_as_one_that_was_left_alone(bank):
    alone = make_session()
    alone.advance(20)
    first = KeptSession(make_session, bank, "key")
    first.advance(11)
    first.save()
    first.advance(4)  # then the process dies
    second = KeptSession(make_session, bank, "key")
    assert (second.n_done, second.n_steps) == (11, 20)
    second.advance(100)
    expected, found = (session.finish().module.state_dict() for session in (alone, second))
    for name, tensor in expected.items():
        assert tensor.equal(found[name]), name


def test_states_are_kept_only_now_and_then(bank):
    session = KeptSession(make_session, bank, "key", save_every_s=3600.0)
    session.advance(20)
    assert bank.load_state("key") is None


def test_the_state_of_another_training_is_not_used(bank, caplog):
    KeptSession(lambda: make_session(n_inner=4), bank, "key", save_every_s=0.0).advance(5)
    session = KeptSession(make_session, bank, "key")
    assert session.n_done == 0
    assert "begins again" in caplog.text
    assert bank.load_state("key") is None


def test_a_damaged_state_is_not_used(bank, tmp_path):
    KeptSession(make_session, bank, "key", save_every_s=0.0).advance(5)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    assert KeptSession(make_session, bank, "key").n_done == 0


def test_a_bank_forgets_the_state_of_what_is_trained_and_what_was_not_used_for_long(tmp_path):
    bank = TrainedBank(tmp_path, max_bytes=3_000)
    bank.keep_state("a", {"step": np.array(3), "x": np.zeros(4)})
    assert {name: array.shape for name, array in bank.load_state("a").items()} == {"step": (), "x": (4,)}
    bank.keep("a", ModelSource(b"model"))
    assert bank.load_state("a") is None
    assert bank.load("a").onnx_bytes == b"model"
    (tmp_path / ".a.safetensors.half").write_bytes(bytes(2_000))  # a crash while writing
    bank.keep_state("b", {"x": np.zeros(300, np.float32)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.state.safetensors"]
