"""Explains a policy: from the run that found it, from its file, or from an artifact."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...core.errors import RunError, SpecError
from ...evaluators.measurement import Measurement
from ...search.answer import rank_records
from ...search.budget import Budget
from ...search.journal import read_records
from ...search.knowledge import Knowledge
from ...search.problem import Problem
from ...search.record import Record, Status
from ..budgets import resolve_budget
from ..manifest import read_manifest
from ..policy_file import PolicyFile, load_policy
from ..result_file import ResultFile
from ..run_folder import RunFolder
from ..spec import Spec
from ..spec_file import read_spec
from .explanation import Explanation
from .outlook import Outlook
from .rows import Own, explain_file, explain_group
from .words import describe_graph


def explain(source: str | Path) -> Explanation:
    """Explains a policy file, an artifact's folder or a run's folder; what stands in its run's folder, from the run.

    Raises:
        SpecError: (or RunError, ArtifactError) it is none of these, or cannot be read.
    """
    path = Path(source)
    if (path / "spec.yaml").is_file():
        return explain_run(RunFolder.open(path))
    is_artifact = (path / "manifest.json").is_file()
    if path.is_dir() and not is_artifact:
        raise SpecError(f"{path} must be a run (with spec.yaml), an artifact (with manifest.json) or a policy.json")
    file = load_policy(path / "policy.json" if is_artifact else path)
    if (path.parent / "spec.yaml").is_file() and file == load_policy(path.parent / "policy.json"):
        return explain_run(RunFolder.open(path.parent))
    explanation = explain_policy(file)
    return replace(explanation, promise=read_manifest(path).promise.measurement) if is_artifact else explanation


def explain_policy(file: PolicyFile) -> Explanation:
    """Says what a policy file does, layer by layer; why, only its run knows."""
    note = "what the treatments save, and why they were chosen, only the run knows that found them: explain its folder"
    return Explanation(file, explain_file(file), graph=describe_graph(file.policy), notes=(note,))


def explain_run(run: RunFolder) -> Explanation:
    """Says why the best policy of a run, while it still goes on the best so far, is as it is.

    Nothing is built or measured: everything comes from the run's journal and from what it knew before its first trial.
    Where no policy keeps the budget, the one that comes nearest is explained.

    Raises:
        RunError: the run is damaged, or has measured nothing yet.
    """
    spec, original, space = read_spec(run.spec), run.read_original(), run.read_space()
    if original is None or space is None:
        raise RunError(f"{run.path} has measured nothing yet, or was begun by an earlier version; let the search go on")
    problem = Problem(space, resolve_budget(spec, original), spec.objective, run.read_knowledge() or Knowledge())
    records = [record for record in read_records(run.journal) if space.contains(record.policy)]
    result = run.read_result() or ResultFile()
    best, file, notes = _find_policy(run, spec, problem, records, winner=result.winner)
    own = result.finals().get(best.id, best.measurement)
    slowness = _slowness(problem.budget, own)
    outlook = Outlook.of(problem, records, space.encode(file.policy), slowness=slowness)
    latency_s = None if own.latency is None else own.latency.median_s
    layers = {layer.name: layer for layer in file.layers}
    achieved = Own(latency_s, None if own.accuracy_drop is None else own.accuracy_drop.mean)
    return Explanation(
        policy=file,
        rows=tuple(explain_group(outlook, g, layers, achieved) for g in range(len(space.groups))),
        promise=_as_tested(result, "best policy", own),
        original=_as_tested(result, "original", original),
        budget=problem.budget,
        objective=spec.objective,
        graph=describe_graph(file.policy),
        notes=(*notes, *_say_sources(problem, records)),
    )


def _find_policy(
    run: RunFolder, spec: Spec, problem: Problem, records: Sequence[Record], *, winner: int | None
) -> tuple[Record, PolicyFile, tuple[str, ...]]:
    """Returns the record and the file of the policy that is explained, and what has to be said of it.

    Raises:
        RunError: nothing was measured.
    """
    if run.policy.is_file():
        file = load_policy(run.policy)
        found = [record for record in records if record.policy == file.policy and record.status is Status.COMPLETE]
        if not found:
            raise RunError(f"{run.policy} is no policy of the journal {run.journal}; resume the run")
        return next((record for record in found if record.id == winner), found[0]), file, ()
    ranked = rank_records(records, problem.budget, problem.objective)
    if not ranked:
        raise RunError(f"{run.path} has measured nothing yet; let the search go on")
    best = ranked[0]
    treated = {name for name, _ in best.policy.groups}
    file = PolicyFile(
        policy=best.policy,
        groups=tuple(group for group in problem.space.groups if group.name in treated),
        layers=run.read_layers(),
        target=spec.target.to_target(),
        ranges={},
        origin={"run": run.path.name, "trial": best.id},
    )
    keeps = problem.budget.violation(best.measurement) == 0.0
    what = "the best so far: the search has not ended" if keeps else "the nearest: no policy keeps the budget"
    return best, file, (f"trial {best.id} is {what}",)


def _slowness(budget: Budget, own: Measurement) -> float:
    normalised = budget.normalised_latency_s(own)
    return 1.0 if own.latency is None or not normalised else own.latency.median_s / normalised


def _as_tested(result: ResultFile, label: str, otherwise: Measurement) -> Measurement:
    """Returns what the final table says of a row, the accuracy that of the test split."""
    row = result.row(label)
    return otherwise if row is None else row.final.joined(row.test)


def _say_sources(problem: Problem, records: Sequence[Record]) -> tuple[str, ...]:
    """Says where the numbers come from, and which are not known."""
    n_measured = sum(record.status is Status.COMPLETE for record in records)
    knowledge = problem.knowledge
    latency = "prices of the kernel table, corrected by" if knowledge.latency else "not known, but where they come from"
    lines = [f"changes of latency: {latency} {n_measured} trials"]
    if not knowledge.influence:
        lines.append("sensitivities are not known: this search did not measure them")
    if knowledge.size_bytes is None:
        lines.append("sizes of treated weights are not known")
    return tuple(lines)
