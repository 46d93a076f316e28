import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.core.errors import SpecError
from trimtab.spaces.policy import CALIBRATIONS, EXTRA_OPS, FUSIONS, PRECISIONS, GraphTreatment, Policy
from trimtab.spaces.treatment import QUANTIZE_OPTIONS, Treatment


def _every_treatment():
    """Every combination of fields that is allowed, listed without the code under test."""
    float_like = [Treatment(weight_dtype=dtype) for dtype in ("float32", "float16")]
    int8 = [Treatment(weight_dtype="int8", granularity=g) for g in ("tensor", "channel", "block32", "block128")]
    integer = [
        Treatment(weight_dtype="int8", activation_dtype="int8", activation_range=range_, granularity=g)
        for range_, g in itertools.product(("static", "dynamic"), ("tensor", "channel"))
    ]
    int4 = [Treatment(weight_dtype="int4", granularity=g) for g in ("block16", "block32", "block256")]
    return [*float_like, *int8, *integer, *int4]


treatments = st.sampled_from(_every_treatment())
graphs = st.builds(
    GraphTreatment,
    fusion=st.sampled_from(FUSIONS),
    calibration=st.sampled_from(CALIBRATIONS),
    quantized_ops=st.lists(st.sampled_from(EXTRA_OPS), max_size=4).map(tuple),
    precision=st.sampled_from(PRECISIONS),
)
chosen = st.dictionaries(st.sampled_from(["stem", "a.0", "a.1", "fc", "ünïcode/#2"]), treatments, max_size=4)
policies = st.builds(Policy, chosen, graphs)


@given(policies, policies)
def test_policies_are_equal_exactly_when_their_hashes_and_ids_are(one, other):
    assert (one == other) == (one.id == other.id) == (one.to_json() == other.to_json())
    if one == other:
        assert hash(one) == hash(other)


@given(policies)
def test_a_policy_survives_json(policy):
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


@given(chosen, graphs, st.randoms())
def test_the_order_in_which_groups_are_named_does_not_matter(groups, graph, random):
    shuffled = list(groups.items())
    random.shuffle(shuffled)
    assert Policy(dict(shuffled), graph) == Policy(groups, graph)


@given(chosen, graphs)
def test_groups_that_stay_untouched_are_left_out(groups, graph):
    policy = Policy({**groups, "idle": Treatment()}, graph)
    assert policy == Policy(groups, graph)
    assert dict(policy.groups) == {name: t for name, t in groups.items() if t != Treatment()}


@given(chosen, graphs, graphs)
def test_calibration_and_quantized_ops_count_only_beside_static_layers(groups, graph, other):
    mixed = GraphTreatment(graph.fusion, other.calibration, other.quantized_ops, graph.precision)
    has_static = any(
        (t.activation_dtype, t.activation_range) == ("int8", "static") and t.weight_dtype == "int8"
        for t in groups.values()
    )
    differs = (graph.calibration, graph.quantized_ops) != (mixed.calibration, mixed.quantized_ops)
    assert (Policy(groups, graph) != Policy(groups, mixed)) == (has_static and differs)


@given(policies)
def test_a_policy_is_untouched_exactly_when_it_equals_the_empty_one(policy):
    assert policy.is_untouched == (policy == Policy({}))


@given(chosen, graphs, st.sampled_from(["stem", "fc", "absent"]))
def test_a_group_reads_as_its_treatment_and_any_other_as_untouched(groups, graph, name):
    assert Policy(groups, graph)[name] == groups.get(name, Treatment())


@given(st.lists(st.sampled_from(EXTRA_OPS), max_size=6), st.randoms())
def test_quantized_ops_are_a_set(ops, random):
    shuffled = [*ops, *ops[:2]]
    random.shuffle(shuffled)
    assert GraphTreatment(quantized_ops=tuple(ops)) == GraphTreatment(quantized_ops=tuple(shuffled))


@given(treatments)
def test_a_treatment_survives_json(treatment):
    assert Treatment.from_json(json.loads(json.dumps(treatment.to_json()))) == treatment


@given(treatments, treatments)
def test_treatments_with_one_label_are_one_treatment(one, other):
    assert (one.label == other.label) == (one == other)


@pytest.mark.parametrize("name", QUANTIZE_OPTIONS)
def test_an_option_is_labelled_by_its_name(name):
    assert QUANTIZE_OPTIONS[name].label == name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("granularity", ["tensor", "block32"])
def test_granularity_means_nothing_without_integer_weights(dtype, granularity):
    assert Treatment(weight_dtype=dtype, granularity=granularity) == Treatment(weight_dtype=dtype)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_dtype": "int3"}, "weight_dtype must be one of float32, float16, float8, int8, int4, got 'int3'"),
        ({"weight_dtype": None}, "got None"),
        ({"granularity": "block33", "weight_dtype": "int8"}, "got 'block33'"),
        (
            {"granularity": 32, "weight_dtype": "int8"},
            "granularity must be tensor, channel or block16…block256, got 32",
        ),
        ({"activation_dtype": "int8"}, "int8 activations need an int8 weight, got a float32 weight"),
        ({"weight_dtype": "int8", "activation_range": "dynamic"}, "dynamic ranges need int8 activations"),
        ({"weight_dtype": "int4"}, "int4 weights need block16…block256, got 'channel'"),
        (
            {"weight_dtype": "int8", "activation_dtype": "int8", "granularity": "block32"},
            "int8 activations need a weight scaled per tensor or channel, got 'block32'",
        ),
        ({"weight_typ": "int8"}, "unknown treatment field 'weight_typ'; did you mean 'weight_dtype'"),
        ([], "a treatment must be an object of fields"),
    ],
)
def test_a_treatment_that_means_nothing_is_refused(fields, message):
    with pytest.raises(SpecError, match=message):
        Treatment.from_json(fields)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a policy must hold the objects 'graph' and 'groups'"),
        ({"groups": []}, "a policy must hold the objects"),
        ({"groups": {"fc": None}}, "a treatment must be an object of fields, got None"),
        ({"groups": {}, "graph": []}, "the graph's treatment must be an object of fields"),
        ({"groups": {}, "graph": {"quantized_ops": "add"}}, "must be an object of fields"),
        ({"groups": {}, "graph": {"quantized_ops": ["ad"]}}, "unknown quantized_ops 'ad'; did you mean 'add'"),
        ({"groups": {}, "graph": {"quantized_ops": [["add"]]}}, "unknown quantized_ops"),
        ({"groups": {}, "graph": {"fusio": "none"}}, "unknown graph field 'fusio'; did you mean 'fusion'"),
        ({"groups": {}, "graph": {"precision": 16}}, "unknown precision '16'"),
    ],
)
def test_json_that_is_no_policy_is_refused(value, message):
    with pytest.raises(SpecError, match=message):
        Policy.from_json(value)
