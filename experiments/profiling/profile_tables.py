"""A device profile as tables for the terminal."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...hw_profiles.device_profile import DeviceProfile, Verdict
from ...hw_profiles.profile import HardwareProfile


def print_device_profile(console: Console, profile: DeviceProfile) -> None:
    """Prints what a device is, how fast it moves and computes, and what pays on it."""
    for line in describe_device(profile.identity):
        console.print(line, soft_wrap=True, markup=False)
    if profile.null_deviation:
        text = f"a noisy machine: one model differed from itself by {profile.null_deviation:.1%}; the errors say so"
        console.print(text, soft_wrap=True, markup=False)
    console.print(_rates_table(profile))
    console.print(_verdict_table(profile))


def describe_device(identity: HardwareProfile) -> Iterator[str]:
    """Yields the lines that say what a device is."""
    yield f"{identity.device}, {identity.n_cores} cores, {identity.memory_bytes / 2**30:.0f} GiB"
    clocks = [(identity.base_mhz, "base"), (identity.max_mhz, "at most")]
    known = [f"{mhz / 1000:.1f} GHz {name}" for mhz, name in clocks if mhz is not None]
    caches = [f"{name} {_readable(size)}" for name, size in identity.caches_bytes]
    yield f"clock: {', '.join(known) or 'not readable'}; caches: {', '.join(caches) or 'not readable'}"
    yield f"instruction sets: {', '.join(identity.features)}"
    target = identity.target
    yield f"{identity.runtime} {identity.runtime_version}, threads {target.threads}, batch size {target.batch_size}"


def _rates_table(profile: DeviceProfile) -> Table:
    table = Table(title="bandwidth and peak rates", title_justify="left")
    for heading in ("what", "rate", "± (IQR)"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for one in profile.bandwidths:
        what = f"copy in {one.level} ({_readable(one.working_set_bytes)})"
        table.add_row(what, f"{one.bytes_per_s / 1e9:.1f} GB/s", f"{one.iqr_bytes_per_s / 1e9:.1f}")
    for peak in profile.peak_rates:
        rate, spread = (f"{rate / 1e9:.0f}" for rate in (peak.operations_per_s, peak.iqr_operations_per_s))
        table.add_row(f"{peak.operation} {peak.dtype}", f"{rate} Gop/s", spread)
    return table


def _verdict_table(profile: DeviceProfile) -> Table:
    """One row per verdict; a column holds the best figure of its context, over the shapes."""
    contexts = list(dict.fromkeys(figure.context for one in profile.verdicts for figure in one.figures))
    table = Table(title="time with the option over the time without it, by neighbours", title_justify="left")
    for heading in ("layers", "option", *contexts, "pays"):
        table.add_column(heading, no_wrap=heading in contexts)
    for one in profile.verdicts:
        cells = [_best_in(one, context) for context in contexts]
        table.add_row(escape(f"{one.kind} {one.variant}".strip()), one.option, *cells, "yes" if one.pays else "no")
    return table


def _best_in(verdict: Verdict, context: str) -> str:
    figures = [figure for figure in verdict.figures if figure.context == context]
    if not figures:
        return "–"
    best = min(figures, key=lambda figure: figure.ratio + figure.error)
    worst = max(figures, key=lambda figure: figure.ratio)
    text = f"{best.ratio:.2f} ± {best.error:.2f}"
    return text if worst is best else f"{text} … {worst.ratio:.2f}"


def _readable(size_bytes: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.4g} {unit}"
    return f"{size_bytes} B"
