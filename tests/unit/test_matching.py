"""Layers of two models are paired by name, by prefix, then by structure; what cannot be told is said, never guessed."""

import pytest
from trimtab.core.errors import PolicyError, SpecError
from trimtab.experiments.reapply.matching import match_layers
from trimtab.spaces.layer import Layer


def layers(*descriptions):
    """Layers from ``name`` (8×8), ``name:rows×columns`` or ``name:kind:rows×columns``."""
    found = []
    for text in descriptions:
        name, *rest = text.split(":")
        shape = tuple(map(int, rest[-1].split("×"))) if rest else (8, 8)
        found.append(Layer(name, rest[0] if len(rest) == 2 else "linear", shape, (), 0, 0))
    return tuple(found)


def pairs(wanted, have, match):
    return dict(match_layers(wanted, have, match=match).pairs)


def test_equal_names_are_paired_in_whatever_order():
    found = match_layers(layers("a", "b"), layers("b", "a"), match="exact")
    assert found.is_identity
    assert found.lines == ()


def test_a_match_that_is_not_known_is_refused():
    with pytest.raises(SpecError, match="unknown match 'loose'; known: changed, exact, renamed"):
        match_layers(layers("a"), layers("a"), match="loose")


@pytest.mark.parametrize(
    ("have", "way_out"),
    [
        (layers("net.a", "net.b:8×4"), "the same but for their names: --match renamed"),
        (layers("a", "b:8×4", "c"), "--match changed treats those that are still there"),
    ],
    ids=["renamed", "changed"],
)
def test_an_exact_match_that_fails_names_the_way_out(have, way_out):
    with pytest.raises(PolicyError, match=way_out):
        match_layers(layers("a", "b:8×4"), have, match="exact")


@pytest.mark.parametrize(
    ("wanted", "have"),
    [
        (layers("a", "b", "c"), layers("module.a", "module.b", "module.c")),
        (layers("module.a", "module.b", "module.c"), layers("a", "b", "c")),
        # the prefix says which is which, although the graph now computes them in another order
        (layers("q", "k", "v"), layers("net.v", "net.q", "net.k")),
    ],
    ids=["added", "removed", "another order"],
)
def test_a_common_prefix_tells_who_is_who(wanted, have):
    assert all(new.endswith(old) or old.endswith(new) for old, new in pairs(wanted, have, "renamed").items())


def test_names_that_say_nothing_are_paired_by_their_order():
    wanted, have = layers("a:8×4", "b", "c"), layers("x:8×4", "y", "z")
    assert pairs(wanted, have, "renamed") == {"a": "x", "b": "y", "c": "z"}


def test_the_mapping_is_told_line_by_line():
    assert match_layers(layers("a", "b"), layers("x", "b"), match="renamed").lines == ("a → x",)


@pytest.mark.parametrize(
    ("wanted", "have", "words"),
    [
        # b may be what comes behind c, or have gone
        (layers("a", "b", "c"), layers("a", "c", "x"), "b and c have other partners"),
        # up and down changed places, and the names say so
        (layers("mlp.up", "mlp.down"), layers("ffn.down", "ffn.up"), "mlp.up and mlp.down have other partners"),
        (layers("a", "b"), layers("x", "y", "z"), "differs in more than names: it lacks a, b; it has besides x, y, z"),
        (layers("a", "b:8×4"), layers("x", "y:4×8"), "differs in more than names"),
        (layers("a:conv:8×8"), layers("x:linear:8×8"), "differs in more than names"),
    ],
    ids=["moved", "swapped", "one more", "another shape", "another kind"],
)
def test_what_is_more_than_a_renaming_is_refused(wanted, have, words):
    with pytest.raises(PolicyError, match=words):
        match_layers(wanted, have, match="renamed")


def test_new_layers_and_missing_ones_are_told():
    found = match_layers(layers("a", "b:8×4", "c:8×2"), layers("a", "new:conv:3×3", "c:8×2"), match="changed")
    assert dict(found.pairs) == {"a": "a", "c": "c"}
    assert found.lines == ("b → none: this model has no such layer", "none → new: new, stays untreated")


def test_a_layer_of_another_width_keeps_its_partner():
    found = match_layers(layers("a", "fc:8×10"), layers("a", "fc:8×12"), match="changed")
    assert (found.pairs["fc"], found.reshaped) == ("fc", ("fc",))
    assert found.lines == ("fc → fc (another shape)",)


def test_a_layer_of_another_kind_has_gone_and_a_new_one_has_come():
    found = match_layers(layers("a", "b:conv:8×8"), layers("a", "b:linear:8×8"), match="changed")
    assert (found.missing, found.added) == (("b",), ("b",))


def test_which_of_three_equal_layers_is_which_of_two_cannot_be_told():
    found = match_layers(layers("a", "b"), layers("x", "y", "z"), match="changed")
    assert not found.pairs
    assert set(found.ambiguous) == {"a", "b"}
    assert set(found.ambiguous["a"]) >= {"x", "y"}
    assert any(line.startswith("a → none: it may be x or y") for line in found.lines)


def test_two_that_claim_one_get_nothing():
    found = match_layers(layers("a", "b"), layers("x"), match="changed")
    assert not found.pairs
    assert set(found.ambiguous) == {"a", "b"}


def test_neighbours_tell_where_a_renamed_layer_stands():
    wanted = layers("stem", "middle", "top")
    have = layers("stem", "new1", "top", "new2")
    assert pairs(wanted, have, "changed") == {"stem": "stem", "middle": "new1", "top": "top"}


def test_shapes_tell_a_new_block_from_the_old_ones():
    wanted = layers("s:8×16", "b0:16×16", "h:16×4")
    have = layers("in:8×16", "x:16×32", "y:32×16", "z:16×16", "out:16×4")
    assert pairs(wanted, have, "changed") == {"s": "in", "b0": "z", "h": "out"}
