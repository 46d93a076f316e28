"""``trimtab search``, ``resume``, ``plan``, ``pareto`` and ``sensitivity``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .outcome import EXIT_INFEASIBLE, JsonFlag, named_errors, open_console, print_json

app = typer.Typer()


@app.command()
def search(
    spec: Annotated[str, typer.Argument(help="A YAML file, or the bare name of a recipe.")],
    runs: Annotated[Path, typer.Option(help="The folder that receives the run's folder.")] = Path("runs"),
    as_json: JsonFlag = False,
) -> None:
    """Search for the best policy within the budget of a spec."""

    def go(observer: Any, announce: Callable[[Path], None]) -> Any:
        from ..launch import search as launch

        return launch(spec, runs=runs, observer=observer, announce=announce)

    _run(go, as_json=as_json)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    force: Annotated[
        bool, typer.Option("--force", help="Go on although spec, model, data or versions changed.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Go on with an interrupted search; no finished trial is run again."""

    def go(observer: Any, announce: Callable[[Path], None]) -> Any:
        from ..launch import resume as again

        return again(run, force=force, observer=observer, announce=announce)

    _run(go, as_json=as_json)


@app.command()
def plan(spec: Annotated[str, typer.Argument(help="A YAML file, or the bare name of a recipe.")]) -> None:
    """Show layers, space and what was dropped, without running a trial."""
    with named_errors():
        from ...search.baselines import list_baselines
        from ..preparation import prepare
        from ..profiling.terminal import print_prices
        from ..spec_file import load_spec
        from ..terminal import print_plan

        preparation, console = prepare(load_spec(spec)), open_console()
        print_plan(console, preparation, len(list_baselines(preparation.space)))
        print_prices(console, preparation)


@app.command()
def pareto(
    run: Annotated[Path, typer.Argument(help="The run's folder; its search may still be going on.")],
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Another bound, such as latency=3ms, accuracy_drop=0.02 or size_mb=none; may be repeated."),
    ] = None,
    objective: Annotated[str | None, typer.Option(help="Another objective, such as size.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Answer another budget from what a run knows already; nothing is built or measured."""
    with named_errors():
        from ..pareto import answer_budget, read_bounds
        from ..terminal_pareto import print_budget_answer, print_front

        found = answer_budget(run, read_bounds(budget or ()), objective=objective)
        if as_json:
            print_json(found.to_json())
        else:
            print_front(open_console(), found)
            print_budget_answer(open_console(), found)
        if found.best is None:
            raise typer.Exit(EXIT_INFEASIBLE)


@app.command()
def sensitivity(
    spec: Annotated[str, typer.Argument(help="A YAML file, or the bare name of a recipe.")],
    method: Annotated[str, typer.Option(help="auto, gradient or divergence.")] = "auto",
    plot: Annotated[Path | None, typer.Option(help="The PNG that receives the picture.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show how much each option changes the model's output, before any trial."""
    with named_errors():
        from ..preparation import prepare
        from ..profiling.scatter import check_matplotlib
        from ..sensitivity import measure_sensitivity
        from ..sensitivity_plot import draw_sensitivity
        from ..spec_file import load_spec
        from ..terminal_sensitivity import print_sensitivity

        if plot is not None:
            check_matplotlib()  # before minutes of work
        preparation = prepare(load_spec(spec))
        found = measure_sensitivity(preparation, method=method)
        if as_json:
            print_json(found.to_json())
        else:
            print_sensitivity(open_console(), found)
        if plot is not None:
            draw_sensitivity(plot, found, title=preparation.spec.name)


def _run(go: Callable[..., Any], *, as_json: bool) -> None:
    announced: list[Path] = []
    with named_errors(announced):
        from ..terminal import TerminalObserver, print_result

        console = open_console()
        with TerminalObserver(console) as observer:
            result = go(observer, announced.append)
        if as_json:
            print_json(result.to_json())
        else:
            print_result(console, result)
        if not result.is_feasible:
            raise typer.Exit(EXIT_INFEASIBLE)
