"""Several processes write one kernel table at once, and one of them is killed: no finished update is lost."""

import os
import signal
import subprocess
import sys

import pytest
from trimtab.hw_profiles.kernels.kernel_table import KernelTable
from trimtab.hw_profiles.kernels.table_file import read_table
from trimtab.hw_profiles.testing import synthetic_identity, synthetic_kernel

N_ENTRIES = 50
#: adds kernels one by one; says when it holds the file, and when an update is finished
WRITER = """
import sys
from pathlib import Path
from trimtab.hw_profiles.kernels.kernel import KernelTiming
from trimtab.hw_profiles.kernels.table_file import update_table
from trimtab.hw_profiles.testing import synthetic_identity, synthetic_kernel

path, writer, n_entries = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for entry in range(n_entries):
    def add(table):
        print("adding", entry, flush=True)
        kernel = synthetic_kernel(1 + writer * n_entries + entry)
        table.add([KernelTiming(kernel, 1e-5, 1e-7, 30)], f"writer {writer} entry {entry}")
    update_table(path, add, identity=synthetic_identity(), timeout_s=200)
    print("done", entry, flush=True)
"""


def start_writer(path, writer):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(writer), str(N_ENTRIES)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when(process, line):
    """Reads what a writer says until it says this, and kills it; returns all that it said."""
    said = []
    for text in process.stdout:
        said.append(text.strip())
        if said[-1] == line:
            os.kill(process.pid, signal.SIGKILL)
            break
    said += [text.strip() for text in process.stdout]
    process.wait()
    process.stderr.close()
    process.stdout.close()
    return said


def finish(process):
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stdout.splitlines()


def missing(table: KernelTable, writer, said):
    """The entries whose update was finished and that the table lacks."""
    entries = [int(text.split()[1]) for text in said if text.startswith("done")]
    return [entry for entry in entries if synthetic_kernel(1 + writer * N_ENTRIES + entry) not in table]


@pytest.mark.slow
@pytest.mark.parametrize("n_writers", [2, 4])
# "adding": it holds the lock and is about to write; "done": anywhere in the update after that
@pytest.mark.parametrize("last_words", ["adding 17", "done 23"])
def test_no_finished_update_is_lost_when_one_of_several_writers_is_killed(tmp_path, n_writers, last_words):
    path = tmp_path / "table.jsonl"
    writers = [start_writer(path, writer) for writer in range(n_writers)]
    said = [kill_when(writers[0], last_words), *map(finish, writers[1:])]

    table = read_table(path, expect=synthetic_identity())
    assert [missing(table, writer, words) for writer, words in enumerate(said)] == [[]] * n_writers
    assert all(words.count(f"done {entry}") == 1 for words in said[1:] for entry in range(N_ENTRIES))
    # what was being written when it was killed is there whole, or not at all
    n_finished = sum(text.startswith("done") for words in said for text in words)
    assert len(table) in (n_finished, n_finished + 1)
    assert not list(tmp_path.glob("*.damaged-*"))
