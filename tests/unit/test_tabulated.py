"""Tabulated and synthetic problems: what is stored is what was measured, and every optimum is one."""

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trimtab.compressors.testing import random_inputs
from trimtab.core.errors import MeasurementError, PolicyError, RunError, SpecError
from trimtab.evaluators.dataset import Dataset, Split
from trimtab.evaluators.device import build_device
from trimtab.evaluators.latency import TimingSettings
from trimtab.evaluators.measurement import Estimate
from trimtab.experiments.tabulated import measure
from trimtab.experiments.tabulated.assemble import assemble_table, measure_noise
from trimtab.experiments.tabulated.chain_optimum import Chain, find_chain_optimum
from trimtab.experiments.tabulated.hypervolume import hypervolume
from trimtab.experiments.tabulated.measurings import MeasuringJournal, Measurings, Timing, read_measurings
from trimtab.experiments.tabulated.regret import Optimum
from trimtab.experiments.tabulated.synthetic import SyntheticShape, make_synthetic
from trimtab.experiments.tabulated.table import Noise, Original, Table, read_table, write_table
from trimtab.experiments.tabulated.table_builder import TableBuilder
from trimtab.experiments.tabulated.table_recipes import TABLE_RECIPES, Choice, TableRecipe, list_vectors
from trimtab.experiments.tabulated.tabulated_problem import PROBLEMS, TABLE_FOLDER, Question, ask_table, load_problem
from trimtab.hw_profiles.target import Target
from trimtab.search.knowledge import Knowledge
from trimtab.search.solver.additive_cost import AdditiveCost
from trimtab.spaces.layer import Group
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import GraphOptions, Space
from trimtab.spaces.treatment import QUANTIZE_OPTIONS, Treatment

NONE, INT8, HALF = Treatment(), QUANTIZE_OPTIONS["int8"], QUANTIZE_OPTIONS["float16"]
SPACE = Space((Group("a", ("a",)), Group("b", ("b",))), ((NONE, INT8), (NONE, INT8, HALF)), GraphOptions())
ORIGINAL = Original(0.002, Estimate(0.9, 0.0095, 1000), 1000)


def small_table(**changes: list[float]) -> Table:
    """Six policies: (a, b) in none/int8 × none/int8/half."""
    columns = {
        "status": [0, 0, 0, 0, 0, 0],
        "ratio": [1.0, 0.9, 1.0, 0.8, 0.5, 0.75],
        "ratio_error": [0.01] * 6,
        "runs": [40] * 6,
        "drop": [0.0, 0.004, 0.0, 0.006, 0.05, 0.009],
        "drop_error": [0.0, 0.001, 0.0, 0.001, 0.007, 0.001],
        "size_bytes": [1000, 800, 900, 700, 300, 600],
        **changes,
    }
    vectors = np.array(list(list_vectors(SPACE)), np.uint8)
    return Table(
        "small", SPACE, ORIGINAL, Noise(0.01, 0.008, 12), vectors, {k: np.array(v) for k, v in columns.items()}
    )


def policy(a: int, b: int) -> Policy:
    return SPACE.decode([a, b, *[0] * 8])


def count_cells(points: np.ndarray, reference: np.ndarray) -> int:
    """The volume for whole numbers: unit cells that some point dominates."""
    cells = itertools.product(*(range(side) for side in reference))
    return sum(any((point <= cell).all() for point in points) for cell in np.array(list(cells)))


@pytest.mark.parametrize("n_axes", [2, 3])
def test_the_hypervolume_is_the_number_of_dominated_cells(n_axes: int) -> None:
    rng = np.random.default_rng(n_axes)
    for _ in range(40):
        points = rng.integers(-1, 9, (int(rng.integers(0, 8)), n_axes))
        reference = np.full(n_axes, 7)
        inside = np.maximum(points, 0)  # cells start at 0: what lies before is cut off in both counts
        assert hypervolume(inside, reference) == count_cells(inside, reference)


def test_a_point_beyond_the_reference_adds_nothing() -> None:
    assert hypervolume(np.array([[0.5, 0.5], [2.0, -9.0]]), np.ones(2)) == 0.25


def test_a_hypervolume_of_four_axes_is_refused() -> None:
    with pytest.raises(SpecError, match="n, 2"):
        hypervolume(np.zeros((1, 4)), np.ones(4))


def test_every_policy_of_a_space_has_one_vector() -> None:
    graph = GraphOptions(calibration=("minmax", "mse"), quantized_ops=((), ("add",)), precision=("float32", "bfloat16"))
    space = Space(SPACE.groups, SPACE.options, graph)
    vectors = list(list_vectors(space))
    assert len(vectors) == len({space.decode(vector) for vector in vectors}) == space.size


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    knowledge = Knowledge({(0,) * 8: AdditiveCost(1.0, (np.zeros(2), np.zeros(3)))}, (np.zeros(2), np.ones(3)))
    table = small_table().with_knowledge(knowledge)
    write_table(tmp_path / "t.npz", table)
    found = read_table(tmp_path / "t.npz")
    assert (found.space, found.original, found.noise) == (table.space, table.original, table.noise)
    assert found.knowledge.to_json() == knowledge.to_json()
    for row in range(6):
        seen, stored = found.measurement(row), table.measurement(row)
        assert seen.size_bytes == stored.size_bytes
        assert seen.latency is not None
        assert stored.latency is not None
        assert seen.latency.ratio == pytest.approx(stored.latency.ratio, rel=1e-6)


def test_equal_tables_give_equal_files(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_table(tmp_path / name, small_table())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_measurement_has_the_standard_errors_of_its_table() -> None:
    found = small_table().measurement(1)
    assert found.latency is not None
    assert found.latency.error_s == pytest.approx(0.01 * ORIGINAL.latency_s)
    assert found.latency.median_s == pytest.approx(0.9 * ORIGINAL.latency_s)
    assert found.accuracy_drop == Estimate(0.004, 0.001, 1000)
    assert found.accuracy is not None
    assert found.accuracy.mean == pytest.approx(0.896)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"not a table"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(RunError, match="is not a table"):
        read_table(tmp_path / "t.npz")


def test_a_file_with_objects_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    columns = dict.fromkeys(("vectors", *small_table().columns), np.zeros(1))
    np.savez(buffer, header=np.array([{"schema_version": 1}], dtype=object), **columns)
    (tmp_path / "t.npz").write_bytes(buffer.getvalue())
    with pytest.raises(RunError, match="is not a table"):
        read_table(tmp_path / "t.npz")


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RunError, match="6 finite entries"):
        small_table(ratio=[1.0, np.nan, 1.0, 1.0, 1.0, 1.0])


def test_regret_is_against_the_best_policy_within_the_budget() -> None:
    problem = ask_table("small", Question("small", "latency", accuracy_drop=0.01), small_table())
    # the fastest, (1, 1), loses 5 %; next is (1, 2) with a drop of 0.9 % ± 0.1 %, within 1 % at 80 % confidence
    assert problem.optimum.policy == policy(1, 2)
    assert problem.optimum.objective == pytest.approx(0.75 * ORIGINAL.latency_s)
    seen = problem.regrets([policy(1, 1), policy(0, 1), policy(1, 0), policy(0, 1), policy(1, 2)])
    expected = np.array([1.0, 1.0, 0.9, 0.8, 0.8, 0.75]) / 0.75 - 1.0
    np.testing.assert_allclose(seen, expected, rtol=1e-6, atol=1e-12)


def test_the_drop_is_judged_with_its_margin() -> None:
    # 0.9 % + 0.8416 · 0.1 % = 0.98 % is more than 0.95 %: then (1, 0) is the best, with 0.6 % ± 0.1 %
    problem = ask_table("small", Question("small", "latency", accuracy_drop=0.0095), small_table())
    assert problem.optimum.policy == policy(1, 0)


def test_regret_is_infinite_while_nothing_keeps_the_budget() -> None:
    problem = ask_table("small", Question("small", "size", accuracy_drop=0.01, latency=0.85), small_table())
    assert problem.regrets([policy(0, 1), policy(1, 0)]).tolist() == [np.inf, np.inf, pytest.approx(700 / 600 - 1)]


def test_what_failed_is_no_answer() -> None:
    table = small_table(status=[0, 1, 2, 0, 0, 0])
    problem = ask_table("small", Question("small", "latency", accuracy_drop=0.01), table)
    with pytest.raises(PolicyError):
        problem.measure(policy(0, 1))
    with pytest.raises(MeasurementError):
        problem.measure(policy(0, 2))
    assert problem.regrets([policy(0, 1), policy(0, 2)])[-1] == pytest.approx(1 / 0.75 - 1)


def test_the_front_dominates_as_much_as_the_whole_table() -> None:
    problem = ask_table("small", Question("small", "latency", accuracy_drop=0.01), small_table())
    front = [problem.table.space.decode(problem.table.vectors[row]) for row in problem.front]
    assert problem.relative_hypervolume(front) == pytest.approx(1.0)
    assert problem.relative_hypervolume([]) == 0.0
    # (0, 1) alone: 0.1 of latency times 0.05 − 0.004 of drop
    points = np.array([[0.9, 0.004], [0.8, 0.006], [0.75, 0.009], [1.0, 0.0]])
    whole = sum(
        width * (0.05 - drop) for width, drop in zip((0.1, 0.1, 0.05), points[:3, 1], strict=True)
    )  # (1, 1) lies at the edge: 0.05 of drop
    assert problem.relative_hypervolume([policy(0, 1)]) == pytest.approx(0.1 * 0.046 / whole, rel=1e-5)


def test_an_optimum_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="positive and finite"):
        Optimum(Policy({}), 0.0)


def test_noise_is_that_of_one_timing() -> None:
    rng = np.random.default_rng(0)
    logs = rng.normal(0.0, 0.02, (4000, 2))
    timings = [[Timing(float(np.exp(a)), 0.0, 40, 1.0), Timing(float(np.exp(b)), 0.0, 40, 1.0)] for a, b in logs]
    found = measure_noise([*timings, [Timing(9.0, 0.0, 40, 1.0)]])
    assert (found.n_pairs, found.deviation) == (4000, pytest.approx(0.02, rel=0.05))
    assert found.robust_deviation == pytest.approx(0.02, rel=0.05)


def lines_of(vector: tuple[int, ...], artifact: str, *, reference_s: float, median_s: float) -> list[dict[str, object]]:
    return [
        {"kind": "timing", "artifact": artifact, "median_s": median_s, "iqr_s": 0.0, "runs": 40,
         "reference_s": reference_s},
        {"kind": "score", "artifact": artifact, "accuracy": 0.9, "drop": 0.01, "error": 0.003},
        {"kind": "policy", "vector": list(vector), "artifact": artifact, "size_bytes": 500},
    ]  # fmt: skip


def test_disturbed_timings_are_left_out_where_there_are_others() -> None:
    vectors, found = list(list_vectors(SPACE)), Measurings()
    header = {"fingerprints": {}, "profile": {}, "date": "", "accuracy": ORIGINAL.accuracy.to_json(), "size_bytes": 9}
    found.add({"kind": "header", **header})
    for vector in vectors[:5]:
        for line in lines_of(vector, "x", reference_s=1.0, median_s=0.5):
            found.add(line)
    for reference_s, median_s in ((1.5, 1.2), (1.0, 0.7), (1.02, 0.714)):
        for line in lines_of(vectors[5], "y", reference_s=reference_s, median_s=median_s):
            found.add(line)
    table = assemble_table("small", SPACE, vectors, found)
    assert table.columns["ratio"][table.rows[vectors[5]]] == pytest.approx(0.7)
    assert table.columns["ratio"][table.rows[vectors[0]]] == pytest.approx(0.5)


def test_a_table_is_not_made_of_half_a_measuring() -> None:
    with pytest.raises(RunError, match="6 of 6 policies are not measured"):
        assemble_table("small", SPACE, list(list_vectors(SPACE)), Measurings())


def test_a_torn_line_is_measured_again(tmp_path: Path) -> None:
    path, header = tmp_path / "j.jsonl", {"fingerprints": {"space": "s"}}
    journal = MeasuringJournal(path, header)
    for line in lines_of((0, 0), "x", reference_s=1.0, median_s=1.0):
        journal.append(line)
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind":"policy","vector":[0,')
    again = MeasuringJournal(path, header)
    assert again.known.artifacts == {(0, 0): "x"}
    again.close()
    assert path.read_bytes() == whole


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    first = MeasuringJournal(tmp_path / "j.jsonl", {"fingerprints": {}})
    with pytest.raises(RunError, match="another process is writing"):
        MeasuringJournal(tmp_path / "j.jsonl", {"fingerprints": {}})
    first.close()
    MeasuringJournal(tmp_path / "j.jsonl", {"fingerprints": {}}).close()


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    MeasuringJournal(tmp_path / "j.jsonl", {"fingerprints": {"space": "s"}}).close()
    with pytest.raises(RunError, match="another model, space, machine"):
        MeasuringJournal(tmp_path / "j.jsonl", {"fingerprints": {"space": "t"}})


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text('{"kind": "nonsense"}\n')
    with pytest.raises(RunError, match="unknown kind"):
        read_measurings(tmp_path / "j.jsonl")


@pytest.fixture
def builder(prepared) -> TableBuilder:  # the session's prepared models
    recipe = TableRecipe(
        name="tiny",
        model="trimtab.compressors.testing:small_cnn",
        data="none",
        runtime="onnxruntime",
        choices=(
            Choice("stem", ("left.0", "right.0"), (NONE, INT8)),
            Choice("fc", ("fc",), (NONE, INT8)),
            Choice("low", ("point",), (NONE, Treatment(rank=0.5))),
        ),
    )
    split = Split(random_inputs("cnn", 20, seed=1), np.arange(20) % 5)
    dataset = Dataset(Split(random_inputs("cnn", 8)), split, split)
    return TableBuilder(recipe, build_device(Target("onnxruntime")), dataset, prepared["cnn"])


def open_measuring(builder: TableBuilder, path: Path) -> measure.Measuring:
    """Times shortly and believes everything: what matters here is not how long things take."""
    settings = TimingSettings(
        warm_up_runs=1, min_runs=5, max_runs=5, min_time_s=0.0, max_spread=1e9, max_uncertainty=1e9, max_drift=1e9
    )
    return replace(measure.Measuring.open(builder, path), timing=settings)


def test_a_killed_measuring_goes_on_and_ends_in_a_table(builder: TableBuilder, tmp_path: Path) -> None:
    vectors = [tuple(int(entry) for entry in row) for row in builder.recipe.vectors()]
    first = open_measuring(builder, tmp_path / "j.jsonl")
    for vector in vectors[:5]:
        first.measure(vector)
    first.journal.close()
    second = open_measuring(builder, tmp_path / "j.jsonl")
    before = (tmp_path / "j.jsonl").read_text()
    for vector in vectors[:5]:
        second.measure(vector)
    assert (tmp_path / "j.jsonl").read_text() == before  # nothing twice
    for vector in vectors:
        second.measure(vector)
    second.journal.close()
    table = assemble_table("tiny", builder.space, vectors, read_measurings(tmp_path / "j.jsonl"))
    assert len(table) == builder.space.size == 8
    assert table.is_complete.all()
    sizes = {tuple(v): size for v, size in zip(table.vectors.tolist(), table.columns["size_bytes"], strict=True)}
    for vector in vectors:
        direct = builder.pipeline.build(builder.space.layer_treatments(builder.space.decode(vector)), Policy({}).graph)
        assert sizes[vector] == direct.size_bytes


def test_a_repetition_adds_a_timing_and_no_score(builder: TableBuilder, tmp_path: Path) -> None:
    measuring = open_measuring(builder, tmp_path / "j.jsonl")
    vector = (1, 0, 0, *[0] * 8)
    measuring.measure(vector)
    digest = measuring.journal.known.artifacts[vector]
    n_timings = len(measuring.journal.known.timings[digest])
    measuring.repeat(vector)
    measuring.journal.close()
    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines].count("score") == 1
    assert len(measuring.journal.known.timings[digest]) > n_timings


def random_chain(rng: np.random.Generator, n_groups: int, n_options: int) -> Chain:
    pairs = (n_groups - 1, n_options, n_options)
    return Chain(
        rng.random((n_groups, n_options)),
        rng.random(pairs),
        rng.integers(0, 6, (n_groups, n_options)),
        rng.integers(0, 3, pairs),
    )


def test_the_optimum_of_a_chain_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    n_solved = 0
    for _ in range(200):
        n_groups, n_options, most = (int(n) for n in rng.integers([2, 2, 0], [7, 5, 14]))
        chain = random_chain(rng, n_groups, n_options)
        every = np.array(list(itertools.product(range(n_options), repeat=n_groups)))
        kept = every[chain.damage(every) <= most]
        if not len(kept):
            with pytest.raises(SpecError, match="no policy of the chain"):
                find_chain_optimum(chain, most)
            continue
        vector, seconds = find_chain_optimum(chain, most)
        n_solved += 1
        assert seconds == pytest.approx(chain.seconds(kept).min())
        assert chain.seconds(np.array([vector]))[0] == pytest.approx(seconds)
        assert chain.damage(np.array([vector]))[0] <= most
    assert n_solved > 100


@pytest.mark.parametrize("n_groups, n_options", [(6, 3), (5, 8)])
def test_nothing_in_a_synthetic_space_beats_its_optimum(n_groups: int, n_options: int) -> None:
    problem = make_synthetic(SyntheticShape(n_groups, n_options, seed=3))
    every = [problem.problem.space.decode([*v, *[0] * 8]) for v in np.ndindex(*(n_options,) * n_groups)][:1500]
    assert problem.regret(every) >= 0.0
    if len(every) == n_options**n_groups:
        assert problem.regret(every) == pytest.approx(0.0)
    assert problem.regret([problem.optimum.policy]) == 0.0


def test_a_synthetic_problem_is_as_hard_as_asked() -> None:
    problem = make_synthetic(SyntheticShape(n_groups=16, n_options=5, feasible_share=0.15, seed=1))
    space, budget = problem.problem.space, problem.problem.budget
    rng = np.random.default_rng(0)
    seen = [problem.measure(space.sample(rng)) for _ in range(600)]
    share = np.mean([budget.violation(measurement) == 0.0 for measurement in seen])
    assert share == pytest.approx(0.15, abs=0.05)  # the standard error of 600 draws is 0.015
    # precision boundaries: a random mixture is slower than int8 throughout (design.md, section 6)
    uniform = problem.measure(space.uniform(INT8)).latency
    assert uniform is not None
    assert uniform.median_s < np.median([m.latency.median_s for m in seen if m.latency is not None])


def test_prior_knowledge_of_a_synthetic_problem_is_wrong_by_its_errors() -> None:
    problem = make_synthetic(SyntheticShape(n_groups=200, n_options=4, seed=0))
    knowledge, chain = problem.problem.knowledge, problem.chain
    (prior,) = knowledge.latency.values()
    true = chain.unary_s / 1e-3
    errors = np.array(prior.unary)[:, 1:] / (true - true[:, :1])[:, 1:] - 1.0
    assert np.std(errors) == pytest.approx(0.1, rel=0.15)
    influence, damage = np.array(knowledge.influence), chain.unary_damage
    harmful = damage > 0
    assert np.std(np.log(influence[harmful] / damage[harmful])) == pytest.approx(np.log(2.0), rel=0.1)
    assert (influence[~harmful] == 0.0).all()


def test_the_uninformed_twin_differs_in_knowledge_alone() -> None:
    informed, uninformed = (make_synthetic(SyntheticShape(is_informed=told, seed=5)) for told in (True, False))
    assert uninformed.problem.knowledge.is_empty
    assert not informed.problem.knowledge.is_empty
    assert informed.optimum == uninformed.optimum
    assert informed.problem.budget == uninformed.problem.budget


def test_a_shape_out_of_range_is_refused() -> None:
    with pytest.raises(SpecError, match="n_groups >= 2"):
        SyntheticShape(n_groups=1)


@pytest.fixture(scope="module")
def problems():
    """Every stored problem, read once."""
    return {name: load_problem(name) for name in PROBLEMS}


def test_every_stored_table_has_a_recipe_and_is_asked() -> None:
    stored = {path.stem for path in TABLE_FOLDER.glob("*.npz")}
    assert stored == {question.table for question in PROBLEMS.values()}
    assert stored <= set(TABLE_RECIPES)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_stored_table_holds_every_policy_of_its_recipe(problems, name: str) -> None:
    table, recipe = problems[name].table, TABLE_RECIPES[PROBLEMS[name].table]
    assert table.space == recipe.space
    assert len(table) == len(table.rows) == recipe.space.size >= 4096
    assert (TABLE_FOLDER / f"{recipe.name}.npz").stat().st_size <= 150_000
    assert table.is_complete.mean() > 0.99


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_stored_problem_is_not_trivial(problems, name: str) -> None:
    problem = problems[name]
    feasible = problem.violations == 0.0
    assert 0.02 <= feasible.mean() <= 0.6
    # the budget binds: what it forbids would be better
    assert problem.objectives.min() < problem.objectives[feasible].min() * 0.985
    assert problem.regret([problem.optimum.policy]) == 0.0


def test_the_best_uniform_policy_is_mostly_far_from_the_optimum(problems) -> None:
    gaps = [min(problem.regret([policy]) for _, policy in problem.baselines) for problem in problems.values()]
    assert sum(gap >= 0.05 for gap in gaps) > len(gaps) / 2


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_stored_optimum_keeps_its_bounds_and_nothing_that_does_is_better(problems, name: str) -> None:
    problem, question, table = problems[name], PROBLEMS[name], problems[name].table
    column = table.columns
    # 0.8416 is the 80 % quantile of the normal distribution
    kept = table.is_complete & (column["drop"] + 0.841621 * column["drop_error"] <= question.accuracy_drop)
    if question.latency is not None:
        kept &= column["ratio"] <= question.latency
    if question.size is not None:
        kept &= column["size_bytes"] <= question.size * table.original.size_bytes
    minimised = column["ratio"] * table.original.latency_s if question.objective == "latency" else column["size_bytes"]
    assert problem.optimum.objective == pytest.approx(float(minimised[kept].min()), rel=1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_original_takes_as_long_as_itself(problems, name: str) -> None:
    table = problems[name].table
    row = problems[name].row(Policy({}))
    assert table.columns["ratio"][row] == pytest.approx(1.0, abs=5 * table.noise.deviation + 0.01)
    assert table.columns["drop"][row] == 0.0
    assert table.columns["size_bytes"][row] == table.original.size_bytes
