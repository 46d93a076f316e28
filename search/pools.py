"""Chooses the worker pool that an address names."""

import re

from ..core.errors import SpecError
from .inline_pool import InlinePool
from .worker_pool import BenchFactory, Limits, WorkerPool

_CLUSTER = re.compile(r"(ray://)?[\w.\-\[\]:]+:\d{1,5}")


def build_pool(address: str, factory: BenchFactory, limits: Limits, *, n_workers: int) -> WorkerPool:
    """Makes a pool.

    Args:
        address: ``inline`` (this process), ``local`` (Ray on this machine), ``auto`` (the Ray cluster that this
            machine belongs to), or a cluster's ``host:port`` or ``ray://host:port``.
        factory: what the workers need to set up their benches.
        limits: what one trial may use.
        n_workers: workers that compress and score; the device is a process of its own.

    Raises:
        SpecError: the address is none of these, or the cluster does not answer or has no measuring device.
    """
    if n_workers < 1:
        raise SpecError(f"workers.count must be at least 1, got {n_workers}")
    if address == "inline":
        return InlinePool(factory, limits)
    if address not in ("local", "auto") and not _CLUSTER.fullmatch(address):
        raise SpecError(f"workers.address must be inline, local, auto, host:port or ray://host:port, got '{address}'")
    from .ray_pool import RayPool  # Ray takes half a second to import, and inline runs do without it

    return RayPool(factory, limits, n_workers=n_workers, address=address)
