"""Treatments and reasons in words, on cases made by hand: each says what is known and nothing else."""

import math

import pytest
from trimtab.experiments.explain.outlook import Change, Difference
from trimtab.experiments.explain.reasons import Case, Option, give_reason
from trimtab.experiments.explain.words import describe_graph, describe_treatment
from trimtab.search.budget import Budget
from trimtab.spaces.policy import GraphTreatment, Policy
from trimtab.spaces.recovery import Recovery
from trimtab.spaces.treatment import QUANTIZE_OPTIONS, Treatment


@pytest.mark.parametrize(
    ("treatment", "words"),
    [
        (Treatment(), "float32"),
        (Treatment(keep_channels=0.5), "50 % stays (by magnitude)"),
        (Treatment(keep_channels=0.0), "removed"),
        (Treatment(rank=0.9, rank_by="energy"), "low rank with 90 % of the energy"),
        (Treatment(clusters=16, weight_dtype="int8"), "16 different weights, int8 weights"),
        (Treatment(binary="ternary", activation_dtype="binary"), "ternary weights, binary inputs"),
        (Treatment(pattern="2:4"), "50 % zeros (2:4)"),
        (QUANTIZE_OPTIONS["int4_weight"], "int4 weights in blocks of 32"),
        (QUANTIZE_OPTIONS["int8_dynamic"], "int8, ranges from each input"),
        (QUANTIZE_OPTIONS["float32"], "kept in full precision"),
    ],
)
def test_a_treatment_is_said_in_words(treatment, words):
    assert describe_treatment(treatment) == words


@pytest.mark.parametrize("option", QUANTIZE_OPTIONS.values(), ids=list(QUANTIZE_OPTIONS))
def test_every_quantize_option_has_words_of_its_own(option):
    same = [o for o in QUANTIZE_OPTIONS.values() if describe_treatment(o) == describe_treatment(option)]
    assert same == [option]


def test_choices_for_the_graph_are_said_where_they_are_made():
    policy = Policy(
        {"fc": QUANTIZE_OPTIONS["int8"]}, GraphTreatment(calibration="mse", quantized_ops=("add",)), Recovery("distill")
    )
    assert describe_graph(policy) == (
        "quantised beside the layers: add", "recovery: distill 1 epoch", "activation ranges: mse"
    )  # fmt: skip
    assert describe_graph(Policy({})) == ()


def change(**parts):
    """What an option makes of the policy; nothing, unless said otherwise."""
    known = {
        "latency_s": Difference(0.0, 0.0, is_measured=False), "drop": Difference(0.0, 0.001, is_measured=False),
        "size_bytes": 0.0, "sensitivity": 0.0, "sureness": 0.9, "failure": "", "trials": (), "converting": (),
    }  # fmt: skip
    return Change(**{**known, **parts})


def case(*others, untouched=None, objective="latency"):
    options = [Option("float32", untouched)] if untouched else []
    return Case(
        chosen="int8" if untouched else "float32", is_treated=untouched is not None, untouched=untouched,
        others=[*options, *others], latency_s=0.001, size_bytes=1000,
        budget=Budget(accuracy_drop=0.01), objective=objective,
    )  # fmt: skip


def slower(seconds, error=0.0):
    return Difference(seconds, error, is_measured=False)


def test_without_a_choice_nothing_else_was_on_offer():
    assert give_reason(case()) == "nothing but float32 was on offer"


def test_a_treatment_is_worth_what_it_saves():
    without = change(latency_s=slower(0.0005), size_bytes=750.0, drop=slower(-0.002, 0.0001))
    assert give_reason(case(untouched=without)) == (
        "int8 saves 0.5 ms of 1.5 ms and 0.75 kB of 1 kB, costs 0.2 % accuracy (20 % of the allowed drop)"
    )


def test_a_cost_in_accuracy_that_chance_may_have_made_is_none():
    reason = give_reason(case(untouched=change(latency_s=slower(0.0005), drop=slower(-0.001, 0.001))))
    assert "costs no accuracy that can be told from chance" in reason


def test_a_treatment_that_the_budget_needs_is_said_to_be_needed():
    reason = give_reason(case(untouched=change(latency_s=slower(0.0005), sureness=0.1)))
    assert reason.endswith("without it the budget would be kept with 10 % only")


def test_what_is_not_known_is_said_to_be_not_known():
    unknown = change(latency_s=None, drop=None, size_bytes=None)
    assert give_reason(case(untouched=unknown)) == "int8 changes the latency by an amount that is not known"
    assert give_reason(case(Option("int8", unknown))) == "stays float32: what int8 would change is not known"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (change(latency_s=slower(0.0001)), "int8 would be 0.1 ms slower"),
        (change(latency_s=slower(0.0001), trials=(7,)), "int8 would be 0.1 ms slower (measured: trial 7)"),
        (change(latency_s=slower(0.0001), converting=("conv1",)),
         "int8 would be 0.1 ms slower, for it would have to convert at the borders to conv1"),
        (change(drop=slower(0.02), sureness=0.1), "int8 would cost 2 % more accuracy, where 1 % is allowed"),
        (change(failure="no kernel"), "int8 could not be had: no kernel"),
        (change(latency_s=slower(-1e-6, 1e-5)), "int8 would make no difference that can be told from chance"),
        (change(latency_s=slower(-1e-4, 1e-6)), "int8 is expected to be better by 0.1 ms, but it was not tried"),
    ],
)  # fmt: skip
def test_what_speaks_against_an_option_is_said(found, words):
    assert give_reason(case(Option("int8", found))) == f"stays float32: {words}"


def test_the_objective_decides_what_counts():
    worse = change(latency_s=slower(-math.inf), size_bytes=500.0)
    assert give_reason(case(Option("int8", worse), objective="size")) == "stays float32: int8 would be 0.5 kB larger"
