"""Chooses the worker pool that an address names."""

import importlib.util
import re

from ..core.errors import SpecError
from .inline_pool import InlinePool
from .worker_pool import BenchFactory, Limits, WorkerPool

_CLUSTER = re.compile(r"(ray://)?[\w.\-\[\]:]+:\d{1,5}")


#: what `ray.tune` imports beside Ray
_TUNE_NEEDS = ("fsspec", "pandas", "pyarrow", "requests")


def check_scheduler(scheduler: str, address: str) -> None:
    """Makes sure that trials can be scheduled as asked.

    Raises:
        SpecError: ``asha`` does not go with the address, or Ray Tune is not installed.
    """
    if scheduler == "none":
        return
    if address == "inline":
        raise SpecError(
            f"search.scheduler: {scheduler} trains in processes of Ray; set workers.address: local, "
            "or search.scheduler: none"
        )
    if address.startswith("ray://"):
        raise SpecError(
            f"search.scheduler: {scheduler} cannot be steered from outside of the cluster ('{address}'); start the "
            "search on one of its machines with workers.address: auto, or set search.scheduler: none"
        )
    missing = [name for name in _TUNE_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(f"ray tune is not installed (no {', '.join(missing)}); pip install 'trimtab[tune]'")


def build_pool(
    address: str, factory: BenchFactory, limits: Limits, *, n_workers: int, scheduler: str = "none"
) -> WorkerPool:
    """Makes a pool.

    Args:
        address: ``inline`` (this process), ``local`` (Ray on this machine), ``auto`` (the Ray cluster that this
            machine belongs to), or a cluster's ``host:port`` or ``ray://host:port``.
        factory: what the workers need to set up their benches.
        limits: what one trial may use.
        n_workers: workers that compress and score; the device is a process of its own.
        scheduler: ``none``, or ``asha``: of the trials of a batch that train, the worse half stops early.

    Raises:
        SpecError: the address is none of these, or the cluster does not answer or has no measuring device; or trials
            cannot be scheduled as asked.
    """
    if n_workers < 1:
        raise SpecError(f"workers.count must be at least 1, got {n_workers}")
    check_scheduler(scheduler, address)
    if address == "inline":
        return InlinePool(factory, limits)
    if address not in ("local", "auto") and not _CLUSTER.fullmatch(address):
        raise SpecError(f"workers.address must be inline, local, auto, host:port or ray://host:port, got '{address}'")
    from .ray_pool import RayPool  # Ray takes half a second to import, and inline runs do without it

    pool = RayPool(factory, limits, n_workers=n_workers, address=address)
    if scheduler == "none":
        return pool
    from .asha import AshaPool  # pandas and pyarrow take a second to import

    return AshaPool(pool)
