"""What ``trimtab devices`` says of the runtimes at hand, and of those that agents offer."""

import os
from collections.abc import Iterator, Sequence

from ..core.errors import SpecError, TrimtabError
from ..evaluators.device import DEVICES, Device, DeviceElsewhere, KernelDevice, build_device
from ..hw_profiles.target import Target
from .profiling.device_profiles import find_profile

#: the agents to list where none is named: URLs with commas or blanks between them
AGENTS = "TRIMTAB_AGENTS"
#: tried in this order; a runtime that drives none of them says why not the first
_DEVICES = ("cpu", "cuda")
_REMOTE = "remote"


def find_agents(named: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the URLs of the agents that are named, else of those in ``TRIMTAB_AGENTS``."""
    return tuple(named or os.environ.get(AGENTS, "").replace(",", " ").split())


def describe_devices(agents: Sequence[str] = ()) -> Iterator[str]:
    """Yields lines: each runtime with its version, device and offers, or why it is not at hand.

    Args:
        agents: URLs of agents, whose devices come last.
    """
    for name in DEVICES:
        if name == _REMOTE:
            continue
        device = _build_first(name)
        if isinstance(device, SpecError):
            yield f"{name}: {device}"
        else:
            yield from _describe(name, device)
    for url in agents:
        yield from _describe_agent(url)


def _build_first(name: str) -> Device | SpecError:
    refusals = []
    for place in _DEVICES:
        try:
            return build_device(Target(name, device=place))
        except SpecError as error:
            refusals.append(error)
    return refusals[0]


def _describe_agent(url: str) -> Iterator[str]:
    try:
        device = build_device(Target(_REMOTE, url))
    except TrimtabError as error:
        yield f"{_REMOTE}: {error}"
        return
    yield from _describe(f"{_REMOTE} {url}: {device.target.runtime}", device)
    yield f"  in a spec: target: {{runtime: {_REMOTE}, device: {url}}}"


def _describe(name: str, device: Device) -> Iterator[str]:
    identity, offers = device.identify(), device.capabilities
    yield f"{name} {identity.runtime_version} on {identity.device}, {identity.n_cores} cores"
    yield f"  instruction sets: {', '.join(identity.features)}"
    yield f"  precisions: {', '.join(offers.precisions)} (default {offers.default_precision})"
    yield f"  options: {', '.join(offers.quantize)}"
    if isinstance(device, KernelDevice):
        has_profile = find_profile(identity).profile is not None
        yield f"  tells its kernels; {'its profile is at hand' if has_profile else 'trimtab profile SPEC measures it'}"
    elif isinstance(device, DeviceElsewhere):
        yield "  measures latency, accuracy and peak memory; tells no kernels, counts no energy"
