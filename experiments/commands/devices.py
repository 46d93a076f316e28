"""``trimtab profile`` and ``devices``."""

from pathlib import Path
from typing import Annotated

import typer

from .outcome import JsonFlag, named_errors, open_console, print_json

app = typer.Typer()


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
    as_json: JsonFlag = False,
) -> None:
    """Measure a device for some models: what pays there, and a kernel table that knows what policies cost."""
    with named_errors():
        from ...evaluators.quietness import Quietness
        from ..profiling.learn import LearningPlan
        from ..profiling.profile import profile as measure
        from ..profiling.profile_tables import print_device_profile
        from ..profiling.terminal import TerminalProgress, print_profile

        console = open_console()
        with TerminalProgress(console) as progress:
            plan_ = LearningPlan(
                n_designed=policies, n_test=tests, n_networks=nets, quietness=Quietness(refused=max_noise)
            )
            results = measure(specs, runs=runs, plan=plan_, progress=progress, again=again)
        if as_json:
            print_json({"profiles": [result.to_json() for result in results]})
            return
        for device in {result.device.key.id: result.device for result in results}.values():
            print_device_profile(console, device)
        for result in results:
            print_profile(console, result)


@app.command()
def devices(
    agents: Annotated[
        list[str] | None,
        typer.Option("--agent", help="The URL of an agent, may be repeated; without it those in TRIMTAB_AGENTS."),
    ] = None,
) -> None:
    """List the runtimes at hand, and those of agents, and what they offer."""
    with named_errors():
        from ..devices import describe_devices, find_agents

        console = open_console()
        for line in describe_devices(find_agents(agents or ())):
            console.print(line, soft_wrap=True, markup=False)
