"""What ``trimtab profile`` and the prices of ``trimtab plan`` look like in a terminal."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status
from rich.table import Table

from ...core.errors import MeasurementError, PolicyError
from ...evaluators.device import DeviceElsewhere
from ...spaces.policy import GraphTreatment, Policy
from ..preparation import Preparation
from .accuracy import describe
from .profile import ProfileResult
from .table_prices import open_prices


class TerminalProgress:
    """Shows what is being measured on a line of its own, where the output is a terminal."""

    def __init__(self, console: Console) -> None:
        self._status = Status("", console=console)

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def __call__(self, what: str, done: int, of: int) -> None:
        """Shows one step; see `Progress`."""
        self._status.update(f"{what}: {done} of {of}" if of else what)


def print_profile(console: Console, result: ProfileResult) -> None:
    """Prints how well the table prices policies that it was not fitted on, and where everything is."""
    columns = describe(result.accuracy)
    table = Table(
        title=f"prices of {result.accuracy.n_policies} mixed policies that nothing was fitted on", title_justify="left"
    )
    table.add_column("")
    for heading in columns:
        table.add_column(heading, justify="right")
    table.add_row("kernel table", *columns.values())
    table.add_row("surrogate", *describe(result.surrogate_accuracy).values())
    console.print(table)
    null = result.null_test
    lines = (
        f"original: {result.original_s * 1e3:.3f} ms at the table's speed · {result.n_kernels} kernels, "
        f"{result.n_new_kernels} of them new to the table · took {result.took_s:.0f} s",
        f"machine: {null.verdict()}, the same model twice differs by {null.deviation:+.1%} "
        f"({null.low:+.1%} to {null.high:+.1%})" + _widened(result),
        f"table:   {result.table}",
        f"picture: {result.run / 'scatter.png'}",
    )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _widened(result: ProfileResult) -> str:
    return "; the error bars are widened by that" if result.null_test.verdict() == "noisy" else ""


def print_prices(console: Console, preparation: Preparation) -> None:
    """Prints what the device's kernel table says of the original and of the uniform policies; nothing is run."""
    prices = open_prices(preparation)
    device = preparation.device
    if isinstance(device, DeviceElsewhere):
        console.print(
            f"the agent at {device.address.device} measures on its machine; kernel tables are not offered through "
            f"agents, so that no price is known before the first trial",
            markup=False,
        )
        return
    if prices is None:
        console.print(
            "no kernel table of this device: trimtab profile SPEC makes one, then plan shows what policies cost"
        )
        return
    table = Table(title="priced from the kernel table, nothing was run", title_justify="left")
    for heading, justify in (("policy", "left"), ("ms", "right"), ("± (95 %)", "right"), ("of the original", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    original_s = 0.0
    for label, policy in _examples(preparation):
        try:
            price = prices.price(policy)
        except (PolicyError, MeasurementError):
            continue
        original_s = original_s or price.seconds
        table.add_row(
            label + (" (mostly predicted)" if price.unseen_share > 0.5 else ""),
            f"{price.seconds * 1e3:.3f}",
            f"{1.96 * price.standard_error_s * 1e3:.2g}",
            f"{price.seconds / original_s:.2f}x",
        )
    console.print(table)


def _examples(preparation: Preparation) -> Sequence[tuple[str, Policy]]:
    space = preparation.space
    treatments = dict.fromkeys(option for options in space.options for option in options if option.label != "none")
    graphs = [GraphTreatment(precision=precision) for precision in space.graph.precision]
    found = [("original", Policy({}))]
    for graph in graphs:
        for treatment in treatments:
            suffix = "" if graph.precision == "float32" else f", {graph.precision}"
            found.append((f"uniform {treatment.label}{suffix}", space.uniform(treatment, graph)))
    return found
