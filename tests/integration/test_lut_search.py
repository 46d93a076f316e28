"""A device that is known by its table alone: searched, applied and verified like any other."""

import importlib.util
import itertools
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from trimtab.core.errors import MeasurementError, SpecError
from trimtab.evaluators.device import KernelDevice, build_device
from trimtab.evaluators.latency import TimingSettings, measure_together
from trimtab.evaluators.testing import example_artifact
from trimtab.experiments.preparation import prepare
from trimtab.experiments.spec_file import load_spec
from trimtab.hw_profiles.target import Target
from trimtab.spaces.policy import GraphTreatment

boards_spec = importlib.util.spec_from_file_location("boards", Path(__file__).with_name("boards.py"))
boards = importlib.util.module_from_spec(boards_spec)
boards_spec.loader.exec_module(boards)

OPTIONS = ("none", "int8")
PLAIN_GRAPH = {"fusion": ["none"], "calibration": ["minmax"], "quantized_ops": [[]], "precision": ["float32"]}


@pytest.fixture
def board(workplace):
    return boards.write_board(workplace.path)


@pytest.fixture
def device(board):
    return build_device(Target("lut", str(board)))


def write_spec(place, **replaced):
    parts = {
        "target": {"runtime": "lut", "device": "board.yaml"},
        "space": [{"layers": "*", "quantize": list(OPTIONS)}],
        "graph": PLAIN_GRAPH,
        "budget": {"accuracy_drop": 0.99},
        "search": {"trials": 8},
        **replaced,
    }
    return place.write_spec(**parts)


def found_run(ended):
    assert ended.bug is None, ended.bug
    assert ended.exit_code == 0, ended.stderr
    return json.loads(ended.stdout)


def test_prices_are_those_that_were_added_up_by_hand(workplace, board):
    preparation = prepare(load_spec(write_spec(workplace)))
    first, second = (group.layers for group in preparation.space.groups)
    treatments = {option.label: option for option in preparation.space.options[0]}
    for pair in itertools.product(OPTIONS, repeat=2):
        chosen = {name: treatments[label] for names, label in zip((first, second), pair, strict=True) for name in names}
        artifact = preparation.pipeline.build(chosen, GraphTreatment())
        latency = measure_together([preparation.device.load(artifact)], {}, TimingSettings())[0]
        assert latency.median_s * 1e6 == pytest.approx(boards.PRICES_US[pair])
        assert (latency.source, latency.iqr_s) == ("table", 0.0)


def test_a_search_finds_the_policy_that_the_table_calls_fastest(workplace, board):
    result = found_run(workplace.call("search", write_spec(workplace), "--json"))
    best = min(boards.PRICES_US, key=boards.PRICES_US.__getitem__)
    assert best == ("int8", "none")
    [row] = [row for row in result["rows"] if row["label"] == "best policy"]
    assert row["final"]["latency"]["median_s"] * 1e6 == pytest.approx(boards.PRICES_US[best])
    policy = json.loads(Path(result["policy"]).read_text())
    treated = [group for group, treatment in policy["groups"].items() if treatment]
    assert len(treated) == 1
    assert policy["target"]["device"] == str(board)


def test_an_artifact_is_applied_and_verified_against_the_table(workplace, board):
    result = found_run(workplace.call("search", write_spec(workplace), "--json"))
    ended = workplace.call("apply", result["policy"], "--model", "tiny.onnx", "--out", "made")
    assert ended.exit_code == 0, ended.stderr
    verified = workplace.call("verify", "made", "--json")
    assert verified.exit_code == 0, verified.stderr
    [latency] = [check for check in json.loads(verified.stdout)["checks"] if check["name"] == "latency"]
    assert latency["achieved"] == f"{boards.PRICES_US['int8', 'none'] / 1e3:.3f} ms (table)"
    shown = " ".join(workplace.call("verify", "made").stdout.split())
    assert "every promise is kept" in shown

    slower = {"inference_us": 100}
    boards.write_board(workplace.path, constants=slower)
    broken = workplace.call("verify", "made")
    assert broken.exit_code == 1

    board.unlink()
    elsewhere = workplace.call("verify", "made", "--json")
    assert elsewhere.exit_code == 0, elsewhere.stderr
    [latency] = [check for check in json.loads(elsewhere.stdout)["checks"] if check["name"] == "latency"]
    assert latency["achieved"] == "not checked"


def test_a_run_does_not_go_on_with_another_table(workplace, board):
    result = found_run(workplace.call("search", write_spec(workplace), "--json"))
    boards.write_board(workplace.path, constants={"inference_us": 6})
    ended = workplace.call("resume", result["run"])
    assert ended.exit_code == 2
    assert "target" in ended.stderr


def test_a_spec_finds_its_board_beside_itself(workplace, board, monkeypatch, tmp_path):
    name = write_spec(workplace)
    monkeypatch.chdir(tmp_path)
    assert load_spec(workplace.path / name).target.device == str(board)


def test_a_missing_board_is_named(workplace):
    ended = workplace.call("plan", write_spec(workplace))
    assert ended.exit_code == 2
    assert f"board {workplace.path / 'board.yaml'} does not exist" in ended.stderr


def test_a_plan_can_be_shown(workplace, board):
    ended = workplace.call("plan", write_spec(workplace, space=None))
    assert ended.exit_code == 0, ended.stderr
    assert "the target does not run int8_dynamic on linear layers" in ended.stdout


def test_nothing_can_be_timed_on_it(device):
    assert isinstance(device, KernelDevice)
    with pytest.raises(MeasurementError, match="known by its table alone"):
        device.time_kernels(example_artifact(), {})


def test_predicted_kernels_are_said_to_be_predicted_and_warned_of_once(device, caplog):
    artifact = example_artifact(64)
    inputs = {"x": np.zeros((1, 64), np.float32)}
    with caplog.at_level(logging.WARNING):
        latencies = [measure_together([device.load(artifact)], inputs, TimingSettings())[0] for _ in range(2)]
    assert {latency.source for latency in latencies} == {"model"}
    [record] = [record for record in caplog.records if record.name.endswith("lut_device")]
    assert "is predicted, because its table does not hold those kernels" in record.getMessage()


def test_a_declared_error_is_the_standard_error_of_known_prices(workplace):
    board = boards.write_board(workplace.path, error=0.1)
    artifact = prepare(load_spec(write_spec(workplace))).original
    price = build_device(Target("lut", str(board))).price(artifact)
    assert price.standard_error_s == pytest.approx(0.1 * price.seconds)
    assert price.unseen_share == 0


def test_whole_graphs_of_the_table_correct_prices_beyond_the_constants(workplace):
    from trimtab.hw_profiles.kernels.kernel_table import GraphObservation
    from trimtab.hw_profiles.kernels.table_file import read_table, write_table
    from trimtab.hw_profiles.latency import Latency

    board = boards.write_board(workplace.path)
    artifact = prepare(load_spec(write_spec(workplace))).original
    counts = build_device(Target("lut", str(board))).lower(artifact).counts
    table = read_table(workplace.path / "board.jsonl")
    for number in range(20):
        table.add_graph(GraphObservation.of(counts, Latency(20e-6, 0.0, 30), model="m", source=f"by hand {number}"))
    write_table(workplace.path / "board.jsonl", table)
    price = build_device(Target("lut", str(board))).price(artifact)
    assert price.seconds == pytest.approx(20e-6, rel=0.03)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"fusion": {"patterns": ["Conv > Rellu"]}}, r"ONNX has no operator 'Rellu'; did you mean 'Relu'\?"),
        ({"fusion": {"free": ["Xyzzy12"]}}, r"ONNX has no operator 'Xyzzy12'; write other domains out"),
    ],
)
def test_misspelt_operators_are_refused(workplace, replaced, message):
    board = boards.write_board(workplace.path, **replaced)
    with pytest.raises(SpecError, match=message):
        build_device(Target("lut", str(board)))


def test_threads_and_board_must_be_those_of_the_table(board):
    with pytest.raises(SpecError, match=r"is for 1 threads, the target says 2; set target\.threads to 1"):
        build_device(Target("lut", str(board), threads=2))
    with pytest.raises(SpecError, match="needs a board file"):
        build_device(Target("lut"))


def test_the_identity_follows_the_table_and_not_the_machine(workplace, board):
    first = build_device(Target("lut", str(board))).identify()
    assert (first.device, first.features) == (boards.NAME, ())
    content = yaml.safe_load(board.read_text())
    board.write_text(yaml.safe_dump({**content, "constants": {"inference_us": 6}}))
    assert build_device(Target("lut", str(board))).identify().id != first.id
    copy = shutil.copytree(workplace.path, workplace.path / "copy")
    moved = build_device(Target("lut", str(copy / "board.yaml"))).identify()
    assert replace(moved, target=first.target) == replace(
        build_device(Target("lut", str(board))).identify(), target=first.target
    )


def test_precisions_that_the_board_does_not_run_are_refused(device):
    with pytest.raises(MeasurementError, match="runs in: float32; got an artifact for float16"):
        device.load(replace(example_artifact(), precision="float16"))
