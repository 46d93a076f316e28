"""The space drops what a profile of the device shows to be slower than none; the user overrules."""

from pathlib import Path

import pytest
import trimtab
from pydantic import ValidationError
from trimtab.core.errors import ProfileError
from trimtab.evaluators.testing import SimulatedDevice
from trimtab.experiments.profiling.device_profiles import find_profile, profile_path, save_profile, why_slow
from trimtab.experiments.spec import RuleSpec, Spec
from trimtab.hw_profiles.device_profile import ContextFigure, DeviceProfile, Verdict, read_device_profile
from trimtab.hw_profiles.target import Target
from trimtab.spaces.layer import Layer
from trimtab.spaces.rules import Doubts, Rule, resolve_options
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

SHIPPED = Path(trimtab.__file__).parent / "hw_profiles" / "profiles"
IDENTITY = SimulatedDevice(Target("simulated")).identify()
LAYERS = [Layer("up", "linear", (32, 64), (-1, 12, 64), 0, 0), Layer("head", "linear", (32, 3), (-1, 3), 0, 0)]


def _verdict(variant, option, ratio):
    return Verdict("linear", variant, option, (ContextFigure("float", "32×64", ratio, 0.01, 1e-3),))


PROFILE = DeviceProfile(
    IDENTITY, (), (), (_verdict("sequence", "int8_weight", 1.02), _verdict("sequence", "int8", 0.4)), 0.0, "2026-11-22"
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def _names(options):
    return {name: [treatment.label for treatment in offered] for name, offered in options.items()}


def _resolve(*rules):
    options, dropped = resolve_options(
        LAYERS, rules, lambda *_: None, doubts=Doubts(lambda option, layer: why_slow(PROFILE, option, layer))
    )
    return _names(options), dropped


def test_what_does_not_pay_falls_away_with_the_figures():
    options, dropped = _resolve(Rule("*", ("none", "int8", "int8_weight")))
    assert options == {"up": ["none", "int8"], "head": ["none", "int8", "int8_weight"]}
    assert [(drop.layer, drop.option) for drop in dropped] == [("up", "int8_weight")]
    assert "1.02 ± 0.01 of float32's time on this device" in dropped[0].reason
    assert "force: true" in dropped[0].reason


def test_force_keeps_it():
    options, dropped = _resolve(Rule("*", ("none", "int8_weight")), Rule("up", ("none", "int8_weight"), force=True))
    assert options["up"] == ["none", "int8_weight"]
    assert not dropped


def test_a_layer_keeps_the_only_option_that_it_was_given():
    options, dropped = _resolve(Rule("*", ("int8_weight",)))
    assert options["up"] == ["int8_weight"]
    assert not dropped


def test_without_a_profile_nothing_is_slow():
    assert why_slow(None, "int8_weight", LAYERS[0]) is None


# -- which profile --------------------------------------------------------------------------------


def test_a_device_without_a_profile_is_told_how_to_make_one():
    found = find_profile(IDENTITY)
    assert found.profile is None
    assert "no profile of this device" in found.note
    assert "trimtab profile SPEC makes one" in found.note


def test_the_saved_profile_is_found():
    path = save_profile(PROFILE)
    found = find_profile(IDENTITY)
    assert found.profile == PROFILE
    assert str(path) in found.note


def test_the_profile_of_other_settings_is_not_taken():
    save_profile(PROFILE)
    other = SimulatedDevice(Target("simulated", threads=2)).identify()
    assert find_profile(other).profile is None


def test_a_profile_can_be_declined():
    save_profile(PROFILE)
    assert find_profile(IDENTITY, "none").profile is None


def test_a_damaged_profile_in_the_cache_is_passed_over_and_named():
    save_profile(PROFILE)
    profile_path(IDENTITY).write_text("{")
    found = find_profile(IDENTITY)
    assert found.profile is None
    assert "is not JSON" in found.note


def test_a_named_profile_has_to_fit(tmp_path):
    path = save_profile(PROFILE)
    assert find_profile(IDENTITY, str(path)).profile == PROFILE
    other = SimulatedDevice(Target("simulated", threads=2)).identify()
    with pytest.raises(ProfileError, match="threads 2 here, 1 in the profile"):
        find_profile(other, str(path))
    with pytest.raises(ProfileError, match="does not exist"):
        find_profile(IDENTITY, str(tmp_path / "no.json"))


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_profile_is_found_by_its_device(path):
    shipped = read_device_profile(path)
    found = find_profile(shipped.identity)
    assert found.profile == shipped
    assert path.name in found.note


def test_integers_pay_and_zeros_do_not_in_every_shipped_profile():
    for profile in map(read_device_profile, SHIPPED.glob("*.json")):
        assert profile.find("conv", "k×k", "int8").pays
        assert profile.find("linear", "sequence", "int8").pays
        assert not profile.find("linear", "sequence", "sparsity 2:4").pays


# -- in a spec ------------------------------------------------------------------------------------


def test_a_spec_that_says_nothing_stays_as_it_was():
    content = Spec(model="a:b", data="c:d", target={"runtime": "onnxruntime"}).to_json()
    assert "profile" not in content
    assert all("force" not in rule for rule in content["space"])


def test_a_spec_can_force_and_decline():
    spec = Spec(
        model="a:b", data="c:d", target={"runtime": "onnxruntime"}, profile="none",
        space=({"layers": "*", "quantize": list(QUANTIZE_OPTIONS), "force": True},),
    )  # fmt: skip
    assert (spec.profile, spec.space[0].force) == ("none", True)


@pytest.mark.parametrize("force", ["yes", 1, "true"])
def test_force_is_a_boolean(force):
    with pytest.raises(ValidationError, match="force"):
        RuleSpec(layers="*", force=force)
