"""What a spec offers: structures beside layers, techniques that a model cannot have, combinations that are illegal."""

import numpy as np
import onnx
import pytest
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import random_inputs, small_cnn
from trimtab.core.errors import SpecError
from trimtab.evaluators.dataset import Dataset, Split
from trimtab.evaluators.device import build_device
from trimtab.experiments.offer import find_size_only, make_offer
from trimtab.experiments.spec import Spec
from trimtab.hw_profiles.target import Target
from trimtab.search.baselines import list_baselines
from trimtab.spaces.options import parse_option
from trimtab.spaces.recovery import Recovery

SPLIT = Split(random_inputs("cnn", 4), np.zeros(4, np.int64))
DATA = Dataset(SPLIT, SPLIT, SPLIT, SPLIT)


@pytest.fixture(scope="module")
def device():
    return build_device(Target("onnxruntime"))


@pytest.fixture(scope="module")
def model():
    return prepare_model(load_source(small_cnn), random_inputs("cnn", 4))


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "cnn.onnx"
    onnx.save_model(onnx.load_from_string(load_source(small_cnn).onnx_bytes), path)
    return prepare_model(load_source(path), random_inputs("cnn", 4))


def _offer(device, model, *, dataset=DATA, **parts):
    spec = Spec(model="m:m", data="d:d", target={"runtime": "onnxruntime"}, **parts)
    return make_offer(spec, device, model, dataset, None)


def _options(offer, group):
    names = [g.name for g in offer.space.groups]
    return [option.label for option in offer.space.options[names.index(group)]]


def test_structures_are_groups_of_their_own_beside_their_layers(device, model):
    offer, kept = _offer(device, model, space=[{"layers": "*", "prune": [0, 0.5], "quantize": ["none", "int8"]}])
    assert _options(offer, "point") == ["none", "int8"]
    assert _options(offer, "channels:point") == ["none", "prune 0.5"]
    assert {group.kind for group in offer.space.groups} == {"layers", "channels"}
    assert kept.origin is not None
    assert set(offer.structures) == set(kept.structures)


def test_the_module_is_not_carried_along_where_nothing_asks_for_it(device, model):
    _, kept = _offer(device, model, space=[{"layers": "*", "quantize": ["none", "int8"], "cluster": ["none", 4]}])
    assert kept.origin is None


def test_every_legal_combination_is_on_offer_and_every_other_has_its_reason(device, model):
    rules = [{"layers": "fc", "cluster": ["none", 4], "quantize": ["none", "int8", "int4_weight"]}]
    offer, _ = _offer(device, model, space=rules)
    assert _options(offer, "fc") == ["none", "int8", "int4_weight", "cluster 4", "cluster 4 + int8"]
    assert [(d.layer, d.option) for d in offer.dropped] == [("fc", "cluster 4 + int4_weight")]
    assert "a weight in blocks has a grid of its own" in offer.dropped[0].reason


def test_rules_that_leave_nothing_legal_are_refused(device, model):
    rules = [{"layers": "fc", "cluster": [4], "binarize": ["binary"]}]
    with pytest.raises(SpecError, match="layer fc: no combination on offer is legal: a binary weight has a codebook"):
        _offer(device, model, space=rules)


def test_a_factorisation_that_would_cost_more_falls_away(device, model):
    offer, _ = _offer(device, model, space=[{"layers": "*", "low_rank": [1.0, 0.5, 0.01]}])
    assert "low_rank 0.5" in _options(offer, "left.0")
    assert "low_rank 0.01" not in _options(offer, "left.0")
    reasons = {d.reason for d in offer.dropped if (d.layer, d.option) == ("left.0", "low_rank 0.01")}
    assert len(reasons) == 1
    assert {d.reason for d in offer.dropped if d.layer == "depthwise.0"} == {
        "low_rank is not defined for depthwise_conv layers"
    }


def test_an_onnx_file_has_all_but_what_needs_the_module(device, onnx_model):
    names = [layer.name for layer in onnx_model.layers]
    rules = [{"layers": "*", "prune": [0, 0.5], "cluster": ["none", 4], "sparsify": [0, 0.5], "low_rank": [1.0, 0.5]}]
    offer, _ = _offer(device, onnx_model, space=rules, recovery=["none", "distill"])
    assert {"low_rank 0.5", "cluster 4", "sparsify 0.5"} <= {label for n in names for label in _options(offer, n)}
    assert offer.structures == ()
    assert offer.space.graph.recovery == (Recovery(),)
    assert any(d.option == "prune" and "given as an .onnx file" in d.reason for d in offer.dropped)
    assert any(name.startswith("recovery distill") and "torch model" in reason for name, reason in offer.dropped_graph)


def test_a_pruning_rule_that_matches_nothing_is_refused(device, model):
    with pytest.raises(SpecError, match=r"space.1.prune: 'heads:\*' matches nothing that can be pruned"):
        _offer(device, model, space=[{"layers": "*", "quantize": ["none"]}, {"layers": "heads:*", "prune": [0, 0.5]}])


def test_recovery_needs_a_train_split_with_labels(device, model):
    with pytest.raises(SpecError, match="recovery: the data have no train split"):
        _offer(device, model, dataset=Dataset(SPLIT, SPLIT, SPLIT), recovery=["finetune"])
    blind = Dataset(SPLIT, SPLIT, SPLIT, Split(SPLIT.inputs))
    with pytest.raises(SpecError, match="learns from labels, and the train split has none"):
        _offer(device, model, dataset=blind, recovery=["finetune"])
    offer, _ = _offer(device, model, dataset=blind, recovery=[{"method": "distill", "mix": 1}])
    assert offer.trains


def test_an_equalisation_that_changes_nothing_falls_away(device, model):
    offer, _ = _offer(device, model, graph={"equalization": ["none", "smooth"]})
    assert offer.space.graph.equalization == ("none",)
    assert [name for name, _ in offer.dropped_graph if "equal" in name] == ["equalization smooth"]


def test_what_only_shrinks_the_file_is_named(device, model):
    rules = [{"layers": "*", "cluster": ["none", 4], "prune": [0, 0.5], "quantize": ["none", "int8"]}]
    offer, _ = _offer(device, model, space=rules)
    assert "cluster" in find_size_only(offer, device.capabilities.size_only)
    assert not {"prune", "int8"} & set(find_size_only(offer, device.capabilities.size_only))


def test_baselines_are_every_technique_alone_and_some_pairs_each_with_every_recovery(device, model):
    rules = [{"layers": "*", "cluster": ["none", 4], "prune": [0, 0.5], "quantize": ["none", "int8"]}]
    offer, _ = _offer(device, model, space=rules, recovery=["none", "finetune"], graph={"calibration": ["minmax"]})
    found = dict(list_baselines(offer.space))
    for label in ("uniform cluster 4", "uniform prune 0.5", "uniform int8"):
        assert found[label].recovery == Recovery()
        assert found[f"{label} finetune 1 epoch"].recovery == Recovery("finetune")
    pair = found["hybrid prune 0.5 + int8 finetune 1 epoch"]
    assert pair["channels:point"] == parse_option("prune", 0.5)
    assert pair["point"] == parse_option("quantize", "int8")
    assert "hybrid cluster 4 + int8 finetune 1 epoch" in found
    assert len(set(found.values())) == len(found)
