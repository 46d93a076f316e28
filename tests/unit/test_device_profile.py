"""What a device can do, as a file: read as written, refused when damaged or of something else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from trimtab.core.errors import ProfileError
from trimtab.hw_profiles import profile as profile_module
from trimtab.hw_profiles.device_profile import (
    Bandwidth,
    ContextFigure,
    DeviceProfile,
    PeakRate,
    Verdict,
    read_device_profile,
    variant_of,
    write_device_profile,
)
from trimtab.hw_profiles.profile import HardwareProfile, identify_cpu
from trimtab.hw_profiles.target import Target

IDENTITY = HardwareProfile(
    "Xeon", ("avx2",), 2, 2**33, "onnxruntime", "1.31.1", Target("onnxruntime"), 2600.0, None, (("L1", 49152),)
)


def _figure(ratio, error, context="float"):
    return ContextFigure(context, "384×1536 on 128", ratio, error, 1e-3)


PROFILE = DeviceProfile(
    IDENTITY,
    (Bandwidth("memory", 2**29, 1.2e10, 1e8),),
    (PeakRate("matmul", "float32", 1.1e11, 1e9),),
    (Verdict("linear", "sequence", "int8", (_figure(0.4, 0.02), _figure(1.1, 0.1, "int8"))),
     Verdict("depthwise_conv", "", "float16", (_figure(1.0, 0.01),))),
    0.0,
    "2026-11-22",
)  # fmt: skip


@pytest.mark.parametrize(
    ("figures", "pays"),
    [
        ([(0.9, 0.05)], True),
        ([(0.97, 0.05)], False),
        ([(1.4, 0.1), (0.9, 0.05)], True),
        ([(1.0, 0.0)], False),
    ],
)
def test_an_option_pays_when_it_is_faster_in_any_context_beyond_the_error(figures, pays):
    assert Verdict("conv", "1×1", "int8", tuple(_figure(*one) for one in figures)).pays is pays


@pytest.mark.parametrize(
    ("option", "figures", "is_tried"),
    [
        ("int8", [(1.4, 0.1), (0.98, 0.05)], True),
        ("int8", [(1.4, 0.1), (1.2, 0.05)], False),
        ("float16", [(1.4, 0.1), (0.98, 0.05)], False),
        ("float16", [(1.4, 0.1), (0.9, 0.05)], True),
    ],
)
def test_static_int8_is_tried_where_it_is_no_slower_for_the_sake_of_its_neighbours(option, figures, is_tried):
    verdict = Verdict("conv", "1×1", option, tuple(_figure(*one) for one in figures))
    assert verdict.is_worth_trying is is_tried


def test_a_profile_is_read_as_it_was_written(tmp_path):
    write_device_profile(tmp_path / "p.json", PROFILE)
    assert read_device_profile(tmp_path / "p.json") == PROFILE


def test_a_verdict_is_found_by_what_it_is_about():
    assert PROFILE.find("linear", "sequence", "int8").pays
    assert PROFILE.find("linear", "rows", "int8") is None


def test_a_profile_of_this_device_is_accepted_whatever_the_clock_and_the_memory():
    PROFILE.require(replace(IDENTITY, base_mhz=3100.0, memory_bytes=2**34, n_cores=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "Xeon Gold"}, "device Xeon Gold here, Xeon in the profile"),
        ({"runtime_version": "1.32.0"}, "onnxruntime 1.32.0 here, 1.31.1 in the profile"),
        ({"target": Target("onnxruntime", threads=2)}, "threads 2 here, 1 in the profile"),
        ({"target": Target("onnxruntime", batch_size=8)}, "batch_size 8 here, 1 in the profile"),
        ({"features": ("avx2", "avx512_vnni")}, "only here: avx512_vnni"),
    ],
)
def test_a_profile_of_something_else_is_refused_by_name(change, message):
    with pytest.raises(ProfileError, match=message):
        PROFILE.require(replace(IDENTITY, **change))


def _damage(change):
    content = json.loads(json.dumps(PROFILE.to_json()))
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("verdicts"), "verdicts"),
        (lambda c: c.update(schema_version=2), "schema_version must be 1, got 2"),
        (lambda c: c["identity"].pop("features"), "features"),
        (lambda c: c["identity"]["target"].update(warp=9), "warp"),
        (lambda c: c["bandwidths"][0].update(bytes_per_s=-1), "not a positive number"),
        (lambda c: c["bandwidths"][0].update(bytes_per_s="fast"), "damaged"),
        (lambda c: c["verdicts"][0].update(pays=False), "contradict"),
        (lambda c: c["verdicts"][0].update(figures=[]), "at least one figure"),
        (lambda c: c["verdicts"][0]["figures"][0].update(error=-0.1), "spread"),
        (lambda c: c.update(null_deviation=None), "damaged"),
    ],
)
def test_a_damaged_profile_is_refused_by_name(change, message):
    with pytest.raises(ProfileError, match=message):
        DeviceProfile.from_json(_damage(change))


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '{"schema_version": 1', '{"schema_version": 1}'])
def test_a_file_that_is_no_profile_is_refused_with_its_name(text, tmp_path):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ProfileError, match=r"p\.json"):
        read_device_profile(tmp_path / "p.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ProfileError, match="does not exist"):
        read_device_profile(tmp_path / "p.json")


def test_the_profile_of_version_1_stays_readable():
    golden = read_device_profile(Path(__file__).parents[1] / "golden" / "device-profile-v1.json")
    assert golden == PROFILE


@pytest.mark.parametrize(
    ("kind", "weight", "output", "variant"),
    [
        ("conv", (64, 64, 3, 3), (-1, 64, 8, 8), "k×k"),
        ("conv", (64, 32, 1, 1), (-1, 64, 8, 8), "1×1"),
        ("conv", (61, 64, 1, 1), (-1, 61, 8, 8), "1×1 odd"),
        ("conv", (32, 3, 3, 3), (-1, 32, 8, 8), "k×k odd"),
        ("depthwise_conv", (96, 1, 3, 3), (-1, 96, 8, 8), ""),
        ("linear", (384, 1536), (-1, 128, 1536), "sequence"),
        ("linear", (384, 2), (-1, 2), "rows"),
        ("linear", (384, 2), (), ""),
        ("embedding", (100, 8), (-1, 4, 8), ""),
    ],
)
def test_layers_are_told_apart_where_verdicts_differ(kind, weight, output, variant):
    assert variant_of(kind, weight, output) == variant


# -- identity -------------------------------------------------------------------------------------


def test_clocks_and_caches_do_not_change_the_id():
    bare = replace(IDENTITY, base_mhz=None, caches_bytes=())
    assert bare.id == IDENTITY.id
    assert replace(IDENTITY, device="Xeon Gold").id != IDENTITY.id


def test_the_id_is_that_of_earlier_versions():
    # made by the version that knew neither clocks nor caches
    assert IDENTITY.id == "2d9038a13e38b1df"


def test_an_identity_is_read_as_it_was_written():
    assert HardwareProfile.from_json(json.loads(json.dumps(IDENTITY.to_json()))) == IDENTITY


def test_an_identity_without_clocks_stays_readable():
    old = {k: v for k, v in IDENTITY.to_json().items() if k not in ("base_mhz", "max_mhz", "caches_bytes")}
    assert HardwareProfile.from_json(old) == replace(IDENTITY, base_mhz=None, caches_bytes=())


def _sysfs(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_clocks_and_caches_are_read_from_sysfs(tmp_path, monkeypatch):
    _sysfs(tmp_path, {
        "cpufreq/base_frequency": "2400000\n", "cpufreq/cpuinfo_max_freq": "3800000\n",
        "cache/index0/level": "1", "cache/index0/type": "Data", "cache/index0/size": "48K\n",
        "cache/index1/level": "1", "cache/index1/type": "Instruction", "cache/index1/size": "64K\n",
        "cache/index2/level": "2", "cache/index2/type": "Unified", "cache/index2/size": "2M\n",
    })  # fmt: skip
    monkeypatch.setattr(profile_module, "_CPU", tmp_path)
    found = identify_cpu(Target("onnxruntime"), "1")
    assert (found.base_mhz, found.max_mhz) == (2400.0, 3800.0)
    assert found.caches_bytes == (("L1", 49152), ("L2", 2 * 2**20))


def test_a_machine_that_tells_nothing_has_no_caches_and_no_highest_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(profile_module, "_CPU", tmp_path)
    found = identify_cpu(Target("onnxruntime"), "1")
    assert (found.max_mhz, found.caches_bytes) == (None, ())
