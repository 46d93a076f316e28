"""The contract of every technique. A new technique is one line in TECHNIQUES."""

from dataclasses import replace

import numpy as np
import pytest
from trimtab.compressors.artifact import Artifact
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import (
    COMPRESSION_CHECKS,
    CompressionCase,
    building_is_pure,
    random_inputs,
    size_and_digest_are_those_of_the_bytes,
    small_cnn,
    small_transformer,
)
from trimtab.evaluators.device import build_device
from trimtab.hw_profiles.target import OPTION_KINDS, Capabilities, Target
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

#: quantize option → how far two runtimes may lie apart on the same artifact, relative to the largest output;
#: integer kernels of different rounding move some activations by one of 255 codes, several layers in a row
TECHNIQUES = {
    "none": 1e-4,
    "float16": 1e-4,
    "int8": 0.02,
    "int8_dynamic": 0.02,
    "int8_weight": 0.02,
    "int4_weight": 0.02,
}

MODELS = {"cnn": small_cnn, "transformer": small_transformer}

_SCHEME = Capabilities({option: frozenset(kinds) for option, kinds in OPTION_KINDS.items()})


@pytest.fixture(scope="module")
def prepared():
    return {name: prepare_model(load_source(build), random_inputs(name, 8)) for name, build in MODELS.items()}


def _make_case(prepared, name, option):
    layers = tuple(layer.name for layer in prepared[name].layers if layer.kind in OPTION_KINDS[option])
    make_pipeline = lambda: Pipeline(prepared[name], _SCHEME)  # noqa: E731 - a closure is all that is needed
    return CompressionCase(make_pipeline, layers, QUANTIZE_OPTIONS[option], random_inputs(name, 4, seed=1))


@pytest.fixture(params=MODELS)
def model(request):
    return request.param


@pytest.fixture(params=TECHNIQUES)
def option(request):
    return request.param


@pytest.fixture
def case(prepared, model, option):
    return _make_case(prepared, model, option)


def test_every_option_is_under_contract():
    assert set(TECHNIQUES) == set(QUANTIZE_OPTIONS) == set(OPTION_KINDS)


@pytest.mark.parametrize("check", COMPRESSION_CHECKS, ids=lambda check: check.__name__)
def test_every_technique_keeps_the_contract(case, check):
    check(case)


@pytest.fixture(scope="module")
def devices():
    return [build_device(Target(runtime, batch_size=4)) for runtime in ("onnxruntime", "openvino")]


def test_both_runtimes_compute_nearly_the_same(prepared, model, case, option, devices):
    # zero points of 0, as OpenVINO's device asks for: with others, OpenVINO 2026.4 computes wrong numbers for an int8
    # MatMul, a ReduceMean and an int8 MatMul in a row (here 0.37 on outputs of 0.25); ONNX Runtime agrees with float
    scheme = replace(_SCHEME, activation_codes="symmetric")
    artifact = case.build(Pipeline(prepared[model], scheme))
    ours, theirs = (device.load(artifact).run(case.inputs) for device in devices)
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one - other).max() <= TECHNIQUES[option] * np.abs(one).max()


# -- a contract that nothing can break checks nothing ----------------------------------------------


class _Forgetful(Pipeline):
    """Appends to what it builds the number of builds before."""

    n_builds = 0

    def build(self, treatments, graph):
        self.n_builds += 1
        artifact = super().build(treatments, graph)
        return replace(artifact, model=artifact.model + bytes(self.n_builds))


class _Boastful(Artifact):
    """States half of its size."""

    size_bytes = 1


def test_a_pipeline_that_remembers_is_caught(prepared):
    case = replace(_make_case(prepared, "cnn", "int8"), make_pipeline=lambda: _Forgetful(prepared["cnn"], _SCHEME))
    with pytest.raises(AssertionError, match="a build must not depend on those before it"):
        building_is_pure(case)


def test_an_artifact_that_understates_its_size_is_caught(prepared, monkeypatch):
    case = _make_case(prepared, "cnn", "int8")
    monkeypatch.setattr(Pipeline, "build", lambda *_: _Boastful(b"abc"))
    with pytest.raises(AssertionError, match="size_bytes must count the bytes"):
        size_and_digest_are_those_of_the_bytes(case)
