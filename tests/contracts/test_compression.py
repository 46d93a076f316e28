"""The contract of every technique. A new technique is one line in TECHNIQUES, STRUCTURED or RECOVERED."""

from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import pytest
from trimtab.compressors.artifact import Artifact
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.pruning.structures import find_structures
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import (
    COMPRESSION_CHECKS,
    CompressionCase,
    building_is_pure,
    random_inputs,
    size_and_digest_are_those_of_the_bytes,
    small_cnn,
    small_transformer,
    the_file_is_as_large_as_accounted,
)
from trimtab.compressors.training import Training
from trimtab.core.errors import PolicyError
from trimtab.evaluators.device import build_device
from trimtab.hw_profiles.target import OPTION_KINDS, TECHNIQUE_KINDS, Capabilities, Target
from trimtab.spaces.options import TECHNIQUES as EVERY_TECHNIQUE
from trimtab.spaces.options import combine, parse_option
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.recovery import Recovery
from trimtab.spaces.treatment import IMPORTANCES, QUANTIZE_OPTIONS

EXACT, INTEGER, COARSE = 1e-4, 0.02, 0.08
#: options of a layer → how far runtimes may lie apart on the same artifact, relative to the largest output;
#: integer kernels of different rounding move some activations by one of 255 codes, several layers in a row; weights of
#: three values leave outputs that are small beside that
TECHNIQUES = {
    "quantize none": EXACT,
    "quantize float16": EXACT,
    "quantize float32": EXACT,
    "quantize int8": INTEGER,
    "quantize int8_dynamic": INTEGER,
    "quantize int8_weight": INTEGER,
    "quantize int4_weight": INTEGER,
    "low_rank 0.5": EXACT,
    "low_rank energy 0.8 output": EXACT,
    "cluster 16": EXACT,
    "cluster 5 group sensitivity": EXACT,
    "binarize binary": EXACT,
    "binarize ternary": EXACT,
    "binarize binary activations": EXACT,
    "sparsify 0.5": EXACT,
    "sparsify 2:4 wanda": EXACT,
    "cluster 16 + quantize int8": INTEGER,
    "binarize ternary + quantize int8": COARSE,
    "sparsify 0.6 + quantize int8_weight": INTEGER,
    "low_rank 0.5 + cluster 16 + sparsify 0.5 + quantize int8": INTEGER,
}
#: no runtime here runs it (ONNX Runtime refuses the graph): tests/unit/test_tensorrt_rules.py looks at what is written
NOT_HERE = {"float8"}

#: (model, pattern of structures, option)
STRUCTURED = [
    ("cnn", "channels:*", "prune 0.5"),
    *(("cnn", "channels:*", f"prune 0.5 {importance}") for importance in IMPORTANCES if importance != "magnitude"),
    ("transformer", "heads:*", "prune 0.5"),
    ("transformer", "channels:up", "prune 0.5 taylor"),
]

#: (model, options of its layers, recovery)
RECOVERED = [
    ("cnn", "cluster 4", Recovery("finetune", batch_size=8)),
    ("cnn", "low_rank 0.5 + quantize int8", Recovery("distill", batch_size=8)),
    ("cnn", "binarize binary", Recovery("distill", batch_size=8, features=(("left.0", "left.0"),))),
    ("transformer", "sparsify 0.5 + quantize int8_dynamic", Recovery("distill", batch_size=8)),
]

MODELS = {"cnn": small_cnn, "transformer": small_transformer}

_SCHEME = Capabilities({option: frozenset(kinds) for option, kinds in OPTION_KINDS.items()}, channel_multiple=2)


@pytest.fixture(scope="module")
def prepared():
    found = {name: prepare_model(load_source(build), random_inputs(name, 8)) for name, build in MODELS.items()}
    return {
        name: replace(model, found=find_structures(model.origin.module, model.origin.example_inputs))
        for name, model in found.items()
    }


def _read(options):
    return combine([parse_option(*option.split(" ", 1)) for option in options.split(" + ")])


def _takes(layer, options):
    """Whether a layer's kind takes all of the options; the last two are tried on a layer of enough elements."""
    for option in options.split(" + "):
        technique, text = option.split(" ", 1)
        kinds = OPTION_KINDS[text] if technique == "quantize" else TECHNIQUE_KINDS[technique]
        if layer.kind not in kinds:
            return False
    return True


def _training(name):
    labels = np.arange(16) % 3
    return Training(random_inputs(name, 16), labels, seed=1)


def _make_case(prepared, name, options, recovery=None):
    layers = tuple(layer.name for layer in prepared[name].layers if _takes(layer, options) and _can(layer, options))
    make_pipeline = lambda: Pipeline(prepared[name], _SCHEME, _training(name))  # noqa: E731 - a closure is enough
    inputs = random_inputs(name, 4, seed=1)
    return CompressionCase(make_pipeline, layers, _read(options), inputs, recovery or Recovery())


def _can(layer, options):
    """A layer of a few outputs is not worth taking apart: its factors would be larger."""
    return not options.startswith("low_rank") or min(layer.weight_shape[:2]) >= 8


@pytest.fixture(params=MODELS)
def model(request):
    return request.param


@pytest.fixture(params=TECHNIQUES)
def option(request):
    return request.param


@pytest.fixture
def case(prepared, model, option):
    return _make_case(prepared, model, option)


def test_every_option_and_every_technique_is_under_contract():
    used = {part.split(" ", 1)[0] for options in TECHNIQUES for part in options.split(" + ")}
    assert used | {"prune"} == set(EVERY_TECHNIQUE)
    alone = {options.removeprefix("quantize ") for options in TECHNIQUES if options.startswith("quantize ")}
    assert alone | NOT_HERE == set(QUANTIZE_OPTIONS) == set(OPTION_KINDS)


@pytest.mark.parametrize("check", COMPRESSION_CHECKS, ids=lambda check: check.__name__)
def test_every_technique_keeps_the_contract(case, check):
    check(case)


@pytest.mark.parametrize("check", COMPRESSION_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "pattern", "option"), STRUCTURED, ids=lambda value: str(value))
def test_pruning_keeps_the_contract(prepared, name, pattern, option, check):
    structures = tuple(s.name for s in prepared[name].structures if fnmatchcase(s.name, pattern))
    if option.endswith("bn_scale"):  # asks for batch norms, which not every structure has
        structures = tuple(s for s in structures if s in ("channels:stem.0", "channels:left.0"))
    check(replace(_make_case(prepared, name, "quantize none"), layers=structures, treatment=_read(option)))


@pytest.mark.parametrize("check", COMPRESSION_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "options", "recovery"), RECOVERED, ids=["cnn", "qat", "binary", "transformer"])
def test_recovery_keeps_the_contract(prepared, name, options, recovery, check):
    check(_make_case(prepared, name, options, recovery))


@pytest.fixture(scope="module")
def devices():
    return [build_device(Target(runtime, batch_size=4)) for runtime in ("onnxruntime", "openvino", "torch")]


def test_the_runtimes_and_torch_compute_nearly_the_same(prepared, model, case, option, devices):
    # zero points of 0, as OpenVINO's device asks for: with others, OpenVINO 2026.4 computes wrong numbers for an int8
    # MatMul, a ReduceMean and an int8 MatMul in a row (here 0.37 on outputs of 0.25); ONNX Runtime agrees with float
    scheme = replace(_SCHEME, activation_codes="symmetric")
    artifact = case.build(Pipeline(prepared[model], scheme))
    ours, *others = (device.load(artifact).run(case.inputs) for device in devices)
    for other in others:
        for one, another in zip(ours, other, strict=True):
            assert np.abs(one - another).max() <= TECHNIQUES[option] * np.abs(one).max()


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_and_factorised_export_computes_what_its_torch_module_computes(prepared, name, devices):
    import torch

    pipeline = Pipeline(prepared[name], _SCHEME, _training(name))
    structures = {s.name: parse_option("prune", 0.5) for s in prepared[name].structures if s.kind == "channels"}
    ranks = {
        layer.name: parse_option("low_rank", 0.7) for layer in prepared[name].layers if layer.name in ("up", "out")
    }
    artifact = pipeline.build({**structures, **ranks}, GraphTreatment())
    module = pipeline.shaper._shaped_module(pipeline.shape_of({**structures, **ranks}))
    inputs = random_inputs(name, 4, seed=1)
    with torch.no_grad():
        want = module(**{key: torch.from_numpy(array) for key, array in inputs.items()}).numpy()
    for device in devices:
        assert np.abs(device.load(artifact).run(inputs)[0] - want).max() <= 1e-3 * np.abs(want).max()


# -- a contract that nothing can break checks nothing ----------------------------------------------


class _Forgetful(Pipeline):
    """Appends to what it builds the number of builds before."""

    n_builds = 0

    def build(self, treatments, graph, recovery=None):
        self.n_builds += 1
        artifact = super().build(treatments, graph, recovery)
        return replace(artifact, model=artifact.model + bytes(self.n_builds))


class _Clumsy(Pipeline):
    """Leaves a mark in the module."""

    def build(self, treatments, graph, recovery=None):
        next(self.prepared.origin.module.parameters()).data += 0.5
        return super().build(treatments, graph, recovery)


class _Boastful(Artifact):
    """States half of its size."""

    size_bytes = 1


def test_a_pipeline_that_remembers_is_caught(prepared):
    case = _make_case(prepared, "cnn", "quantize int8")
    with pytest.raises(AssertionError, match="a build must not depend on those before it"):
        building_is_pure(replace(case, make_pipeline=lambda: _Forgetful(prepared["cnn"], _SCHEME)))


def test_a_pipeline_that_changes_the_module_is_caught():
    model = prepare_model(load_source(small_cnn), random_inputs("cnn", 2))
    case = _make_case({"cnn": model}, "cnn", "quantize int8")
    with pytest.raises(AssertionError, match="a build must not change the torch module"):
        building_is_pure(replace(case, make_pipeline=lambda: _Clumsy(model, _SCHEME)))


def test_an_artifact_that_understates_its_size_is_caught(prepared, monkeypatch):
    case = _make_case(prepared, "cnn", "quantize int8")
    monkeypatch.setattr(Pipeline, "build", lambda *_: _Boastful(b"abc"))
    with pytest.raises(AssertionError, match="size_bytes must count the bytes"):
        size_and_digest_are_those_of_the_bytes(case)


def test_accounting_for_too_little_is_caught(prepared, monkeypatch):
    case = _make_case(prepared, "cnn", "cluster 16")
    monkeypatch.setattr(Pipeline, "account", lambda *_: 10)
    with pytest.raises(AssertionError, match="accounted were 10"):
        the_file_is_as_large_as_accounted(case)


def test_training_without_data_is_refused(prepared):
    pipeline = Pipeline(prepared["cnn"], _SCHEME)
    with pytest.raises(PolicyError, match="recovery needs training data, and there are none"):
        pipeline.build({"point": _read("cluster 4")}, GraphTreatment(), Recovery("finetune"))
