"""The command line: a thin skin over `trimtab.search`, `resume`, `apply` and `verify`.

Exit codes: 0 done · 1 a promise is broken or an artifact was altered · 2 bad input · 3 no policy keeps the budget ·
4 workers were lost or the machine is too unquiet, resume later · 130 interrupted, resume later.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .profiling import table_commands

EXIT_BROKEN = 1
EXIT_BAD_INPUT = 2
EXIT_INFEASIBLE = 3
EXIT_TRANSIENT = 4
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="trimtab",
    help="Find, layer by layer, how to compress a model so that it meets a budget on your own hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="exit codes: 0 done · 1 promise broken · 2 bad input · 3 no policy keeps the budget · "
    "4 workers lost or machine unquiet, resume later · 130 interrupted",
)

app.add_typer(table_commands.app, name="table")

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    app()


@app.command()
def search(
    spec: Annotated[str, typer.Argument(help="A YAML file, or the bare name of a recipe.")],
    runs: Annotated[Path, typer.Option(help="The folder that receives the run's folder.")] = Path("runs"),
    as_json: _Json = False,
) -> None:
    """Search for the best policy within the budget of a spec."""

    def go(observer: Any, announce: Callable[[Path], None]) -> Any:
        from .launch import search as launch

        return launch(spec, runs=runs, observer=observer, announce=announce)

    _run(go, as_json=as_json)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    force: Annotated[
        bool, typer.Option("--force", help="Go on although spec, model, data or versions changed.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Go on with an interrupted search; no finished trial is run again."""

    def go(observer: Any, announce: Callable[[Path], None]) -> Any:
        from .launch import resume as again

        return again(run, force=force, observer=observer, announce=announce)

    _run(go, as_json=as_json)


@app.command()
def plan(spec: Annotated[str, typer.Argument(help="A YAML file, or the bare name of a recipe.")]) -> None:
    """Show layers, space and what was dropped, without running a trial."""
    with _named_errors():
        from ..search.baselines import list_baselines
        from .preparation import prepare
        from .profiling.terminal import print_prices
        from .spec_file import load_spec
        from .terminal import print_plan

        preparation, console = prepare(load_spec(spec)), _console()
        print_plan(console, preparation, len(list_baselines(preparation.space)))
        print_prices(console, preparation)


@app.command()
def profile(
    specs: Annotated[list[str], typer.Argument(help="YAML files, or bare names of recipes.")],
    runs: Annotated[Path, typer.Option(help="The folder that receives each profile's folder.")] = Path("runs"),
    policies: Annotated[int, typer.Option(min=4, max=1000, help="Designed policies to measure per model.")] = 24,
    tests: Annotated[int, typer.Option(min=4, max=1000, help="Mixed policies to test the prices on.")] = 16,
    nets: Annotated[
        int, typer.Option(min=0, max=1000, help="Random networks to measure too: models never seen are priced better.")
    ] = 0,
    max_noise: Annotated[
        float, typer.Option(min=0.01, max=10.0, help="Refuse a machine on which one model differs more from itself.")
    ] = 0.15,
    again: Annotated[bool, typer.Option("--again", help="Measure the device anew, too.")] = False,
    as_json: _Json = False,
) -> None:
    """Measure a device for some models: what pays there, and a kernel table that knows what policies cost."""
    with _named_errors():
        from ..evaluators.quietness import Quietness
        from .profiling.learn import LearningPlan
        from .profiling.profile import profile as measure
        from .profiling.profile_tables import print_device_profile
        from .profiling.terminal import TerminalProgress, print_profile

        console = _console()
        with TerminalProgress(console) as progress:
            plan_ = LearningPlan(
                n_designed=policies, n_test=tests, n_networks=nets, quietness=Quietness(refused=max_noise)
            )
            results = measure(specs, runs=runs, plan=plan_, progress=progress, again=again)
        if as_json:
            _print_json({"profiles": [result.to_json() for result in results]})
            return
        for device in {result.device.key.id: result.device for result in results}.values():
            print_device_profile(console, device)
        for result in results:
            print_profile(console, result)


@app.command()
def apply(
    policy: Annotated[Path, typer.Argument(help="The policy.json of a run.")],
    model: Annotated[str, typer.Option(help="module:callable or a path to an .onnx file.")],
    out: Annotated[Path, typer.Option(help="The artifact's folder.")],
    data: Annotated[
        str | None, typer.Option(help="module:callable; calibrates anew and scores the test split.")
    ] = None,
    openvino_ir: Annotated[bool, typer.Option("--openvino-ir", help="Write model.xml and model.bin too.")] = False,
    teacher: Annotated[
        list[str] | None, typer.Option(help="module:callable of a teacher that the policy may learn from.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Apply a found policy to the same or to retrained weights, without a search."""
    with _named_errors():
        from .apply import ApplyOptions
        from .apply import apply as make

        options = ApplyOptions(openvino_ir=openvino_ir, teachers=tuple(teacher or ()))
        applied = make(policy, model, out=out, data=data, options=options)
        promise = applied.promise
        if as_json:
            _print_json({"artifact": str(applied.folder), "promise": promise.to_json()})
            return
        latency = promise.latency
        speed = (
            f"{latency.median_s * 1e3:.3f} ms ({latency.ratio:.2f}x of the original), "
            if latency and latency.ratio
            else ""
        )
        _console().print(f"artifact: {applied.folder}   {speed}{(promise.size_bytes or 0) / 1e6:.3f} MB")
        if data is None:
            _console().print(
                "activation ranges are those of the search; --data calibrates anew and checks the accuracy"
            )


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="The artifact's folder.")],
    data: Annotated[
        str | None, typer.Option(help="module:callable; checks the accuracy on the test split too.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, max=10.0, help="How much slower still counts as kept.")] = 0.25,
    as_json: _Json = False,
) -> None:
    """Re-measure an artifact on this machine against its promise; exit 1 if it is broken."""
    from ..core.errors import ArtifactError

    with _named_errors():
        from .terminal import print_verification
        from .verify import verify as check

        try:
            verification = check(artifact, data=data, tolerance=tolerance)
        except ArtifactError as error:
            _complain(error)
            raise typer.Exit(EXIT_BROKEN) from error
        if as_json:
            checks = [{"name": c.name, "promised": c.promised, "achieved": c.achieved, "kept": c.is_kept}
                      for c in verification.checks]  # fmt: skip
            _print_json({"kept": verification.is_kept, "checks": checks})
        else:
            print_verification(_console(), verification)
        if not verification.is_kept:
            raise typer.Exit(EXIT_BROKEN)


@app.command()
def pareto(
    run: Annotated[Path, typer.Argument(help="The run's folder; its search may still be going on.")],
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Another bound, such as latency=3ms, accuracy_drop=0.02 or size_mb=none; may be repeated."),
    ] = None,
    objective: Annotated[str | None, typer.Option(help="Another objective, such as size.")] = None,
    as_json: _Json = False,
) -> None:
    """Answer another budget from what a run knows already; nothing is built or measured."""
    with _named_errors():
        from .pareto import answer_budget, read_bounds
        from .terminal_pareto import print_budget_answer, print_front

        found = answer_budget(run, read_bounds(budget or ()), objective=objective)
        if as_json:
            _print_json(found.to_json())
        else:
            print_front(_console(), found)
            print_budget_answer(_console(), found)
        if found.best is None:
            raise typer.Exit(EXIT_INFEASIBLE)


@app.command()
def transfer(
    policy: Annotated[Path, typer.Argument(help="The policy.json of a run.")],
    target: Annotated[str, typer.Option(help="A runtime, or a spec or recipe for the other device.")],
    out: Annotated[Path, typer.Option(help="The file that receives the policy solved for it.")],
    model: Annotated[str | None, typer.Option(help="module:callable; the policy's own when omitted.")] = None,
    data: Annotated[str | None, typer.Option(help="module:callable; the policy's own when omitted.")] = None,
    as_json: _Json = False,
) -> None:
    """Price a policy anew for another device and solve for one that suits it; nothing is run there."""
    with _named_errors():
        from .terminal_transfer import print_transfer
        from .transfer import transfer as move

        found = move(policy, target, model=model, data=data)
        found.solved.policy.save(out)
        if as_json:
            _print_json(found.to_json())
        else:
            print_transfer(_console(), found, out)


@app.command()
def sensitivity(
    spec: Annotated[str, typer.Argument(help="A YAML file, or the bare name of a recipe.")],
    method: Annotated[str, typer.Option(help="auto, gradient or divergence.")] = "auto",
    plot: Annotated[Path | None, typer.Option(help="The PNG that receives the picture.")] = None,
    as_json: _Json = False,
) -> None:
    """Show how much each option changes the model's output, before any trial."""
    with _named_errors():
        from .preparation import prepare
        from .profiling.scatter import check_matplotlib
        from .sensitivity import measure_sensitivity
        from .sensitivity_plot import draw_sensitivity
        from .spec_file import load_spec
        from .terminal_sensitivity import print_sensitivity

        if plot is not None:
            check_matplotlib()  # before minutes of work
        preparation = prepare(load_spec(spec))
        found = measure_sensitivity(preparation, method=method)
        if as_json:
            _print_json(found.to_json())
        else:
            print_sensitivity(_console(), found)
        if plot is not None:
            draw_sensitivity(plot, found, title=preparation.spec.name)


@app.command()
def devices() -> None:
    """List the runtimes at hand and what they offer."""
    with _named_errors():
        from .devices import describe_devices

        console = _console()
        for line in describe_devices():
            console.print(line, soft_wrap=True, markup=False)


def _run(go: Callable[..., Any], *, as_json: bool) -> None:
    announced: list[Path] = []
    with _named_errors(announced):
        from .terminal import TerminalObserver, print_result

        console = _console()
        with TerminalObserver(console) as observer:
            result = go(observer, announced.append)
        if as_json:
            _print_json(result.to_json())
        else:
            print_result(console, result)
        if not result.is_feasible:
            raise typer.Exit(EXIT_INFEASIBLE)


@contextmanager
def _named_errors(announced: Sequence[Path] = ()) -> Iterator[None]:
    """Turns Trimtab's own errors into one line on stderr and an exit code; anything else is a bug and shows itself.

    Args:
        announced: the run's folder, once there is one: how to go on with it is said too.
    """
    from ..core.errors import MeasurementError, TransientError, TrimtabError

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        yield
    except (TransientError, MeasurementError) as error:
        _complain(error)
        sys.stderr.writelines(f"{_how_to_go_on(run)}\n" for run in announced)
        raise typer.Exit(EXIT_TRANSIENT) from error
    except TrimtabError as error:
        _complain(error)
        raise typer.Exit(EXIT_BAD_INPUT) from error
    except KeyboardInterrupt:
        sys.stderr.write("; ".join(["\ninterrupted", *map(_how_to_go_on, announced)]) + "\n")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _how_to_go_on(run: Path) -> str:
    return f"go on with: trimtab resume {shlex.quote(str(run))}"


def _complain(error: Exception) -> None:
    sys.stderr.write(f"trimtab: {type(error).__name__}: {error}\n")


def _console() -> Any:
    from rich.console import Console

    # piped output keeps its lines whole: nobody wraps a table in a log file
    return Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False, highlight=False)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")
