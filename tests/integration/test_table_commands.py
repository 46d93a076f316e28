"""``trimtab table``: what it prints, what it refuses, and with which exit code."""

import dataclasses

import pytest
from trimtab.evaluators.testing import SimulatedDevice
from trimtab.experiments.cli import app
from trimtab.hw_profiles.kernels.kernel import KernelTiming
from trimtab.hw_profiles.kernels.shipped import user_table_path
from trimtab.hw_profiles.kernels.table_file import read_table, write_table
from trimtab.hw_profiles.kernels.table_identity import TableIdentity
from trimtab.hw_profiles.target import Target
from trimtab.hw_profiles.testing import synthetic_identity, synthetic_kernel, synthetic_table
from typer.testing import CliRunner

SIMULATED = "trimtab.evaluators.testing:SimulatedDevice"
#: the simulated device is the same on every machine
HERE = TableIdentity.of(SimulatedDevice(Target(SIMULATED)).identify())
KERNEL = synthetic_kernel(100)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path):
    """A table of the simulated device, from elsewhere."""
    write_table(tmp_path / "from-elsewhere.jsonl", synthetic_table(identity=HERE))
    return tmp_path / "from-elsewhere.jsonl"


def call(*arguments):
    """Returns exit code, what was printed, and what was complained."""
    result = CliRunner().invoke(app, ["table", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def damage(path):
    path.write_bytes(path.read_bytes()[:-300])
    return path


def test_show_summarises_a_table(file):
    code, out, _ = call("show", file)
    assert code == 0
    assert "6 kernels with 12 observations, 3 graphs" in out
    assert f"{SIMULATED} 1 on simulated, device cpu, threads 1" in out
    row = next(line for line in out.splitlines() if "QLinearConv" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["QLinearConv", "6", "12", "360"]
    assert "3 whole graphs of imaginary" in out
    assert "3 measurements from profile imaginary" in out


def test_show_prints_brackets_as_they_are(tmp_path):
    table = synthetic_table()
    table.add([KernelTiming(synthetic_kernel(1, "[bold]Op[/]"), 1e-5, 0, 1)], "a source [red]")
    write_table(tmp_path / "t.jsonl", table)
    _, out, _ = call("show", tmp_path / "t.jsonl")
    assert "[bold]Op[/]" in out
    assert "a source [red]" in out


def test_show_lists_all_tables_and_says_which_are_damaged(cache):
    for identity in (HERE, synthetic_identity()):
        write_table(user_table_path(identity, cache), synthetic_table(identity=identity))
    damaged = damage(user_table_path(HERE, cache))
    code, out, _ = call("show")
    assert code == 0
    assert f"kernel table {damaged} is truncated" in out
    assert "onnxruntime 1.31.1 on Imaginary CPU, device cpu, threads 1" in out


def test_import_adds_to_what_the_user_has(cache, file):
    own = synthetic_table(1, 0, HERE)
    own.add([KernelTiming(KERNEL, 1e-5, 0, 1)], "mine")
    write_table(user_table_path(HERE, cache), own)
    code, out, _ = call("import", file)
    assert code == 0
    assert "now has 7 kernels" in out
    own.merge(synthetic_table(identity=HERE))
    assert read_table(user_table_path(HERE, cache)) == own


def test_import_refuses_a_stale_table_with_the_reason(cache, tmp_path):
    stale = dataclasses.replace(HERE, runtime_version="0.9", features=("avx2",))
    write_table(tmp_path / "stale.jsonl", synthetic_table(identity=stale))
    code, _, complaint = call("import", tmp_path / "stale.jsonl")
    assert code == 2
    assert "TableError" in complaint
    assert f"{SIMULATED} 1 here, 0.9 in the table" in complaint
    assert "only in the table: avx2" in complaint
    assert not user_table_path(HERE, cache).exists()


def test_import_refuses_a_table_of_a_runtime_that_is_not_known(cache, tmp_path):
    unknown = dataclasses.replace(HERE, runtime="tflite")
    write_table(tmp_path / "t.jsonl", synthetic_table(identity=unknown))
    code, _, complaint = call("import", tmp_path / "t.jsonl")
    assert code == 2
    assert "tflite" in complaint


@pytest.mark.parametrize("settings", [{"device": "cpu", "threads": "two"}, {"device": 1}, {"threads": True}])
def test_import_refuses_settings_that_are_none(cache, tmp_path, settings):
    odd = dataclasses.replace(HERE, settings=settings)
    write_table(tmp_path / "t.jsonl", synthetic_table(identity=odd))
    code, _, complaint = call("import", tmp_path / "t.jsonl")
    assert code == 2
    assert "settings must have" in complaint


def test_import_refuses_a_damaged_table_with_the_remedy(cache, file):
    code, _, complaint = call("import", damage(file))
    assert code == 2
    assert f"trimtab table repair {file}" in complaint


def test_what_is_exported_is_what_was_imported(cache, file, tmp_path):
    call("import", file)
    code, out, _ = call("export", tmp_path / "out.jsonl", "--runtime", SIMULATED)
    assert code == 0
    assert "6 kernels" in out
    assert (tmp_path / "out.jsonl").read_bytes() == file.read_bytes()


def test_export_finds_a_table_by_further_settings(cache, tmp_path):
    precise = TableIdentity.of(SimulatedDevice(Target(SIMULATED)).identify(), {"precision": "bfloat16", "streams": 2})
    write_table(tmp_path / "in.jsonl", synthetic_table(identity=precise))
    call("import", tmp_path / "in.jsonl")
    settings = ["--setting", "precision=bfloat16", "--setting", "streams=2"]
    code, _, _ = call("export", tmp_path / "out.jsonl", "--runtime", SIMULATED, *settings)
    assert code == 0
    assert read_table(tmp_path / "out.jsonl").identity == precise


def test_export_of_nothing_says_what_to_do(cache, tmp_path):
    code, _, complaint = call("export", tmp_path / "out.jsonl", "--runtime", SIMULATED, "--threads", "3")
    assert code == 2
    assert "nothing is known of" in complaint
    assert "threads 3" in complaint
    assert "trimtab profile" in complaint
    assert not (tmp_path / "out.jsonl").exists()


def test_merge_writes_both(file, tmp_path):
    other = synthetic_table(1, 0, HERE)
    other.add([KernelTiming(KERNEL, 1e-5, 0, 1)], "other")
    write_table(tmp_path / "other.jsonl", other)
    code, out, _ = call("merge", file, tmp_path / "other.jsonl", "--out", tmp_path / "both.jsonl")
    assert code == 0
    assert "7 kernels" in out
    other.merge(read_table(file))
    assert read_table(tmp_path / "both.jsonl") == other


def test_merge_refuses_tables_of_two_devices(file, tmp_path):
    write_table(tmp_path / "other.jsonl", synthetic_table())
    code, _, complaint = call("merge", file, tmp_path / "other.jsonl", "--out", tmp_path / "both.jsonl")
    assert code == 2
    assert "device simulated here, Imaginary CPU in the table" in complaint
    assert not (tmp_path / "both.jsonl").exists()


def test_merge_overwrites_nothing(file):
    content = file.read_bytes()
    code, _, complaint = call("merge", file, file, "--out", file)
    assert (code, file.read_bytes()) == (2, content)
    assert "exists already" in complaint


def test_repair_writes_what_is_intact_and_says_what_was_lost(file):
    damaged = damage(file).read_bytes()
    code, out, _ = call("repair", file)
    aside = file.with_name(f"{file.name}.damaged-1")
    assert code == 0
    assert "6 kernels with 12 observations, 1 graphs" in out
    assert "the footer is missing" in out
    assert f"kept as {aside}" in out
    assert aside.read_bytes() == damaged
    assert len(read_table(file)) == 6


def test_repair_of_a_sound_table_says_so(file):
    code, out, _ = call("repair", file)
    assert code == 0
    assert "is sound" in out


def test_repair_of_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "ops.csv").write_text("op,ms\nConv,1\n")
    code, _, complaint = call("repair", tmp_path / "ops.csv")
    assert code == 2
    assert "does not begin with the header of a kernel table" in complaint
