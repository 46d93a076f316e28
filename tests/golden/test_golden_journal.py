"""A journal that an earlier version wrote stays readable; the files here are never written again."""

import shutil
from pathlib import Path

import pytest
from trimtab.evaluators.measurement import Estimate, Measurement
from trimtab.hw_profiles.energy.energy import Energy
from trimtab.search.journal import Journal
from trimtab.search.record import Record, Status
from trimtab.spaces.policy import GraphTreatment, Policy
from trimtab.spaces.treatment import Treatment


@pytest.fixture
def journal(tmp_path):
    path = shutil.copy(Path(__file__).parent / "journal_schema_1.jsonl", tmp_path)
    with Journal.open(Path(path)) as journal:
        yield journal


def test_schema_1_keeps_its_fingerprints(journal):
    assert journal.fingerprints == {"model": "0123456789abcdef", "data": "fedcba9876543210"}


def test_schema_1_keeps_every_status_in_order_of_ids(journal):
    assert [(record.id, record.status) for record in journal.records] == [
        (0, Status.COMPLETE),
        (1, Status.INFEASIBLE),
        (2, Status.FAILED),
    ]


def test_schema_1_keeps_measurements(journal):
    untouched = journal.records[0]
    assert untouched.policy.is_untouched
    assert untouched.measurement.accuracy == Estimate(0.9, 0.001, 1000)
    assert untouched.measurement.latency.median_s == untouched.measurement.latency.reference_s == 0.01
    assert (untouched.measurement.size_bytes, untouched.measurement.peak_memory_bytes) == (1_000_000, 2_000_000)


def test_schema_1_keeps_every_field_of_a_record(journal):
    assert journal.records[2] == Record(
        id=2,
        policy=Policy(
            {
                "layer0": Treatment(weight_dtype="int8", activation_dtype="int8"),
                "layer1": Treatment(weight_dtype="int4", granularity="block32"),
            },
            GraphTreatment("gelu", "entropy", ("add", "pool"), "bfloat16"),
        ),
        status=Status.FAILED,
        # schema 1 held bare joules; where they came from was not written down
        measurement=Measurement(
            accuracy=Estimate(0.5, 0.01, 100), size_bytes=123, energy=Energy(0.25, 0.0, 1, "unknown")
        ),
        cost_s=2.5,
        seed=13,
        origin="tpe",
        error="given up after 2 attempts: the worker died",
    )


def test_schema_1_can_be_continued(journal):
    journal.append(Record(3, Policy({}), Status.PRUNED, Measurement(), 0.0, 14, "random"))
    assert len(journal.records) == 4
