"""How a spec writes treatments: reading undoes writing, and combinations are those that the rules allow."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.core.errors import SpecError
from trimtab.spaces.options import (
    TECHNIQUES,
    combine,
    combine_options,
    describe_option,
    describe_treatment,
    parse_option,
)
from trimtab.spaces.policy import GraphTreatment, Policy
from trimtab.spaces.recovery import Recovery
from trimtab.spaces.treatment import IMPORTANCES, QUANTIZE_OPTIONS, Treatment

_shares = st.integers(1, 99).map(lambda n: n / 100)
_some = lambda *words: st.lists(st.sampled_from(words), max_size=len(words), unique=True).map(" ".join)  # noqa: E731
_forms = st.sampled_from(["", "channel", "spatial", "tucker"])

OPTIONS = {
    "prune": st.tuples(_shares | st.just(1), st.sampled_from(("", *IMPORTANCES))),
    "low_rank": st.tuples(_some("energy"), _shares, _forms, _some("output")),
    "cluster": st.tuples(st.integers(2, 256), _some("group", "sensitivity")),
    "binarize": st.tuples(st.sampled_from(["binary", "ternary"]), _some("activations")),
    "sparsify": st.tuples(_shares | st.sampled_from(["2:4", "1:4", "4:8"]), _some("wanda")),
    "quantize": st.tuples(st.sampled_from(sorted(QUANTIZE_OPTIONS))),
}


def _texts(technique):
    return OPTIONS[technique].map(lambda words: " ".join(str(word) for word in words if word != ""))


options = st.sampled_from(TECHNIQUES).flatmap(lambda t: _texts(t).map(lambda text: (t, text)))


@given(options)
def test_what_is_read_is_written_so_that_it_reads_the_same(option):
    technique, text = option
    read = parse_option(technique, text)
    assert parse_option(technique, describe_option(technique, read)) == read


@given(options)
def test_an_option_uses_its_technique_and_no_other(option):
    technique, text = option
    assert parse_option(technique, text).techniques in ((technique,), ())


@given(st.lists(options, unique_by=lambda option: option[0], max_size=4))
def test_a_combination_holds_each_part_and_survives_json(parts):
    read = [parse_option(technique, text) for technique, text in parts]
    try:
        whole = combine(read)
    except SpecError:
        return
    for (technique, _), part in zip(parts, read, strict=True):
        assert describe_option(technique, whole) == describe_option(technique, part)
    assert Treatment.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    policy = Policy({"fc": whole}, GraphTreatment(rounding="compensated"), Recovery("distill", epochs=0.5))
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
    assert describe_treatment(whole) == whole.label


def test_combinations_are_all_that_contradict_nothing():
    lists = {
        "cluster": ["none", "16"], "binarize": ["none", "binary", "ternary"], "sparsify": ["none", "0.5"],
        "quantize": ["none", "int8", "int4_weight"],
    }  # fmt: skip
    parts = {technique: [parse_option(technique, text) for text in texts] for technique, texts in lists.items()}
    found, refused = combine_options(parts)
    # by hand: a codebook twice, binary with zeros, and blocks beside a codebook are no combinations
    legal = [
        combo for combo in itertools.product(*lists.values())
        if not (combo[0] == "16" and combo[1] != "none")
        and not (combo[1] == "binary" and combo[2] == "0.5")
        and not (combo[3] == "int4_weight" and (combo[0] == "16" or combo[1] != "none"))
        and not (combo[1] == "ternary" and combo[2] == "0.5")
    ]  # fmt: skip
    assert len(found) == len(set(found)) == len(legal)
    # of the illegal ones those that hold no smaller one
    assert set(refused) == {
        "cluster 16 + binary", "cluster 16 + ternary", "cluster 16 + int4_weight", "binary + sparsify 0.5",
        "ternary + sparsify 0.5", "binary + int4_weight", "ternary + int4_weight",
    }  # fmt: skip
    assert "codebook already" in refused["cluster 16 + binary"]


@pytest.mark.parametrize(
    ("technique", "option", "message"),
    [
        ("prune", "0.5 tailor", "unknown word of prune 'tailor'; did you mean 'taylor'"),
        ("prune", 1.5, "the number must be the share that is removed, above 0 and at most 1, got 1.5"),
        ("low_rank", "tucker", "lacks its number: the share that is kept"),
        ("low_rank", "0.5 0.25", "says rank twice"),
        ("cluster", 1, "clusters must be a whole number from 2 to 256"),
        ("cluster", 2.5, "the number must be the number of values, 2 to 256, got 2.5"),
        ("sparsify", "4:2", "pattern must be unstructured or N:M with N below M"),
        ("sparsify", True, "an option is a word or a number, got True"),
        ("binarize", "activations", "binary activations need a binary or ternary weight"),
        ("binarize", "0.5", "unknown word of binarize '0.5'"),
        ("quantize", "int3", "unknown quantize option 'int3'"),
    ],
)
def test_a_word_that_cannot_be_read_is_named(technique, option, message):
    with pytest.raises(SpecError, match=message):
        parse_option(technique, option)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "pray"}, "unknown method 'pray'"),
        ({"method": "distill", "epochs": 0}, "epochs must be a number above 0"),
        ({"method": "distill", "mix": 1.5}, "mix must be a number above 0 and at most 1"),
        ({"method": "distill", "batch_size": 2.5}, "batch_size must be a whole number"),
        ({"method": "distill", "features": "layer1"}, "features must be a list"),
        ({"method": "distill", "features": [["a", "b", "c"]]}, "a feature is a module's name or a pair"),
        ({"epoch": 1}, "unknown recovery field 'epoch'; did you mean 'epochs'"),
        ({"method": "finetune", "quantization_aware": "yes"}, "quantization_aware must be true or false"),
    ],
)
def test_a_recovery_that_means_nothing_is_refused(fields, message):
    with pytest.raises(SpecError, match=message):
        Recovery.from_json(fields)


recoveries = st.builds(
    Recovery,
    method=st.sampled_from(["none", "finetune", "distill"]),
    epochs=_shares,
    temperature=st.sampled_from([1.0, 4.0]),
    mix=st.sampled_from([0.0, 0.5, 1.0]),
    features=st.lists(st.tuples(st.just("a"), st.just("b")), max_size=1),
    teachers=st.lists(st.just("zoo:big"), max_size=1),
)


@given(recoveries, recoveries)
def test_recoveries_are_equal_exactly_when_they_do_the_same(one, other):
    assert (one == other) == (one.to_json() == other.to_json())
    assert Recovery.from_json(json.loads(json.dumps(one.to_json()))) == one
    if one.method == "none":
        assert one == Recovery()


@given(recoveries)
def test_recovery_means_nothing_where_nothing_was_lost(recovery):
    assert Policy({}, recovery=recovery) == Policy({})
    assert Policy({"fc": Treatment(clusters=4)}, recovery=recovery).recovery == recovery
    assert Policy({"fc": Treatment(clusters=4)}, recovery=recovery).untrained.recovery == Recovery()
