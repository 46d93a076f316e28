"""What ``trimtab devices`` says of the runtimes at hand."""

from collections.abc import Iterator

from ..core.errors import SpecError
from ..evaluators.device import DEVICES, Device, KernelDevice, build_device
from ..hw_profiles.target import Target
from .profiling.device_profiles import find_profile

#: tried in this order; a runtime that drives none of them says why not the first
_DEVICES = ("cpu", "cuda")


def describe_devices() -> Iterator[str]:
    """Yields lines: each runtime with its version, device and offers, or why it is not at hand."""
    for name in DEVICES:
        device = _build_first(name)
        if isinstance(device, SpecError):
            yield f"{name}: {device}"
        else:
            yield from _describe(name, device)


def _build_first(name: str) -> Device | SpecError:
    refusals = []
    for place in _DEVICES:
        try:
            return build_device(Target(name, device=place))
        except SpecError as error:
            refusals.append(error)
    return refusals[0]


def _describe(name: str, device: Device) -> Iterator[str]:
    identity, offers = device.identify(), device.capabilities
    yield f"{name} {identity.runtime_version} on {identity.device}, {identity.n_cores} cores"
    yield f"  instruction sets: {', '.join(identity.features)}"
    yield f"  precisions: {', '.join(offers.precisions)} (default {offers.default_precision})"
    yield f"  options: {', '.join(offers.quantize)}"
    if isinstance(device, KernelDevice):
        has_profile = find_profile(identity).profile is not None
        yield f"  tells its kernels; {'its profile is at hand' if has_profile else 'trimtab profile SPEC measures it'}"
