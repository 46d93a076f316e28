"""``trimtab policy-set``."""

from pathlib import Path
from typing import Annotated

import typer

from .outcome import JsonFlag, named_errors, open_console, print_json

app = typer.Typer()


@app.command("policy-set")
def policy_set(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="The folder of the set.")],
    policies: Annotated[int, typer.Option(min=2, max=16, help="How many policies, at most.")] = 3,
    accuracy_drop: Annotated[
        float | None, typer.Option(help="The largest drop on validation; the run's own bound when omitted.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a set of a run's policies, among which trimtab.serve(…, p99_s=…) chooses by the load."""
    with named_errors():
        from ..serving.run_policies import make_policy_set

        found = make_policy_set(run, out=out, n_policies=policies, accuracy_drop=accuracy_drop)
        if as_json:
            entries = [{"name": p.name, "trial": p.trial, "promise": p.promise.to_json()} for p in found]
            print_json({"policy_set": str(out), "policies": entries})
            return
        from rich.table import Table

        table = Table("policy", title=str(out), title_justify="left")
        for heading in ("latency ms", "speed-up", "test drop", "size MB"):
            table.add_column(heading, justify="right")
        for policy in found:
            latency, drop = policy.promise.latency, policy.promise.accuracy_drop
            table.add_row(
                policy.name,
                f"{latency.median_s * 1e3:.3f} ± {latency.iqr_s * 1e3:.3f}" if latency else "–",
                f"{1.0 / latency.ratio:.2f}×" if latency and latency.ratio else "–",
                f"{100 * drop.mean:+.2f} ± {100 * drop.standard_error:.2f}" if drop else "–",
                f"{(policy.promise.size_bytes or 0) / 1e6:.3f}",
            )
        open_console().print(table)
