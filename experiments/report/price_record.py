"""What the kernel table says of a search's policies, noted at its end: a page then needs no model and no runtime."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...compressors.artifact import Artifact
from ...core.errors import RunError, TrimtabError
from ...core.files import read_json
from ...evaluators.device import LoweringDevice
from ...hw_profiles.prices.price_list import PriceList
from ...search.record import Record, Status
from ...spaces.policy import Policy
from ..preparation import Preparation
from ..profiling.table_prices import TablePrices, open_prices
from ..run_folder import RunFolder

_log = logging.getLogger(__name__)

SCHEMA = 1
#: seconds, and share of what the trials took, that noting promises may take
_MOST_S, _MOST_SHARE = 10.0, 0.05


@dataclass(frozen=True, slots=True)
class PricedKernel:
    """One kernel of a policy's graph, in the order of execution."""

    #: the runtime's name of the node
    name: str
    op: str
    implementation: str
    #: as `Tensor.to_json` writes them: ``uint8[1,32,7,7]``
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    #: None where no table knows anything
    seconds: float | None
    standard_error_s: float | None
    #: ``table`` where this very kernel was timed on the device, ``model`` where it was predicted from others
    source: str


@dataclass(frozen=True, slots=True)
class TablePromise:
    """What the kernel table, without what this search taught it, says of a trial, in multiples of the original."""

    ratio: float
    standard_error: float


@dataclass(frozen=True)
class PriceRecord:
    """``prices.json`` of a run.

    >>> PriceRecord(trial=None, note="the runtime tells no kernels").before
    ()
    """

    #: whose kernels are `after`; None where there is none
    trial: int | None
    before: tuple[PricedKernel, ...] = ()
    after: tuple[PricedKernel, ...] = ()
    #: by trial; some may be missing: noting them has a time limit
    promises: Mapping[int, TablePromise] | None = None
    #: why something is missing, in words; empty where nothing is
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON values."""
        return {
            "schema": SCHEMA,
            "trial": self.trial,
            "before": [asdict(kernel) for kernel in self.before],
            "after": [asdict(kernel) for kernel in self.after],
            "promises": [[key, p.ratio, p.standard_error] for key, p in (self.promises or {}).items()],
            "note": self.note,
        }


def record_prices(
    preparation: Preparation,
    run: RunFolder,
    records: Sequence[Record],
    chosen: Record | None,
    *,
    promising: TablePrices | None,
) -> None:
    """Writes ``prices.json``; what cannot be had is noted there and never fails a search.

    Args:
        preparation: model and device.
        run: the run's folder.
        records: every trial.
        chosen: the winner, or the nearest where nothing keeps the budget.
        promising: the table without what it learned from this search; None where there is none.
    """
    try:
        found = _note_prices(preparation, records, chosen, promising)
    except TrimtabError as error:
        _log.info("prices are not noted: %s", error)
        found = PriceRecord(None, note=f"the kernels could not be found out: {error}"[:500])
    run.write_json(_path(run), found.to_json())


def _note_prices(
    preparation: Preparation, records: Sequence[Record], chosen: Record | None, promising: TablePrices | None
) -> PriceRecord:
    device, trial = preparation.device, None if chosen is None else chosen.id
    if not isinstance(device, LoweringDevice):
        return PriceRecord(trial, note=f"the runtime {device.target.runtime} does not tell which kernels it makes")
    prices = open_prices(preparation)
    before = _price_kernels(device, preparation.original, prices)
    after = () if chosen is None else _price_kernels(device, preparation.build(chosen.policy), prices)
    note = "" if prices is not None else "no kernel table of this device: the kernels have no prices"
    promises = {} if promising is None else _note_promises(promising, records, chosen)
    return PriceRecord(trial, before, after, promises, note)


def _price_kernels(device: LoweringDevice, artifact: Artifact, prices: TablePrices | None) -> tuple[PricedKernel, ...]:
    steps = [step for step in device.lower(artifact).steps if not step.is_view]
    kernels = [step.kernel for step in steps]
    found = [None] * len(steps) if prices is None else PriceList(prices.table).price(kernels)
    return tuple(
        PricedKernel(
            name=step.name,
            op=step.kernel.op,
            implementation=step.kernel.implementation,
            inputs=tuple(tensor.to_json() for tensor in step.kernel.inputs),
            outputs=tuple(tensor.to_json() for tensor in step.kernel.outputs),
            seconds=None if price is None else price.seconds,
            standard_error_s=None if price is None else price.seconds * price.relative_error,
            source="" if price is None else price.source,
        )
        for step, price in zip(steps, found, strict=True)
    )


def _note_promises(prices: TablePrices, records: Sequence[Record], chosen: Record | None) -> dict[int, TablePromise]:
    """Prices trials until the time is up, the chosen one first."""
    limit_s = min(_MOST_S, _MOST_SHARE * sum(record.cost_s for record in records))
    timed = [r for r in records if r.status is Status.COMPLETE and r.measurement.latency is not None]
    order = sorted(timed, key=lambda record: (chosen is None or record.id != chosen.id, record.id))
    found: dict[int, TablePromise] = {}
    by_policy: dict[Policy, TablePromise | None] = {}
    started_s = time.monotonic()
    for record in order:
        if record is not order[0] and time.monotonic() - started_s > limit_s:
            _log.info("%d trials have no promise of the table: the time for it is up", len(order) - len(found))
            break
        policy = record.policy.untrained
        if policy not in by_policy:
            by_policy[policy] = _promise(prices, policy)
        if (promise := by_policy[policy]) is not None:
            found[record.id] = promise
    return found


def _promise(prices: TablePrices, policy: Policy) -> TablePromise | None:
    latency = prices.promise(policy, 1.0)
    return None if latency is None else TablePromise(latency.median_s, latency.error_s)


def read_price_record(run: RunFolder) -> PriceRecord | None:
    """Returns what `record_prices` wrote; None where the run did not come so far.

    Raises:
        RunError: the file is damaged.
    """
    path = _path(run)
    if not path.is_file():
        return None
    content = read_json(path, noun="prices of a run", error=RunError)
    try:
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r:.20}; this version reads schema {SCHEMA}")
        return PriceRecord(
            trial=None if content["trial"] is None else int(content["trial"]),
            before=tuple(map(_read_kernel, content["before"])),
            after=tuple(map(_read_kernel, content["after"])),
            promises={int(key): TablePromise(_finite(r), _finite(e)) for key, r, e in content["promises"]},
            note=str(content["note"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunError(f"{path} is damaged: {error!r}; resume the run, which writes it again") from error


def _read_kernel(content: Mapping[str, Any]) -> PricedKernel:
    seconds, error_s = content["seconds"], content["standard_error_s"]
    return PricedKernel(
        name=str(content["name"]),
        op=str(content["op"]),
        implementation=str(content["implementation"]),
        inputs=tuple(map(str, content["inputs"])),
        outputs=tuple(map(str, content["outputs"])),
        seconds=None if seconds is None else _finite(seconds),
        standard_error_s=None if error_s is None else _finite(error_s),
        source=str(content["source"]),
    )


def _finite(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not (math.isfinite(number) and number >= 0.0):
        raise ValueError(f"a price must be a number of at least 0, got {value!r:.40}")
    return number


def _path(run: RunFolder) -> Path:
    return run.path / "prices.json"
