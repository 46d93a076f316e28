"""The two small models, exported and prepared once for all files of this folder."""

import pytest
from trimtab.compressors.graph import build_base_graph
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import random_inputs, small_cnn, small_transformer
from trimtab.hw_profiles.target import OPTION_KINDS, Capabilities

MODELS = {"cnn": small_cnn, "transformer": small_transformer}


@pytest.fixture(scope="session")
def sources():
    """Model name → `ModelSource`."""
    return {name: load_source(build) for name, build in MODELS.items()}


@pytest.fixture(scope="session")
def bases(sources):
    """Model name → `BaseGraph`; read only."""
    return {name: build_base_graph(source, random_inputs(name, 1)) for name, source in sources.items()}


@pytest.fixture(scope="session")
def prepared(sources):
    """Model name → `PreparedModel` with every fusion."""
    fusions = ("none", "gelu", "attention", "full")
    return {name: prepare_model(source, random_inputs(name, 8), fusions=fusions) for name, source in sources.items()}


@pytest.fixture(scope="session")
def schemes():
    """Runtime → the quantisation scheme that its device asks for."""
    every = {option: frozenset(kinds) for option, kinds in OPTION_KINDS.items()}
    return {
        "onnxruntime": Capabilities(every),
        "openvino": Capabilities(
            every, activation_codes="symmetric", quantize_conv_outputs=False, dynamic_form="weights"
        ),
    }


@pytest.fixture
def pipeline(prepared, schemes):
    """Returns a function: (model name, runtime) → a fresh `Pipeline`."""
    return lambda name, runtime="onnxruntime": Pipeline(prepared[name], schemes[runtime])
