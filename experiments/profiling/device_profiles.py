"""Device profiles on disk: the user's own, then those that ship with the package; and what they say of a layer."""

import importlib.resources
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import ProfileError
from ...hw_profiles.device_profile import (
    DeviceProfile,
    profile_key,
    read_device_profile,
    variant_of,
    write_device_profile,
)
from ...hw_profiles.profile import HardwareProfile
from ...spaces.layer import Layer
from ..cache import cache_folder

_REMEDY = "trimtab profile SPEC makes one"


@dataclass(frozen=True)
class FoundProfile:
    """The profile of a device, or why there is none."""

    profile: DeviceProfile | None
    #: one line for `trimtab plan`
    note: str


def find_profile(identity: HardwareProfile, choice: str | None = None) -> FoundProfile:
    """Looks for the profile of a device.

    A damaged file in the user's cache is passed over and named; one that the user named is refused.

    Args:
        identity: the device under its runtime.
        choice: ``none``, the path of a profile's file, or None for the one that fits.

    Raises:
        ProfileError: the named file is missing, damaged, or of another device, runtime version or setting.
    """
    if choice == "none":
        return FoundProfile(None, "profile: none, so no option was dropped for its speed")
    if choice is not None:
        profile = read_device_profile(Path(choice))
        profile.require(identity)
        return FoundProfile(profile, _describe(profile, choice))
    refused = []
    for path in _files(identity):
        try:
            profile = read_device_profile(path)
            profile.require(identity)
            return FoundProfile(profile, _describe(profile, str(path)))
        except ProfileError as error:
            refused.append(str(error))
    reason = f" ({'; '.join(refused)})" if refused else ""
    return FoundProfile(None, f"no profile of this device, so no option was dropped for its speed: {_REMEDY}{reason}")


def profile_path(identity: HardwareProfile) -> Path:
    """Returns where the user's profile of a device belongs; it need not exist."""
    return cache_folder() / "profiles" / _file_name(identity)


def save_profile(profile: DeviceProfile) -> Path:
    """Keeps a profile where `find_profile` looks first; replaces an older one of the same device."""
    path = profile_path(profile.identity)
    write_device_profile(path, profile)
    return path


def why_slow(profile: DeviceProfile | None, option: str, layer: Layer) -> str | None:
    """Returns why an option is not worth trying on a layer; None where it is, or where nobody measured it.

    Args:
        profile: of the target; None where there is none, or where size counts, which every option reduces.
        option: a name from `QUANTIZE_OPTIONS`.
        layer: the layer.
    """
    if profile is None:
        return None
    variant = variant_of(layer.kind, layer.weight_shape, layer.output_shape)
    verdict = profile.find(layer.kind, variant, option)
    if verdict is None or verdict.is_worth_trying:
        return None
    best = verdict.best
    what = f"{layer.kind} ({variant})" if variant else layer.kind
    return (
        f"on {what} layers it takes {best.ratio:.2f} ± {best.error:.2f} of float32's time on this device at best; "
        f"keep it with force: true"
    )


def _files(identity: HardwareProfile) -> Iterator[Path]:
    """The files that may hold the profile: the user's, then the shipped ones of this device and target."""
    mine = profile_path(identity)
    if mine.is_file():
        yield mine
    shipped = importlib.resources.files("trimtab.hw_profiles") / "profiles" / _file_name(identity)
    if shipped.is_file():
        yield Path(str(shipped))


def _file_name(identity: HardwareProfile) -> str:
    """One file per device, target and runtime version: ``onnxruntime-cpu-1t-b1-0123456789abcdef.json``."""
    target = re.sub(r"[^A-Za-z0-9_.-]+", "_", identity.target.name)
    return f"{target}-{profile_key(identity).id}.json"


def _describe(profile: DeviceProfile, where: str) -> str:
    return f"profile of this device: {where}, measured on {profile.measured_on}"
