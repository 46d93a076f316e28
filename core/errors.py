"""The errors of Trimtab, named by how the controller reacts to them.

TrimtabError
├── SpecError            stop before any work: the user has to change something
│   ├── ModelError       the model cannot be loaded, exported or read
│   ├── DataError        the data do not fit the model or the metric
│   ├── RunError         a run folder or its journal does not fit what is asked
│   ├── TableError       a kernel table is damaged, of another device or version, or was given wrong numbers
│   ├── ProfileError     a device profile is damaged, or of another device, version or setting
│   └── ArtifactError    an artifact is damaged, altered or unreadable
├── PolicyError          this policy cannot be built: INFEASIBLE, go on
├── TransientError       a worker died, hung or lost its node: retry
│   ├── DeviceLostError  the device cannot be reached any more: end, resume later
│   └── OverloadedError  a served model has too many calls: try again later, or elsewhere
└── MeasurementError     no trustworthy number could be had: FAILED, go on
"""


class TrimtabError(Exception):
    """The root of every error that Trimtab raises on purpose."""


class SpecError(TrimtabError):
    """The user's input cannot be used; nothing was started."""


class ModelError(SpecError):
    """The model cannot be loaded, exported or read."""


class DataError(SpecError):
    """The data do not fit the model or the metric."""


class RunError(SpecError):
    """A run folder or its journal does not fit what is asked of it."""


class TableError(SpecError):
    """A kernel table is damaged, belongs to another device or runtime, or was given wrong numbers."""


class ProfileError(SpecError):
    """A device profile is damaged, or was measured on another device, runtime version or setting."""


class ArtifactError(SpecError):
    """An artifact is damaged, altered or unreadable."""


class PolicyError(TrimtabError):
    """A policy cannot be built for this model; other policies can."""


class TransientError(TrimtabError):
    """Something outside the policy went wrong; the same job may succeed when retried."""


class DeviceLostError(TransientError):
    """The device cannot be reached, after everything was tried: every further job would fail as well."""


class OverloadedError(TransientError):
    """Not even the fastest policy of a served model could answer this call within the bound."""


class MeasurementError(TrimtabError):
    """No trustworthy number could be had, for example because the machine is unquiet."""
