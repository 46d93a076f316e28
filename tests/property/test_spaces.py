import itertools
import json
import math
from dataclasses import fields
from fnmatch import fnmatchcase

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.core.errors import PolicyError, SpecError
from trimtab.core.seeds import derive_rng, derive_seed
from trimtab.hw_profiles.target import OPTION_KINDS, Capabilities
from trimtab.spaces.fit_policy import fit_policy
from trimtab.spaces.layer import LAYER_KINDS, Group, Layer, fingerprint_layers
from trimtab.spaces.policy import CALIBRATIONS, EXTRA_OPS, FUSIONS, PRECISIONS, ROUNDINGS, GraphTreatment, Policy
from trimtab.spaces.recovery import Recovery
from trimtab.spaces.rules import Rule, resolve_options, tie_layers
from trimtab.spaces.space import GraphOptions, Space, build_space
from trimtab.spaces.space_json import space_from_json, space_to_json
from trimtab.spaces.treatment import QUANTIZE_OPTIONS, Treatment


def _few(values, most):
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True).map(tuple)


#: families are written in any order, as in a spec
_op_sets = st.lists(st.permutations(EXTRA_OPS).flatmap(lambda ops: st.integers(0, 3).map(lambda n: tuple(ops[:n]))),
                    min_size=1, max_size=2).map(tuple)  # fmt: skip


_RECOVERIES = (Recovery(), Recovery("finetune"), Recovery("distill", epochs=0.5))


@st.composite
def spaces(draw):
    """Small enough to list every vector."""
    options = draw(st.lists(_few(list(QUANTIZE_OPTIONS.values()), 3), min_size=1, max_size=3))
    groups = tuple(Group(f"g{n}", (f"g{n}", f"g{n}#2")) for n in range(len(options)))
    graph = GraphOptions(
        draw(_few(FUSIONS, 2)), draw(_few(CALIBRATIONS, 2)), draw(_op_sets), draw(_few(PRECISIONS, 2)),
        rounding=draw(_few(ROUNDINGS, 2)), recovery=draw(_few(_RECOVERIES, 2)),
    )  # fmt: skip
    return Space(groups, tuple(options), graph)


def _vectors(space):
    return list(itertools.product(*(range(n) for n in space.dimensions.values())))


@given(spaces())
def test_size_is_the_number_of_different_policies(space):
    assert space.size == len({space.decode(vector) for vector in _vectors(space)})


@given(spaces())
def test_decode_undoes_encode(space):
    for vector in _vectors(space):
        policy = space.decode(vector)
        assert space.decode(space.encode(policy)) == policy


@given(spaces())
def test_encode_gives_one_vector_per_policy(space):
    every = {space.decode(vector) for vector in _vectors(space)}
    assert len({tuple(space.encode(policy)) for policy in every}) == len(every)


@given(spaces())
def test_canonical_vectors_are_those_of_encode(space):
    vectors = np.array(list(_vectors(space)))
    expected = np.array([space.encode(space.decode(vector)) for vector in vectors])
    assert (space.canonical(vectors) == expected).all()


@given(spaces())
def test_a_space_survives_json(space):
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space


@given(spaces(), spaces(), st.integers(0, 2**32))
def test_a_policy_of_another_space_is_fitted_into_this_one(space, other, seed):
    policy = other.sample(np.random.default_rng(seed))
    fitted = fit_policy(space, policy)
    assert space.contains(fitted.policy)
    if space.contains(policy):
        assert (fitted.policy, fitted.lost) == (policy, ())


@given(spaces(), st.integers(0, 2**32))
def test_samples_lie_in_the_space(space, seed):
    assert space.contains(space.sample(np.random.default_rng(seed)))


def test_every_choice_is_sampled_evenly():
    options = (Treatment(), *(Treatment(weight_dtype=d) for d in ("float16", "int8")))
    space = Space((Group("a", ("a",)), Group("b", ("b",))), (options, options), GraphOptions())
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 3))
    for _ in range(1800):
        counts[tuple(space.encode(space.sample(rng))[:2])] += 1
    # 200 expected in each of the nine cells, standard deviation 13
    assert np.abs(counts - 200).max() < 5 * 13.4


@given(spaces(), st.data())
def test_neighbours_are_all_other_policies_one_entry_away(space, data):
    start = data.draw(st.sampled_from(_vectors(space)))
    policy = space.decode(start)
    canonical = tuple(space.encode(policy))
    expected = {
        space.decode(vector)
        for vector in _vectors(space)
        if sum(a != b for a, b in zip(vector, canonical, strict=True)) == 1
    } - {policy}
    neighbours = list(space.neighbours(policy))
    assert len(neighbours) == len(set(neighbours))
    assert set(neighbours) == expected


@given(spaces(), st.data())
def test_a_neighbour_differs_in_one_group_or_in_one_graph_choice(space, data):
    policy = space.decode(data.draw(st.sampled_from(_vectors(space))))
    for neighbour in space.neighbours(policy):
        groups = sum(policy[group.name] != neighbour[group.name] for group in space.groups)
        graph = (policy.graph, policy.recovery) != (neighbour.graph, neighbour.recovery)
        # a group that becomes (or stops being) the only one of its sort brings the choices for that sort with it
        assert (groups, graph) in ((0, True), (1, False), (1, True))
        if groups == 1 and graph:
            before, after = ([t for _, t in one.groups] for one in (policy, neighbour))
            sorts = (lambda t: t.is_static), (lambda t: t.is_quantized), (lambda t: True)
            assert any(any(map(sort, before)) != any(map(sort, after)) for sort in sorts)


@given(spaces(), st.sampled_from(list(QUANTIZE_OPTIONS.values())))
def test_uniform_treats_every_group_that_offers_it_and_no_other(space, treatment):
    policy = space.uniform(treatment)
    for group, options in zip(space.groups, space.options, strict=True):
        assert policy[group.name] == (treatment if treatment in options else Treatment())


@given(spaces(), st.data())
def test_every_layer_of_a_group_gets_the_treatment_of_the_group(space, data):
    policy = space.decode(data.draw(st.sampled_from(_vectors(space))))
    layers = space.layer_treatments(policy)
    assert layers == {f"{name}{n}": treatment for name, treatment in policy.groups for n in ("", "#2")}


@given(spaces())
def test_the_dimensions_are_the_groups_and_then_the_graph_choices(space):
    names = list(space.dimensions)
    assert names[: len(space.groups)] == [f"group:{group.name}" for group in space.groups]
    assert names[len(space.groups) :] == [f"graph:{field.name}" for field in fields(GraphOptions)]
    assert math.prod(space.dimensions.values()) == len(_vectors(space))


def _one_layer_space():
    return Space((Group("fc", ("fc",)),), ((Treatment(), QUANTIZE_OPTIONS["int8"]),), GraphOptions())


@pytest.mark.parametrize("vector", [(2, *(0,) * 8), (-1, *(0,) * 8), (0,) * 8, (0,) * 10])
def test_a_vector_outside_the_dimensions_is_refused(vector):
    with pytest.raises(PolicyError, match=r"a vector must have 9 entries within \[2, 1, 1, 1, 1, 1, 1, 1, 1\], got"):
        _one_layer_space().decode(vector)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Policy({"fd": QUANTIZE_OPTIONS["int8"]}), "the space has no group fd"),
        (Policy({"fc": QUANTIZE_OPTIONS["float16"]}), "group fc does not offer float16"),
        (Policy({}, GraphTreatment(fusion="gelu")), "fusion does not offer gelu"),
        (Policy({}, GraphTreatment(precision="bfloat16")), "precision does not offer bfloat16"),
        (Policy({"fc": QUANTIZE_OPTIONS["int8"]}, GraphTreatment(calibration="mse")), "calibration does not offer mse"),
        (
            Policy({"fc": QUANTIZE_OPTIONS["int8"]}, GraphTreatment(quantized_ops=("add",))),
            "quantized_ops does not offer",
        ),
    ],
)
def test_a_policy_from_elsewhere_is_refused_by_name(policy, message):
    space = _one_layer_space()
    assert not space.contains(policy)
    with pytest.raises(PolicyError, match=message):
        space.encode(policy)


# -- rules ----------------------------------------------------------------------------------------

_names = ["stem", "block.0.conv", "block.1.conv", "block.0.fc", "fc", "fc#2", "tokens"]


@st.composite
def layers_of_a_model(draw):
    names = draw(st.lists(st.sampled_from(_names), min_size=1, unique=True))
    return [Layer(name, draw(st.sampled_from(LAYER_KINDS)), (4, 4), (-1, 4), 16, 16) for name in names]


_patterns = st.sampled_from(["*", "block.*", "*.fc", "fc", "fc*", "stem", *(f"kind:{kind}" for kind in LAYER_KINDS)])
_rules = st.lists(st.builds(Rule, _patterns, st.none() | _few(list(QUANTIZE_OPTIONS), 3)), max_size=5)


def _why_not(option, kind):
    return None if kind in OPTION_KINDS[option] else f"no {option} on {kind}"


def _options_by_hand(layer, rules):
    """The last rule that matches and says something; what cannot be had falls away; nothing left means untouched."""
    for rule in reversed(rules):
        is_kind = rule.layers.startswith("kind:")
        matches = layer.kind == rule.layers[5:] if is_kind else fnmatchcase(layer.name, rule.layers)
        if matches and rule.quantize is not None:
            able = [option for option in rule.quantize if layer.kind in OPTION_KINDS[option]]
            return tuple(QUANTIZE_OPTIONS[option] for option in able) or (Treatment(),)
    return (Treatment(),)


@given(layers_of_a_model(), _rules)
def test_the_last_rule_that_says_something_wins(layers, rules):
    options, _ = resolve_options(layers, rules, _why_not, is_default=True)
    assert options == {layer.name: _options_by_hand(layer, rules) for layer in layers}


@given(layers_of_a_model(), _few(list(QUANTIZE_OPTIONS), 4))
def test_what_falls_away_is_named_with_its_reason(layers, offered):
    _, dropped = resolve_options(layers, [Rule("*", offered)], _why_not, is_default=True)
    assert {(d.layer, d.option, d.reason) for d in dropped} == {
        (layer.name, option, f"no {option} on {layer.kind}")
        for layer in layers
        for option in offered
        if layer.kind not in OPTION_KINDS[option]
    }


_CONV_AND_LINEAR = [Layer("stem", "conv", (8, 3, 3, 3), (), 216, 0), Layer("fc", "linear", (8, 2), (), 16, 0)]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("head", ("int8",)), r"space.1.layers: 'head' matches no layer; the model has the kinds conv, linear and"),
        (Rule("kind:lstm", ("int8",)), "space.1.layers: there is no kind 'lstm'; this model has conv, linear"),
        (Rule("kind:embedding", ("int8",)), "'kind:embedding' matches no layer"),
        (Rule("stem", ("int4_weight",)), "space.1.quantize: int4_weight cannot be used on any layer that 'stem' match"),
    ],
)
def test_a_rule_of_the_user_that_cannot_apply_is_refused(rule, message):
    with pytest.raises(SpecError, match=message):
        resolve_options(_CONV_AND_LINEAR, [Rule("*", ("none",)), rule], _why_not)


def test_layers_of_one_parameter_form_one_group_that_offers_what_all_of_them_offer():
    layers = [Layer(name, "linear", (4, 4), (), 16, 0) for name in ("tied", "fc", "tied#2")]
    groups = tie_layers(layers)
    assert groups == (Group("tied", ("tied", "tied#2")), Group("fc", ("fc",)))
    int8, half, none = QUANTIZE_OPTIONS["int8"], QUANTIZE_OPTIONS["float16"], Treatment()
    offered = {"tied": (none, int8, half), "tied#2": (half, none), "fc": (int8,)}
    assert build_space(groups, offered, GraphOptions()).options == ((none, half), (int8,))


def test_a_group_whose_layers_share_no_option_stays_untouched():
    offered = {"tied": (QUANTIZE_OPTIONS["int8"],), "tied#2": (QUANTIZE_OPTIONS["float16"],)}
    groups = (Group("tied", ("tied", "tied#2")),)
    assert build_space(groups, offered, GraphOptions()).options == ((Treatment(),),)


def test_the_fingerprint_ignores_what_retraining_changes_and_sees_surgery():
    before = Layer("fc", "linear", (4, 2), (-1, 2), 10, 8)
    same = Layer("fc", "linear", (4, 2), (-1, 7, 2), 8, 56)
    assert fingerprint_layers((before,)) == fingerprint_layers((same,))
    for other in (Layer("fd", "linear", (4, 2), (), 8, 8), Layer("fc", "conv", (4, 2), (), 8, 8),
                  Layer("fc", "linear", (2, 4), (), 8, 8)):  # fmt: skip
        assert fingerprint_layers((before,)) != fingerprint_layers((other,))


def test_a_layer_is_json():
    layer = Layer("fc", "linear", (4, 2), (-1, 2), 10, 8)
    assert json.loads(json.dumps(layer.to_json())) == {
        "name": "fc", "kind": "linear", "weight_shape": [4, 2], "output_shape": [-1, 2], "n_parameters": 10, "macs": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "kind", "reason"),
    [
        ("int8", "conv", None),
        ("int4_weight", "conv", "int4_weight is not defined for conv layers"),
        ("int8_weight", "conv", "the target does not run int8_weight on conv layers"),
        ("int2", "conv", "int2 is not defined for conv layers"),
    ],
)
def test_a_target_says_why_it_cannot(option, kind, reason):
    assert Capabilities({"int8": frozenset({"conv"})}).why_not(option, kind) == reason


# -- seeds ----------------------------------------------------------------------------------------

_parts = st.lists(st.integers() | st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"])),
                  min_size=1, max_size=4)  # fmt: skip


@given(_parts)
def test_a_seed_has_63_bits_and_depends_on_the_parts_alone(parts):
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    assert seed == derive_seed(*parts)
    assert derive_rng(*parts).integers(2**40) == np.random.default_rng(seed).integers(2**40)


@given(_parts, _parts)
def test_other_parts_give_another_seed(one, other):
    texts = [str(part) for part in one], [str(part) for part in other]
    assert (derive_seed(*one) == derive_seed(*other)) == (texts[0] == texts[1])


def test_seeds_do_not_change_between_versions():
    # the first 8 bytes of `printf '0\x1ftrial\x1f1' | sha256sum`, shifted right by one: resumed runs rely on it
    assert derive_seed(0, "trial", 1) == int("cec80a043b957d66", 16) >> 1
