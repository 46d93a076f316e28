"""Policy files: everything comes back, and a policy only fits the layers that it was found for."""

import json
from dataclasses import replace

import pytest
from trimtab.compressors.quantization.calibration import Range
from trimtab.core.errors import PolicyError
from trimtab.experiments.policy_file import PolicyFile, load_policy
from trimtab.experiments.reapply.matching import match_layers
from trimtab.hw_profiles.target import Target
from trimtab.spaces.layer import Group, Layer
from trimtab.spaces.policy import GraphTreatment, Policy
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

LAYERS = (
    Layer("a", "conv", (8, 3, 3, 3), (), 0, 0),
    Layer("b", "linear", (8, 4), (), 0, 0),
    Layer("c", "linear", (8, 4), (), 0, 0),
)
FILE = PolicyFile(
    policy=Policy(
        {"a": QUANTIZE_OPTIONS["int8"], "bc": QUANTIZE_OPTIONS["int4_weight"]},
        GraphTreatment("gelu", "entropy", ("add", "pool"), "bfloat16"),
    ),
    groups=(Group("a", ("a",)), Group("bc", ("b", "c"))),
    layers=LAYERS,
    target=Target("openvino", "cpu", threads=2, batch_size=8),
    ranges={"x": Range(-0.1, 1 / 3), "y": Range(0.0, 1e-30)},
    origin={"run": "r", "seed": 1},
)


def test_everything_comes_back(tmp_path):
    FILE.save(tmp_path / "policy.json")
    assert load_policy(tmp_path / "policy.json") == FILE


def test_equal_policies_give_equal_bytes(tmp_path):
    turned = replace(FILE, ranges=dict(reversed(FILE.ranges.items())), origin={"seed": 1, "run": "r"})
    for name, file in (("one", FILE), ("two", turned)):
        file.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_treatment_goes_to_every_member_of_its_group():
    int8, int4 = QUANTIZE_OPTIONS["int8"], QUANTIZE_OPTIONS["int4_weight"]
    assert FILE.layer_treatments == {"a": int8, "b": int4, "c": int4}


def test_the_file_is_plain_json(tmp_path):
    FILE.save(tmp_path / "policy.json")
    content = json.loads((tmp_path / "policy.json").read_text())
    assert (content["kind"], content["schema"]) == ("trimtab-policy", 1)
    assert content["groups"]["a"] == {"weight_dtype": "int8", "activation_dtype": "int8"}


def test_a_policy_fits_retrained_layers_in_any_order():
    layers = tuple(replace(layer, macs=7) for layer in reversed(LAYERS))
    assert match_layers(FILE.layers, layers, match="exact").is_identity


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (LAYERS[:2], "the model lacks c"),
        ((*LAYERS, replace(LAYERS[0], name="d")), "the policy does not know d"),
        ((replace(LAYERS[0], weight_shape=(9, 3, 3, 3)), *LAYERS[1:]), "a is conv 9×3×3×3, .* wants conv 8×3×3×3"),
        ((replace(LAYERS[0], kind="depthwise_conv"), *LAYERS[1:]), "a is depthwise_conv"),
    ],
    ids=["missing", "added", "another shape", "another kind"],
)  # fmt: skip
def test_other_layers_are_refused_by_name(layers, words):
    with pytest.raises(PolicyError, match=f"does not fit this model: .*{words}"):
        match_layers(FILE.layers, layers, match="exact")
