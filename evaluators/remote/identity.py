"""What an agent says that it is, and what of it is believed."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...hw_profiles.profile import HardwareProfile
from ...hw_profiles.target import OPTION_KINDS, TECHNIQUE_KINDS, Capabilities, Target
from ...spaces.policy import FUSIONS, PRECISIONS
from ..device import Device
from .wire import PROTOCOL, WirePart

_Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
_Word = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
_Mhz = Annotated[float, Field(gt=0, le=1e6)] | None


class _Target(WirePart):
    runtime: _Word
    device: _Word
    threads: int
    batch_size: int


class _Profile(WirePart):
    device: _Word
    features: tuple[_Text, ...] = Field(max_length=64)
    n_cores: int = Field(ge=1, le=65536)
    memory_bytes: int = Field(ge=0, le=2**60)
    runtime: _Word
    runtime_version: _Word
    target: _Target
    base_mhz: _Mhz
    max_mhz: _Mhz
    caches_bytes: tuple[tuple[_Text, int], ...] = Field(max_length=16)


class _Capabilities(WirePart):
    quantize: dict[str, tuple[str, ...]] = Field(max_length=64)
    precisions: tuple[str, ...] = Field(min_length=1, max_length=8)
    default_precision: str
    fusions: tuple[str, ...] = Field(min_length=1, max_length=16)
    activation_codes: Literal["asymmetric", "symmetric", "symmetric_signed"]
    quantize_conv_outputs: bool
    dynamic_form: Literal["operators", "weights"]
    size_only: tuple[str, ...] = Field(max_length=64)
    channel_multiple: int = Field(ge=1, le=1024)

    @model_validator(mode="after")
    def _known(self) -> "_Capabilities":
        for option, kinds in self.quantize.items():
            _require_known(kinds, OPTION_KINDS.get(option, frozenset()), f"layer kinds of {option[:32]}")
        _require_known(("none",), self.quantize, "options")
        _require_known(self.precisions, PRECISIONS, "precisions")
        _require_known((self.default_precision,), self.precisions, "default precision")
        _require_known(self.fusions, FUSIONS, "fusions")
        _require_known(self.size_only, {**OPTION_KINDS, **TECHNIQUE_KINDS}, "size only")
        if self.precisions[0] != "float32" or "none" not in self.fusions:
            raise ValueError("float32 comes first among the precisions, and no fusion is a fusion, too")
        return self


class Description(WirePart):
    """A device with its profile and capabilities, as an agent states them."""

    protocol: int
    profile: _Profile
    capabilities: _Capabilities

    def to_profile(self) -> HardwareProfile:
        """Returns the profile."""
        return HardwareProfile.from_json(self.profile.model_dump())

    def to_capabilities(self) -> Capabilities:
        """Returns the capabilities."""
        fields: dict[str, Any] = self.capabilities.model_dump()
        fields["quantize"] = {option: frozenset(kinds) for option, kinds in fields["quantize"].items()}
        fields["size_only"] = frozenset(fields["size_only"])
        return Capabilities(**fields)

    def is_for(self, asked: Target) -> bool:
        """Whether it is of the threads and the batch that were asked for, in this version's words."""
        target = self.profile.target
        settings = (target.threads, target.batch_size)
        return self.protocol == PROTOCOL and settings == (asked.threads, asked.batch_size)


def describe_device(device: Device) -> Description:
    """Returns what an agent says of its device."""
    profile, offered = device.identify(), device.capabilities
    return Description(
        protocol=PROTOCOL,
        profile=_Profile(
            device=profile.device,
            features=profile.features,
            n_cores=profile.n_cores,
            memory_bytes=profile.memory_bytes,
            runtime=profile.runtime,
            runtime_version=profile.runtime_version,
            target=_Target(**profile.target.to_json()),
            base_mhz=profile.base_mhz,
            max_mhz=profile.max_mhz,
            caches_bytes=profile.caches_bytes,
        ),
        capabilities=_Capabilities(
            quantize={option: tuple(sorted(kinds)) for option, kinds in offered.quantize.items()},
            precisions=offered.precisions,
            default_precision=offered.default_precision,
            fusions=offered.fusions,
            activation_codes=offered.activation_codes,  # type: ignore[arg-type]
            quantize_conv_outputs=offered.quantize_conv_outputs,
            dynamic_form=offered.dynamic_form,  # type: ignore[arg-type]
            size_only=tuple(sorted(offered.size_only)),
            channel_multiple=offered.channel_multiple,
        ),
    )


def _require_known(names: Any, known: Any, noun: str) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"{noun}: {unknown[0][:64]!r} is not known here; the agent may be of another version")
