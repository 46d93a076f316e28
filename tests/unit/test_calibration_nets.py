"""Random networks are valid, differ, repeat with their seed, and can be prepared like any model."""

import numpy as np
import onnx
import onnxruntime
import pytest
from trimtab.compressors.prepared import prepare_model
from trimtab.experiments.profiling.calibration_nets import synthetic_networks


@pytest.mark.parametrize("seed", [0, 1])
def test_networks_are_valid_and_run(seed):
    for source in synthetic_networks(np.random.default_rng(seed), 3):
        onnx.checker.check_model(onnx.load_from_string(source.onnx_bytes), full_check=True)
        session = onnxruntime.InferenceSession(source.onnx_bytes, providers=["CPUExecutionProvider"])
        assert np.isfinite(session.run(None, dict(source.sample))[0]).all()


def test_networks_repeat_with_their_seed_and_differ_from_each_other():
    first, again = ([s.onnx_bytes for s in synthetic_networks(np.random.default_rng(5), 4)] for _ in range(2))
    assert first == again
    assert len(set(first)) == 4


def test_a_network_has_layers_to_treat():
    source = next(synthetic_networks(np.random.default_rng(0), 1))
    assert len(prepare_model(source, source.sample).layers) >= 5
