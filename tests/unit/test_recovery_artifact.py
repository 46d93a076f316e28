"""What training saw is what the artifact computes."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from trimtab.compressors.onnx_stage import OnnxStage
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.recovery.data import TrainingData
from trimtab.compressors.recovery.train import RecoveryPlan, RecoverySession
from trimtab.compressors.source import export_module
from trimtab.compressors.testing import random_inputs, small_cnn
from trimtab.hw_profiles.target import OPTION_KINDS, Capabilities
from trimtab.spaces.options import QUANTIZE_OPTIONS
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.recovery import Recovery
from trimtab.spaces.treatment import Treatment

LAYERS = ("stem.0", "left.0", "right.0", "depthwise.0", "point", "fc")
TREATMENTS = (
    replace(QUANTIZE_OPTIONS["int8"], sparsity=0.5),
    QUANTIZE_OPTIONS["int8_weight"],
    Treatment(binary="ternary", activation_dtype="binary"),
    Treatment(clusters=8, cluster_scope="group", sparsity=0.5),
)


@pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda treatment: treatment.label)
def test_the_artifact_computes_what_training_saw(treatment) -> None:
    """Codes, codebooks, masks and levels survive batch norms that are merged; nothing else is left to differ."""
    inputs = random_inputs("cnn", 64)
    recovery = Recovery("finetune", epochs=2, batch_size=16, learning_rate=0.02)
    treatments = dict.fromkeys(LAYERS, treatment)
    if treatment.activation_dtype == "binary":  # few values: one that lies on the middle may fall to either side
        treatments = {**dict.fromkeys(LAYERS, Treatment(binary=treatment.binary)), "fc": treatment}
    plan = RecoveryPlan(treatments, recovery)
    session = RecoverySession(small_cnn(), TrainingData(inputs, np.arange(64) % 5), plan)
    session.advance(session.n_steps)
    with torch.no_grad():
        seen = session._student.eval()(torch.from_numpy(inputs["x"])).numpy()
    found = session.finish()
    source = replace(
        export_module(found.module, found.module.example_inputs),
        learned_steps=found.learned_steps,
        learned_ranges=found.learned_ranges,
        learned_levels=found.learned_levels,
    )
    prepared = prepare_model(source, {"x": inputs["x"][:8]}, fusions=("none",))
    every = {option: frozenset(kinds) for option, kinds in OPTION_KINDS.items()}
    # outputs stay float, which training does not round either
    stage = OnnxStage(prepared, Capabilities(every, quantize_conv_outputs=False))
    artifact = stage.write(treatments, GraphTreatment())
    options = onnxruntime.SessionOptions()
    # optimised, the runtime rounds the inputs of int8 weights as well
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    runtime = onnxruntime.InferenceSession(artifact.model, options, providers=["CPUExecutionProvider"])
    # of 0.5; a code that falls to the other side of a half moves an output by less
    np.testing.assert_allclose(runtime.run(None, inputs)[0], seen, atol=2e-4)
