"""Launching a search, and going on with one."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.errors import MeasurementError, RunError, SpecError
from ..core.files import short_digest
from ..core.names import describe_unknown
from ..evaluators.measurement import Measurement
from ..hw_profiles.latency import Latency
from ..search.answer import Answer, answer
from ..search.baselines import list_baselines, promising_first
from ..search.budget import Budget
from ..search.controller import Observer, SearchPlan, SilentObserver, run_search
from ..search.journal import Journal
from ..search.knowledge import Knowledge
from ..search.pools import build_pool
from ..search.problem import Problem
from ..search.record import Record, Status
from ..search.worker_pool import Job, Limits, WorkerPool
from ..spaces.policy import Policy
from .benches import SearchBenches
from .budgets import resolve_budget
from .explain.notebook import show_result
from .finish import Final, Row, finish_search, write_outcome
from .knowledge import check_size, gather_knowledge, used_by
from .pareto import answer_problem
from .policy_file import PolicyFile, load_policy
from .preparation import Preparation, prepare
from .profiling.table_prices import TablePrices, open_prices
from .quantities import parse_bytes, parse_duration
from .report.price_record import record_prices
from .run_folder import RunFolder
from .spec import Spec
from .spec_file import allow_imports_from, find_spec, load_spec
from .starts import check_starts, gather_starts


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    When nothing keeps the budget, ``policy`` and ``artifact`` are None and ``answer`` tells what is reachable.
    """

    #: the folder that holds everything
    run: Path
    #: the best policy within the budget
    policy: PolicyFile | None
    #: the folder of the deployable model
    artifact: Path | None
    #: trade-off of latency, accuracy drop and size, fastest first
    pareto: tuple[Record, ...]
    #: every trial, by id
    records: tuple[Record, ...]
    #: the final table
    rows: tuple[Row, ...]
    #: best, nearest and relaxations, from the search's own measurements
    answer: Answer
    budget: Budget
    #: the best policy is a uniform one, or not measurably faster than it
    equals_uniform: bool
    #: what the kernel table, without what this search taught it, says that the winner takes; None where it cannot tell
    promised: Latency | None = None
    #: when nothing keeps the budget: bound → the least value that is believed to be reachable within the other bounds,
    #: where it is less than was measured
    reachable: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_feasible(self) -> bool:
        """Whether a policy keeps the budget."""
        return self.policy is not None

    def _repr_html_(self) -> str:
        """Shows the final table in a notebook."""
        return show_result(self)

    def to_json(self) -> dict[str, Any]:
        """Returns what the final table shows, and where the files are, as JSON values."""
        nearest = self.answer.nearest
        return {
            "run": str(self.run),
            "feasible": self.is_feasible,
            "artifact": None if self.artifact is None else str(self.artifact),
            "policy": None if self.policy is None else str(self.run / "policy.json"),
            "equals_uniform": self.equals_uniform,
            "promised_latency": None if self.promised is None else self.promised.to_json(),
            "rows": [row.as_stored().to_json() for row in self.rows],
            "nearest": None if nearest is None else nearest.to_json(),
            "relaxations": self.answer.relaxations,
            "reachable": dict(self.reachable),
            "trials": len(self.records),
        }


def search(
    spec: str | Path | dict[str, Any] | Spec | None = None,
    *,
    runs: str | Path = "runs",
    observer: Observer | None = None,
    announce: Callable[[Path], None] | None = None,
    **parts: Any,
) -> SearchResult:
    """Searches for the best policy within a budget and writes a run folder.

    Args:
        spec: a YAML file, a recipe's name, a mapping or a `Spec`; or None when the parts are given by name.
        runs: the folder in which the run's own folder is made.
        observer: follows the search.
        announce: called with the run's folder as soon as it exists.
        **parts: the spec's keys (``model=``, ``data=``, ``target=`` …); they replace those of ``spec``.

    Raises:
        SpecError: something in the spec, the model or the data does not fit; no trial was started.
        TransientError: workers or device were lost for good; `resume` goes on.
    """
    resolved = _merge(spec, parts)
    check_starts(resolved.search.start)
    preparation = prepare(resolved)
    run = RunFolder.create(Path(runs), resolved.name)
    run.write_spec(resolved)
    if isinstance(spec, str | Path):
        run.write_import_folder(find_spec(str(spec)).resolve().parent)
    if announce is not None:
        announce(run.path)
    return _run(preparation, run, observer or SilentObserver(), force=False)


def resume(
    run: str | Path,
    *,
    observer: Observer | None = None,
    announce: Callable[[Path], None] | None = None,
    force: bool = False,
    **parts: Any,
) -> SearchResult:
    """Goes on with an interrupted search, or repeats the end of a finished one; no finished trial is run again.

    Args:
        run: the run's folder.
        observer: follows the search.
        announce: called with the run's folder.
        force: go on although spec, model, data, target or versions changed.
        **parts: keys of the spec to replace: ``model`` and ``data`` when they were given as objects.

    Raises:
        RunError: there is no such run, it is damaged or in use, or something changed.
    """
    folder = RunFolder.open(Path(run))
    if announce is not None:
        announce(folder.path)
    imports = folder.read_import_folder()
    if imports is not None:
        allow_imports_from(imports)
    spec = _merge(folder.spec, parts)
    if spec.unnamed:
        missing = ", ".join(f"{name}=…" for name in spec.unnamed)
        raise RunError(
            f"{' and '.join(spec.unnamed)} of this run: given as an object; call trimtab.resume(run, {missing})"
        )
    return _run(prepare(spec), folder, observer or SilentObserver(), force=force)


def _merge(spec: str | Path | dict[str, Any] | Spec | None, parts: dict[str, Any]) -> Spec:
    unknown = sorted(set(parts) - set(Spec.model_fields))
    if unknown:
        raise SpecError(describe_unknown("spec key", unknown[0], Spec.model_fields))
    if spec is None:
        return load_spec(parts)
    base = load_spec(spec)
    if not parts:
        return base
    kept = {name: getattr(base, name) for name in base.model_fields_set if name not in parts}
    return load_spec({**kept, **parts})


def _run(preparation: Preparation, run: RunFolder, observer: Observer, *, force: bool) -> SearchResult:
    spec = preparation.spec
    with run.logging():
        fingerprints = preparation.fingerprints()
        exists = run.journal.is_file()
        if not exists and run.read_original() is not None:
            raise RunError(f"journal {run.journal} is missing; bring it back, or start a new search")
        with Journal.open(run.journal) if exists else Journal.create(run.journal, fingerprints) as journal:
            journal.check_fingerprints(fingerprints, allow=force)
            _ = preparation.test  # now, so that data which do not fit end the search before it begins
            preparation, knowledge = _learn(preparation, run)
            source = f"search {run.path.name} {short_digest(str(run.path.resolve()))[:8]}"
            benches = replace(preparation.benches(), feeds_table=(preparation.table_name, source))
            with closing(_build_pool(spec, benches)) as pool:
                original = run.read_original() or _measure_original(preparation, benches, pool)
                run.write_original(original)
                budget = resolve_budget(spec, original)
                check_size(budget, preparation)
                problem = Problem(preparation.space, budget, spec.objective, knowledge)
                starts = _starts(preparation, problem, run)
                records = run_search(_plan(preparation, problem, starts), pool, journal, observer)
                final = finish_search(preparation, records, budget, pool.compare)
        # the final timing replaces the search's own where there is one
        known = [replace(r, measurement=final.measurements.get(r.id, r.measurement)) for r in records]
        conclusion = answer(known, budget, spec.objective)
        reachable = {} if conclusion.nearest is None else answer_problem(problem, known).reachable
        prices = open_prices(preparation, without_source=source)
        promised = None if prices is None else _promise(prices, final)
        write_outcome(preparation, run, final, conclusion.pareto)
        record_prices(preparation, run, records, final.winner or conclusion.nearest, promising=prices)
    return replace(_result(run, records, final, conclusion, budget), promised=promised, reachable=reachable)


def _promise(prices: TablePrices, final: Final) -> Latency | None:
    """Returns what the kernel table, as it was before this search, says that the winner takes; None if it cannot."""
    row = next((row for row in final.rows if row.label == "best policy"), None)
    latency = None if row is None else row.final.latency
    if row is None or latency is None or latency.reference_s is None or latency.source != "measured":
        return None
    return prices.promise(row.record.policy, latency.reference_s)


def _result(
    run: RunFolder, records: Sequence[Record], final: Final, conclusion: Answer, budget: Budget
) -> SearchResult:
    has_winner = final.winner is not None
    return SearchResult(
        run=run.path,
        policy=load_policy(run.policy) if has_winner else None,
        artifact=run.artifact if has_winner else None,
        pareto=conclusion.pareto,
        records=tuple(records),
        rows=final.rows,
        answer=conclusion,
        budget=budget,
        equals_uniform=final.equals_uniform,
    )


def _build_pool(spec: Spec, benches: SearchBenches) -> WorkerPool:
    workers, memory = spec.workers, spec.workers.memory_limit
    limits = Limits(parse_duration(workers.trial_timeout), None if memory is None else parse_bytes(memory))
    return build_pool(workers.address, benches, limits, n_workers=workers.count, scheduler=spec.search.scheduler)


def _learn(preparation: Preparation, run: RunFolder) -> tuple[Preparation, Knowledge]:
    """Returns what is known beforehand, and the space that it leaves; a search that goes on knows what it did at first.

    Raises:
        RunError: what was known then is damaged.
    """
    knowledge, space = run.read_knowledge(), run.read_space()
    if knowledge is not None and space is not None:
        return preparation.with_space(space), knowledge
    search = preparation.spec.search
    knowledge = Knowledge()
    if used_by(search.algorithm) or "front" in search.start:
        preparation, knowledge = gather_knowledge(preparation)
    run.write_knowledge(knowledge)
    run.write_space(preparation.space, preparation.model.layers)
    return preparation, knowledge


def _starts(preparation: Preparation, problem: Problem, run: RunFolder) -> tuple[tuple[str, Policy], ...]:
    starts = run.read_starts()
    if starts is None:
        starts = gather_starts(preparation.spec.search.start, problem)
        run.write_starts(starts)
    return starts


def _plan(preparation: Preparation, problem: Problem, starts: tuple[tuple[str, Policy], ...]) -> SearchPlan:
    spec = preparation.spec
    return SearchPlan(
        problem=problem,
        baselines=promising_first(list_baselines(preparation.space), problem),
        starts=starts,
        is_adaptive=spec.search.fidelity == "adaptive",
        algorithm=spec.search.algorithm,
        n_trials=spec.search.trials,
        batch_size=spec.search.batch,
        seed=spec.search.seed,
        time_limit_s=None if spec.search.time_limit is None else parse_duration(spec.search.time_limit),
        patience=spec.search.patience,
    )


def _measure_original(preparation: Preparation, benches: SearchBenches, pool: WorkerPool) -> Measurement:
    resources = _measure_resources(pool) if benches.wanted.is_any else Measurement()
    return replace(
        resources,
        accuracy=benches.evaluator.original,
        accuracy_drop=None,
        latency=pool.compare([])[0],
        size_bytes=preparation.original.size_bytes,
    )


def _measure_resources(pool: WorkerPool) -> Measurement:
    """Measures the untouched policy as a trial is: the device may be on another machine than this process.

    Raises:
        MeasurementError: the original cannot be measured, so nothing can be compared with it.
    """
    (outcome,) = pool.run([Job(-1, Policy({}), seed=0)])
    if outcome.status is not Status.COMPLETE:
        raise MeasurementError(f"memory or energy of the original cannot be measured: {outcome.error}")
    return outcome.measurement
