"""The notation of fusion rules: what is read, and where a mistake is."""

import pytest
from trimtab.core.errors import SpecError
from trimtab.hw_profiles.boards.fusion_rule import Pattern, Stage, parse_rule


def test_a_pattern_is_a_chain_of_stages():
    pattern = Pattern.parse(" Conv>Add? > Relu | Clip ? ")
    assert pattern.stages == (Stage(("Conv",)), Stage(("Add",), True), Stage(("Relu", "Clip"), True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Conv > > Relu", r"stage 2: an operator's name is missing"),
        ("Conv > Re lu", r"stage 2: 'Re lu' is not an operator's name"),
        ("Conv > Relu|", r"stage 2: an operator's name is missing"),
        ("Conv? > Relu", r"the first stage names the kernel and cannot be optional"),
        ("Conv > Relu|Relu", r"stage 2 names an operator twice"),
        ("Conv" + " > Relu" * 16, r"17 stages; at most 16"),
        ("", r"must read like"),
        (3, r"must read like 'Conv > Add\? > Relu\|Clip\?', got 3"),
    ],
)
def test_a_mistake_in_a_pattern_is_located(text, message):
    with pytest.raises(SpecError, match=message):
        Pattern.parse(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pattern": []}, r"unknown key 'pattern'; did you mean 'patterns'\?"),
        ({"patterns": ["Conv", "Conv > "]}, r"fusion\.patterns\[1\] 'Conv > ', stage 2"),
        ({"patterns": "Conv"}, r"fusion\.patterns must be a list"),
        ({"free": ["Reshape", 3]}, r"fusion\.free\[1\]: 3"),
        ({"integer": {"Conv": "most"}}, r"integer\.Conv must be one of all, activations, inputs, weight, never"),
        ({"integer": {"Conv layer": "all"}}, r"'Conv layer' is not an operator's name"),
        ({"fold_constants": 1}, r"fusion\.fold_constants must be true or false, got 1"),
        ({"patterns": ["Conv > Relu"], "free": ["Relu"]}, r"Relu stands in a pattern and in free"),
        (["Conv"], r"fusion must be a mapping"),
    ],
)
def test_a_mistake_in_a_rule_is_located(content, message):
    with pytest.raises(SpecError, match=message):
        parse_rule(content)


def test_an_empty_rule_fuses_nothing_and_folds_constants():
    rule = parse_rule({})
    assert (rule.patterns, rule.free, dict(rule.integer), rule.folds_constants) == ((), frozenset(), {}, True)
