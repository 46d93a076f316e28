"""Kernel tables on disk: what a diff shows, what is refused and why, what is left of a damaged file."""

import difflib
import hashlib
import json
import logging
import os
import random
import time
import zlib

import pytest
from filelock import FileLock
from trimtab.core.errors import TableError, TransientError
from trimtab.core.files import MAX_TEXT_BYTES
from trimtab.hw_profiles.kernels.kernel import KernelTiming
from trimtab.hw_profiles.kernels.table_file import read_table, repair_table, salvage_table, update_table, write_table
from trimtab.hw_profiles.testing import synthetic_identity, synthetic_kernel, synthetic_table

HERE = synthetic_identity()
KERNEL = synthetic_kernel(100)
GOOD_ROW = [1e-5, 1e-7, 30, "s"]


@pytest.fixture
def path(tmp_path):
    """The file of a table with 6 kernels and 3 graphs: 11 lines."""
    write_table(tmp_path / "table.jsonl", synthetic_table())
    return tmp_path / "table.jsonl"


def add_kernel(table):
    table.add([KernelTiming(KERNEL, 1e-5, 1e-7, 30)], "update")


def seal(value):
    """A line as the format defines it, made without the code under test."""
    body = json.dumps(value)[1:]
    return f'{{"check":"{zlib.crc32(body.encode()):08x}",{body}'


def write_lines(path, *lines, kernels=1, graphs=0):
    """Writes a file of one header, these lines and a footer that fits them."""
    header = {"format": "trimtab kernel table", "schema": 1, "identity": HERE.to_json()}
    content = "".join(f"{line}\n" for line in (seal(header), *lines))
    footer = {"kernels": kernels, "graphs": graphs, "sha256": hashlib.sha256(content.encode()).hexdigest()}
    path.write_text(content + json.dumps(footer) + "\n")


def test_another_kernel_changes_its_own_line_and_the_footer(path):
    before = path.read_text().splitlines()
    update_table(path, add_kernel, identity=HERE)
    after = path.read_text().splitlines()
    changed = [line for line in difflib.ndiff(before, after) if line[:2] in ("- ", "+ ")]
    assert sorted(line[:2] for line in changed) == ["+ ", "+ ", "- "]
    assert sum(KERNEL.id in line for line in changed) == 1


def test_kernels_stand_by_operator_and_id(tmp_path):
    table = synthetic_table()
    table.add([KernelTiming(synthetic_kernel(5, op), 1e-5, 0, 1) for op in ("Relu", "Add")], "s")
    write_table(tmp_path / "t.jsonl", table)
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    keys = [(row["kernel"]["op"], row["id"]) for row in rows if "kernel" in row]
    assert keys == sorted(keys)
    assert len(keys) == 8


def test_a_kernel_that_only_a_graph_names_is_kept(tmp_path):
    table = synthetic_table()
    table.insert(KERNEL)
    write_table(tmp_path / "t.jsonl", table)
    assert read_table(tmp_path / "t.jsonl").kernel(KERNEL.id) == KERNEL


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(TableError, match=r"no\.jsonl does not exist"):
        read_table(tmp_path / "no.jsonl")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path)


def test_a_stale_table_is_refused_with_the_reason_and_the_remedy(path):
    now = synthetic_identity("1.32.0")
    expected = r"is stale: onnxruntime 1\.32\.0 here, 1\.31\.1 in the table; measure anew with: trimtab profile"
    with pytest.raises(TableError, match=expected):
        read_table(path, expect=now)
    content = path.read_bytes()
    with pytest.raises(TableError, match=expected):
        update_table(path, add_kernel, identity=now)
    assert path.read_bytes() == content


def test_another_schema_version_is_refused_and_left_alone(path):
    content = path.read_text().replace('"schema":1', '"schema":2', 1)
    path.write_text(content)
    for read in (read_table, salvage_table, repair_table, lambda each: update_table(each, add_kernel, identity=HERE)):
        with pytest.raises(TableError, match="has schema version 2, this Trimtab reads 1"):
            read(path)
    assert path.read_text() == content


def test_a_file_that_is_too_large_is_refused(path):
    os.truncate(path, MAX_TEXT_BYTES + 1)
    for read in (read_table, salvage_table):
        with pytest.raises(TableError, match=f"has {MAX_TEXT_BYTES + 1} bytes; at most"):
            read(path)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"op,ms\nConv,1\n", b"[" * 200_000, b"\xff\xfe\x00", b"[1]\n", b"{}\n"]
)
def test_a_file_that_is_no_table_is_refused(path, content):
    path.write_bytes(content)
    for read in (read_table, salvage_table):
        with pytest.raises(TableError, match="does not begin with the header of a kernel table"):
            read(path)


@pytest.mark.parametrize("n_lines", range(1, 11))
@pytest.mark.parametrize("tail", ["", "half"])
def test_truncated_at_a_line_boundary_or_behind_it_the_rest_is_salvaged(path, n_lines, tail):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:n_lines]) + lines[n_lines][: len(lines[n_lines]) // 2 if tail else 0])
    n_kernels, n_graphs = min(n_lines - 1, 6), max(n_lines - 7, 0)
    message = rf"is truncated: the footer is missing.*; {n_kernels} kernels and {n_graphs} graphs are intact; .* repair"
    with pytest.raises(TableError, match=message):
        read_table(path)
    salvage = salvage_table(path)
    assert (len(salvage.table), len(salvage.table.graphs)) == (n_kernels, n_graphs)
    assert len(salvage.losses) == (2 if tail else 1)


def test_truncated_anywhere_it_is_refused_and_whole_lines_are_salvaged(path):
    content = path.read_bytes()
    header_bytes = content.index(b"\n") + 1
    for n_bytes in random.Random(0).sample(range(len(content) - 1), 300):
        path.write_bytes(content[:n_bytes])
        with pytest.raises(TableError):
            read_table(path)
        if n_bytes >= header_bytes:
            salvage = salvage_table(path)
            found = len(salvage.table) + len(salvage.table.graphs)
            # a line that lacks nothing but its newline is whole
            assert found in (content[:n_bytes].count(b"\n") - 1, content[: n_bytes + 1].count(b"\n") - 1)


def test_a_lost_last_newline_is_no_damage(path):
    path.write_bytes(path.read_bytes()[:-1])
    assert read_table(path) == synthetic_table()


def test_no_single_changed_byte_goes_unseen(path):
    content, rng = path.read_bytes(), random.Random(0)
    for place in rng.sample(range(len(content)), 300):
        altered = bytearray(content)
        altered[place] ^= 1 << rng.randrange(8)
        path.write_bytes(altered)
        with pytest.raises(TableError):
            read_table(path)


def test_an_altered_entry_is_named_by_its_line_and_the_others_are_salvaged(path):
    lines = path.read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace("e-05", "e-07", 1)
    path.write_text("".join(lines))
    with pytest.raises(TableError, match=r"is damaged: line 4 is not as it was written"):
        read_table(path)
    assert len(salvage_table(path).table) == 5


def test_lines_taken_out_are_missed(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[4:]))
    with pytest.raises(TableError, match=r"was altered: the footer counts 6 kernels and 3 graphs .*; 4 kernels"):
        read_table(path)


def test_lines_swapped_are_seen_by_the_digest(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(TableError, match="the footer's sha256 is another"):
        read_table(path)


def test_lines_after_the_footer_are_refused(path):
    path.write_text(path.read_text() + path.read_text())
    with pytest.raises(TableError, match="is damaged"):
        read_table(path)
    assert salvage_table(path).table == synthetic_table()


def test_a_line_that_is_written_by_the_format_is_read(tmp_path):
    path = tmp_path / "t.jsonl"
    write_lines(path, seal({"id": KERNEL.id, "kernel": KERNEL.to_json(), "observations": [GOOD_ROW]}))
    assert read_table(path).latency(KERNEL).median_s == 1e-5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"observations": [[float("nan"), 0, 1, "s"]]}, "NaN is not a number"),
        ({"observations": [[float("inf"), 0, 1, "s"]]}, "Infinity is not a number"),
        ({"observations": [[-1e-5, 0, 1, "s"]]}, "median_s must be a number of seconds"),
        ({"observations": [[1e-5, -1e-7, 1, "s"]]}, "iqr_s must be a number of seconds"),
        ({"observations": [[1e-5, 0, 0, "s"]]}, "runs must be a whole number"),
        ({"observations": [[1e-5, 0, 1, ""]]}, "source must be"),
        ({"observations": [[1e-5, 0]]}, "has observations that are not lists"),
        ({"observations": 7}, "has observations that are not lists"),
        ({"observations": None}, "has observations that are not lists"),
        ({"id": "0123456789abcdef"}, "has a wrong id"),
        ({"kernel": {"op": "Conv"}}, "a kernel must be an object"),
        ({"kernel": "Conv"}, "a kernel must be an object"),
        ({"kernel": {"op": "Conv", "inputs": ["float32"], "outputs": []}}, "a tensor must read like"),
    ],
)
def test_a_malformed_kernel_is_named_by_its_line(tmp_path, changes, says):
    path, good = tmp_path / "t.jsonl", {"id": KERNEL.id, "kernel": KERNEL.to_json(), "observations": [GOOD_ROW]}
    write_lines(path, seal(good), seal({**good, **changes}), kernels=2)
    with pytest.raises(TableError, match=f"line 3 .*{says}"):
        read_table(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"latency_s": -1}, "latency_s must be a number of seconds"),
        ({"runs": None}, "runs must be a whole number"),
        ({"model": ""}, "model must be"),
        ({"counts": {}}, "a graph must count each of its kernels once"),
        ({"counts": {"a": 0}}, "a kernel's count must be a whole number"),
        ({"counts": None}, "is neither a kernel nor a graph"),
    ],
)
def test_a_malformed_graph_is_named_by_its_line(tmp_path, changes, says):
    path = tmp_path / "t.jsonl"
    good = {"counts": {"a": 1}, "latency_s": 1e-3, "iqr_s": 0, "runs": 5, "model": "m", "source": "s"}
    write_lines(path, seal({**good, **changes}), kernels=0, graphs=1)
    with pytest.raises(TableError, match=f"line 2 .*{says}"):
        read_table(path)


@pytest.mark.parametrize("line", ['{"check":"00000000","id":1}', "[" * 100_000, "\udcff", "9" * 5000, ""])
def test_junk_in_a_line_is_named_by_its_line(tmp_path, line):
    path = tmp_path / "t.jsonl"
    write_lines(path, seal({"id": KERNEL.id, "kernel": KERNEL.to_json(), "observations": [GOOD_ROW]}))
    lines = path.read_text().splitlines()
    path.write_bytes("\n".join([lines[0], line, *lines[1:]]).encode(errors="surrogateescape"))
    with pytest.raises(TableError, match="line 2 "):
        read_table(path)
    assert KERNEL in salvage_table(path).table


def test_an_update_begins_a_table_where_there_is_none(tmp_path):
    path = tmp_path / "deep" / "table.jsonl"
    written = update_table(path, add_kernel, identity=HERE)
    assert read_table(path, expect=HERE) == written
    assert KERNEL in written


def test_an_update_that_fails_leaves_the_file_as_it_was(path):
    content = path.read_bytes()

    def fail(table):
        add_kernel(table)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        update_table(path, fail, identity=HERE)
    assert path.read_bytes() == content


def test_an_update_sets_a_damaged_file_aside_and_goes_on(path, caplog):
    damaged = path.read_bytes()[:-200]
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        written = update_table(path, add_kernel, identity=HERE)
    assert read_table(path) == written
    assert len(written) == 7
    assert path.with_name("table.jsonl.damaged-1").read_bytes() == damaged
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the footer is missing" in caplog.text
    assert "table.jsonl.damaged-1" in caplog.text


def test_an_update_of_a_file_without_header_begins_anew_and_keeps_it(path, caplog):
    path.write_bytes(b"not a table\n")
    path.with_name("table.jsonl.damaged-1").write_bytes(b"an older one")
    written = update_table(path, add_kernel, identity=HERE)
    assert read_table(path) == written
    assert path.with_name("table.jsonl.damaged-1").read_bytes() == b"an older one"
    assert path.with_name("table.jsonl.damaged-2").read_bytes() == b"not a table\n"
    assert "a new table begins" in caplog.text


def test_an_update_waits_no_longer_than_it_is_told(path):
    with FileLock(f"{path}.lock"), pytest.raises(TransientError, match=r"others kept writing .* for 0\.05 s"):
        update_table(path, add_kernel, identity=HERE, timeout_s=0.05)


def test_an_update_removes_what_killed_writers_left(path):
    old, new = path.with_name(".table.jsonl.killed"), path.with_name(".table.jsonl.writing")
    for each in (old, new):
        each.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    update_table(path, add_kernel, identity=HERE)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_folder_that_cannot_be_written_is_a_named_refusal(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(TableError, match="cannot be written"):
        update_table(tmp_path / "file" / "table.jsonl", add_kernel, identity=HERE)
    with pytest.raises(TableError, match="cannot be written"):
        write_table(tmp_path / "file" / "table.jsonl", synthetic_table())


def test_a_repair_writes_what_is_intact_and_keeps_the_rest(path):
    damaged = path.read_bytes()[:-200]
    path.write_bytes(damaged)
    salvage, aside = repair_table(path)
    assert read_table(path) == salvage.table
    assert aside.read_bytes() == damaged
    assert "kernels and 2 graphs are intact; the footer is missing" in salvage.describe()


def test_a_sound_table_needs_no_repair(path):
    content = path.read_bytes()
    salvage, aside = repair_table(path)
    assert (salvage.losses, aside, path.read_bytes()) == ((), None, content)
