"""A kernel table that an earlier version wrote stays readable; the file here is never written again."""

from pathlib import Path

import pytest
from trimtab.hw_profiles.kernels.kernel import Kernel, Tensor, pack_attributes
from trimtab.hw_profiles.kernels.kernel_table import GraphObservation, Observation
from trimtab.hw_profiles.kernels.table_file import read_table, write_table
from trimtab.hw_profiles.kernels.table_identity import TableIdentity

PATH = Path(__file__).parent / "kernel-table-v1.jsonl"
IMAGE = Tensor("float32", (1, 32, 112, 112), layout="nchwc16")
CONV = Kernel(
    "com.microsoft.nchwc.Conv",
    inputs=(IMAGE, Tensor("float32", (32, 1, 3, 3), is_constant=True)),
    outputs=(IMAGE,),
    implementation="brgemm_avx512",
    attributes=pack_attributes(
        {"group": 32, "pads": [1, 1, 1, 1], "activation": "Clip", "activation_params": [0.0, 6.0]}
    ),
)
OPEN = Tensor("float32", (1, -1, 4))
ADD = Kernel("Add", inputs=(OPEN, Tensor("float32", (), is_constant=True)), outputs=(OPEN,))
RELU = Kernel("Relu", inputs=(Tensor("uint8", (1, 8)),), outputs=(Tensor("uint8", (1, 8)),))


@pytest.fixture(scope="module")
def table():
    return read_table(PATH)


def test_schema_1_keeps_its_identity(table):
    assert table.identity == TableIdentity(
        "Intel(R) Xeon(R) Processor",
        ("avx2", "avx512_vnni"),
        "onnxruntime",
        "1.31.1",
        {"device": "cpu", "precision": None, "threads": 1},
    )


def test_schema_1_keeps_kernels_with_their_observations(table):
    assert table.observations(CONV) == (
        Observation(0.00012345, 1.2e-6, 30, "profile 2026-11-22 mobilenet_v2 #1"),
        Observation(0.0001, 2e-6, 60, "search größe trial 7"),
    )
    assert table.observations(ADD) == (Observation(4.5e-6, 0, 30, "profile 2026-11-22 mobilenet_v2 #1"),)


def test_schema_1_keeps_graphs_and_the_kernels_that_only_they_name(table):
    assert table.kernels() == (ADD, CONV)
    assert table.known_kernels() == (ADD, RELU, CONV)
    counts = ((CONV.id, 2), (ADD.id, 1), (RELU.id, 3))
    source = "profile 2026-11-22 mobilenet_v2 #1"
    assert table.graphs == (GraphObservation(counts, 0.0068, 5.5e-5, 50, "mobilenet_v2", source),)


def test_schema_1_is_what_is_written_today(table, tmp_path):
    write_table(tmp_path / "again.jsonl", table)
    assert (tmp_path / "again.jsonl").read_bytes() == PATH.read_bytes()
