"""Which settings of the graph-wide choices are priced before a search."""

import pytest
from trimtab.experiments.knowledge import is_worth_pricing, list_settings
from trimtab.spaces.layer import Group
from trimtab.spaces.space import GraphOptions, Space
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

TREATMENTS = (QUANTIZE_OPTIONS["none"], QUANTIZE_OPTIONS["int8"])


def space(**graph):
    return Space((Group("g", ("g",)),), (TREATMENTS,), GraphOptions(**graph))


def test_a_space_without_choices_has_one_setting():
    assert list_settings(space()) == [(0, 0, 0, 0)]


def test_the_fastest_precision_comes_first_then_the_settings_that_differ_in_one_choice():
    found = list_settings(space(fusion=("none", "gelu"), precision=("float32", "bfloat16")))
    assert found[0] == (0, 0, 0, 1)
    assert set(found[1:3]) == {(0, 0, 0, 0), (1, 0, 0, 1)}
    assert found[3:] == [(1, 0, 0, 0)]


def test_calibration_changes_no_kernel_and_is_no_setting():
    assert list_settings(space(calibration=("minmax", "mse"))) == [(0, 0, 0, 0)]


@pytest.mark.parametrize(
    ("setting", "spent_s", "expected"),
    [
        ((1, 0, 0, 1), 1.0, True),  # there is time
        ((1, 0, 0, 1), 60.0, False),  # that precision is priced in another setting
        ((0, 0, 0, 0), 60.0, True),  # prices of bfloat16 say nothing of float32
    ],
)
def test_when_time_is_up_the_other_precision_is_priced_all_the_same(setting, spent_s, expected):
    assert is_worth_pricing(setting, [(0, 0, 0, 1, 0, 0, 0, 0)], spent_s=spent_s) is expected
