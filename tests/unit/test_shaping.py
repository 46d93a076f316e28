"""Shapes through the whole pipeline: a model with every kind of coupling, pruned and factorised at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.pruning.structures import find_structures
from trimtab.compressors.shaping import Shape, factors_of
from trimtab.compressors.source import export_module
from trimtab.compressors.testing_models import build_test_model
from trimtab.core.errors import PolicyError
from trimtab.evaluators.device import build_device
from trimtab.hw_profiles.target import OPTION_KINDS, Capabilities, Target
from trimtab.spaces.options import combine, parse_option
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.recovery import Recovery
from trimtab.spaces.treatment import Treatment

SCHEME = Capabilities({option: frozenset(kinds) for option, kinds in OPTION_KINDS.items()}, channel_multiple=2)


@pytest.fixture(scope="module")
def mixed():
    """Residual adds, concatenation, grouped and depthwise convolutions, shared weights and attention."""
    model = build_test_model("mixed")
    inputs = {name: tensor.numpy() for name, tensor in model.example_inputs.items()}
    prepared = prepare_model(export_module(model, model.example_inputs), inputs)
    return replace(prepared, found=find_structures(model, model.example_inputs)), inputs


def _able(prepared, option):
    """The layers that can be taken apart: those of which the pipeline builds an artifact."""
    pipeline, able = Pipeline(prepared, SCHEME), []
    for layer in prepared.layers:
        if layer.kind not in ("conv", "linear"):
            continue
        try:
            pipeline.build({layer.name: option}, GraphTreatment())
        except PolicyError:
            continue
        able.append(layer.name)
    return able


def test_everything_is_pruned_and_taken_apart_at_once(mixed):
    prepared, inputs = mixed
    rank = parse_option("low_rank", 0.8)
    layers = _able(prepared, rank)
    assert len(layers) > 3
    structures = {s.name: parse_option("prune", 0.5) for s in prepared.structures if s.kind != "block"}
    pipeline = Pipeline(prepared, SCHEME)
    kept = []
    for name in layers:  # what pruning leaves may be too small to be taken apart
        try:
            pipeline.build({**structures, name: rank}, GraphTreatment())
        except PolicyError as error:
            assert "more" in str(error) or "rank" in str(error)
            continue
        kept.append(name)
    assert kept
    artifact = pipeline.build({**structures, **dict.fromkeys(kept, rank)}, GraphTreatment())
    assert artifact.size_bytes < pipeline.build({}, GraphTreatment()).size_bytes
    outputs = [
        build_device(Target(runtime, batch_size=len(next(iter(inputs.values()))))).load(artifact).run(inputs)[0]
        for runtime in ("onnxruntime", "openvino", "torch")
    ]
    module = pipeline.shaper._shaped_module(Shape.of({**structures, **dict.fromkeys(kept, rank)}, Recovery()))
    with torch.no_grad():
        want = module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
    for got in outputs:
        assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max()


def test_equal_shapes_have_one_key_and_other_shapes_another():
    rank, cluster = parse_option("low_rank", 0.5), parse_option("cluster", 4)
    both = combine([rank, cluster])
    none, tuned = Recovery(), Recovery("finetune")
    key = lambda treatments, recovery: Shape.of(treatments, recovery).key  # noqa: E731
    # without training it does not matter how a weight is stored
    assert key({"a": rank}, none) == key({"a": both}, none)
    assert key({"a": rank}, tuned) != key({"a": both}, tuned)
    assert key({"a": rank}, none) != key({"b": rank}, none)
    assert key({"a": rank, "b": cluster}, tuned) == key({"b": cluster, "a": rank}, tuned)
    assert Shape.of({"a": cluster}, none).is_original
    assert not Shape.of({"a": cluster}, tuned).is_original
    assert not Shape.of({"channels:a": parse_option("prune", 0.5)}, none).is_original


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fc", ["fc.0", "fc.1"]), ("fc#2", ["fc.0#2", "fc.1#2"]), ("f", []), ("deep", ["deep.0", "deep.1", "deep.2"])],
)
def test_factors_are_told_from_other_layers_by_their_names(name, expected):
    names = ["fc.0", "fc.1", "fc.0#2", "fc.1#2", "fc.10", "fc.0.conv", "deep.0", "deep.1", "deep.2", "other"]
    assert factors_of(name, names) == expected


def test_what_is_stored_goes_to_the_factors(mixed):
    prepared, _ = mixed
    both = combine([parse_option("low_rank", 0.5), parse_option("cluster", 4)])
    shape = Shape.of({"fc": both}, Recovery())
    fc = next(layer for layer in prepared.layers if layer.kind == "linear")
    layers = [replace(fc, name=name) for name in ("fc.0", "fc.1", "up")]
    assert shape.remaining(layers) == {"fc.0": Treatment(clusters=4), "fc.1": Treatment(clusters=4)}


def test_the_four_shapes_that_were_used_last_are_kept(mixed):
    prepared, _ = mixed
    name = next(s.name for s in prepared.structures if s.kind == "channels")
    pipeline = Pipeline(prepared, SCHEME)
    shapes = [Shape.of({name: parse_option("prune", share)}, Recovery()) for share in (0.25, 0.3, 0.5, 0.6, 0.75)]
    stages = [pipeline.stage_of(shape) for shape in shapes[:4]]
    assert pipeline.stage_of(shapes[0]) is stages[0]
    pipeline.stage_of(shapes[4])  # a fifth: the one that was not used for longest goes
    assert [pipeline.stage_of(shapes[i]) is stages[i] for i in (0, 2, 3)] == [True] * 3
    assert pipeline.stage_of(shapes[1]) is not stages[1]
