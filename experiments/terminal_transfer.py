"""What a person sees of a policy that moves to another device."""

from pathlib import Path

from rich.console import Console

from .terminal_pareto import describe_counts
from .transfer import Transfer


def print_transfer(console: Console, found: Transfer, out: Path) -> None:
    """Prints what the policy would be on the other device as it is, and solved anew."""
    for loss in found.lost:
        console.print(f"not on offer there: {loss}", markup=False, soft_wrap=True)
    for label, priced in (("as it is", found.kept), ("solved anew", found.solved)):
        latency = "latency not priced" if priced.latency is None else f"{priced.latency:.3f} of the original's latency"
        console.print(
            f"{label}: {latency}, influence on the output {priced.influence:.3g}: "
            f"{describe_counts(priced.policy.policy)}",
            markup=False,
            soft_wrap=True,
        )
    text = f"policy: {out}   nothing was run there: measure it with search.start: [{out}], or apply and verify it"
    console.print(text, markup=False, soft_wrap=True)
