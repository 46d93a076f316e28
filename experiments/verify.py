"""Re-measures an artifact on this machine against its promise."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compressors.artifact import Artifact
from ..core.errors import ArtifactError, MeasurementError
from ..evaluators.accuracy import run_split
from ..evaluators.device import Device, Executable, build_recorded_device
from ..evaluators.latency import TimingSettings
from ..evaluators.measurement import Estimate
from ..evaluators.memory import measure_peak_memory
from ..evaluators.metrics import estimate, find_metric
from ..evaluators.resources import ResourceMeter, WantedResources
from ..hw_profiles.boards.board import LUT_RUNTIME
from ..hw_profiles.energy.energy import Energy
from ..hw_profiles.energy.energy_table import load_energy_table
from ..hw_profiles.latency import Latency
from ..hw_profiles.target import Target
from .artifact_folder import read_artifact, read_probe
from .benches import compare_with_yardstick
from .manifest import Manifest, check_files, read_manifest
from .policy_file import load_policy
from .preparation import load_dataset

#: a machine that is slower than when the promise was made is forgiven up to this factor
_MAX_SLOWDOWN = 3.0
#: outputs may differ from the recorded ones by this much, relative to the largest recorded value
_OUTPUT_TOLERANCE = 0.02
#: times the latency is measured again before a promise counts as broken; noise only ever adds time
_N_TRIES = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table: what was promised, what was found."""

    name: str
    promised: str
    achieved: str
    is_kept: bool
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """All checks of an artifact."""

    folder: Path
    checks: tuple[Check, ...]

    @property
    def is_kept(self) -> bool:
        """Whether every promise is kept."""
        return all(check.is_kept for check in self.checks)


def verify(artifact: str | Path, *, data: Any = None, tolerance: float = 0.25) -> Verification:
    """Checks files, outputs, latency, size and, with data, accuracy of an artifact.

    Args:
        artifact: the folder.
        data: as in a spec; None leaves the accuracy unchecked.
        tolerance: how much slower than promised counts as kept, beyond what the whole machine is slower.

    Raises:
        ArtifactError: the folder is damaged or was altered.
        SpecError: the runtime or the data are missing.
        MeasurementError: the machine is too unquiet for a verdict, or the runtime refuses the model.
    """
    folder = Path(artifact)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    policy = load_policy(folder / "policy.json")
    if policy.target != manifest.target:
        raise ArtifactError(f"{folder}: policy.json and manifest.json name different targets")
    device = _find_device(manifest.target)
    is_stand_in = device.target.runtime != manifest.target.runtime
    model = read_artifact(folder, manifest)
    executable = device.load(model)
    batches = read_probe(folder)
    checks = [Check("files", f"{len(manifest.files)} sha256", "equal", is_kept=True)]
    checks += _check_outputs(executable, batches)
    if batches and is_stand_in:
        checks += _skip_latency(manifest)
    elif batches:
        checks += _check_latency(device, executable, batches[0][0], manifest, tolerance)
        checks += _check_memory(model, batches[0][0], manifest)
        checks += _check_activations(device, model, batches[0][0], manifest)
        checks += _check_energy(device, model, batches[0][0], manifest.promise.measurement.energy, tolerance)
    checks += _check_size(folder, manifest)
    if data is not None:
        checks += _check_accuracy(executable, manifest, data)
    profile = device.identify().to_json()
    changed = [key for key in ("device", "runtime_version") if profile.get(key) != manifest.profile.get(key)]
    note = ", ".join(f"{key}: {manifest.profile.get(key)} → {profile.get(key)}" for key in changed)
    checks.append(
        Check("machine", str(manifest.profile.get("device")), str(profile["device"]), is_kept=True, note=note)
    )
    return Verification(folder, tuple(checks))


def _find_device(target: Target) -> Device:
    """Makes the device of an artifact; where its table is not here, what computes in its place."""
    if target.runtime == LUT_RUNTIME and not Path(target.device).is_file():
        return build_recorded_device(Target("onnxruntime", "cpu", 1, target.batch_size))
    return build_recorded_device(target)


def _skip_latency(manifest: Manifest) -> list[Check]:
    promised = manifest.promise.measurement.latency
    if promised is None:
        return []
    note = (
        f"the promise comes from the table of {manifest.profile.get('device')}, and its board file "
        f"{manifest.target.device} is not here; nothing of it can be measured on this machine"
    )
    return [Check("latency", f"{promised.median_s * 1e3:.3f} ms", "not checked", is_kept=True, note=note)]


def _check_price(promised: Latency, price: Latency, name: str, tolerance: float) -> Check:
    """Compares a price with an earlier one; nothing is measured."""
    limit_s = promised.median_s * (1.0 + tolerance)
    return Check(
        "latency",
        f"{promised.median_s * 1e3:.3f} ms (≤ {limit_s * 1e3:.3f})",
        f"{price.median_s * 1e3:.3f} ms ({price.source})",
        is_kept=price.median_s <= limit_s,
        note=f"priced again as {name} states its times; nothing was measured, for the device itself is not here",
    )


def _check_outputs(
    executable: Executable, batches: list[tuple[dict[str, np.ndarray], list[np.ndarray]]]
) -> list[Check]:
    worst = 0.0
    for inputs, recorded in batches:
        outputs = executable.run(inputs)
        if len(outputs) != len(recorded) or any(a.shape != b.shape for a, b in zip(outputs, recorded, strict=True)):
            return [Check("outputs", "as recorded", "other shapes", is_kept=False)]
        for got, want in zip(outputs, recorded, strict=True):
            if not np.isfinite(got).all():
                return [Check("outputs", "as recorded", "not finite", is_kept=False)]
            scale = max(float(np.abs(want).max(initial=0.0)), 1e-6)
            worst = max(worst, float(np.abs(got.astype(np.float64) - want).max(initial=0.0)) / scale)
    kept = worst <= _OUTPUT_TOLERANCE
    return [Check("outputs", f"within {_OUTPUT_TOLERANCE:.0%}", f"{worst:.2%} off", is_kept=kept)] if batches else []


def _check_latency(
    device: Device, executable: Executable, batch: Mapping[str, np.ndarray], manifest: Manifest, tolerance: float
) -> list[Check]:
    promised = manifest.promise.measurement.latency
    if promised is None:
        return []
    best: Check | None = None
    for _ in range(_N_TRIES):
        latency, yardstick = compare_with_yardstick([executable], batch, TimingSettings())
        if latency.source != "measured":
            return [_check_price(promised, latency, device.identify().device, tolerance)]
        slowdown = 1.0
        if manifest.promise.yardstick_s is not None:
            slowdown = yardstick.median_s / manifest.promise.yardstick_s
        if slowdown > _MAX_SLOWDOWN:
            raise MeasurementError(
                f"this machine is {slowdown:.1f} times slower than when the promise was made; "
                f"close what else runs on it, or apply the policy anew on it"
            )
        limit_s = promised.median_s * max(1.0, slowdown) * (1.0 + tolerance)
        best = Check(
            "latency",
            f"{promised.median_s * 1e3:.3f} ms (≤ {limit_s * 1e3:.3f})",
            f"{latency.median_s * 1e3:.3f} ± {latency.iqr_s * 1e3:.3f} ms",
            is_kept=latency.median_s <= limit_s,
            note=f"{latency.runs} runs on {device.target.name}; machine at {slowdown:.2f} of the promised time",
        )
        if best.is_kept:
            break
    return [best] if best else []


def _check_memory(model: Artifact, batch: Mapping[str, np.ndarray], manifest: Manifest) -> list[Check]:
    promised = manifest.promise.measurement.peak_memory_bytes
    if promised is None:
        return []
    found = measure_peak_memory(manifest.target, model, batch)
    kept = found <= promised * 1.1 + 2e6
    return [Check("peak memory", f"{promised / 1e6:.1f} MB", f"{found / 1e6:.1f} MB", is_kept=kept)]


def _check_activations(
    device: Device, model: Artifact, batch: Mapping[str, np.ndarray], manifest: Manifest
) -> list[Check]:
    promised = manifest.promise.measurement.peak_activation_bytes
    if promised is None:
        return []
    meter = ResourceMeter(device, batch, WantedResources(peak_activation=True))
    found = meter.measure(model, device.load(model)).peak_activation_bytes or 0
    return [Check("activations", f"{promised / 1e6:.3f} MB", f"{found / 1e6:.3f} MB", is_kept=found <= promised * 1.1)]


def _check_energy(
    device: Device, model: Artifact, batch: Mapping[str, np.ndarray], promised: Energy | None, tolerance: float
) -> list[Check]:
    """Checks the energy where it comes from the source of the promise; joules of different sources say nothing."""
    if promised is None:
        return []
    meter = ResourceMeter(device, batch, WantedResources(energy_table=load_energy_table()))
    found: Energy | None = None
    for _ in range(_N_TRIES):
        found = meter.measure(model, device.load(model)).energy
        if found is None or found.source != promised.source or found.joules <= promised.joules * (1.0 + tolerance):
            break
    wanted = f"{promised.joules * 1e3:.4g} mJ ({promised.source})"
    if found is None or found.source != promised.source:
        reason = "" if found is None else f": {found.note or found.source}"
        return [Check("energy", wanted, "not checked", is_kept=True, note=f"another source here{reason}")]
    kept = found.joules <= promised.joules * (1.0 + tolerance)
    return [Check("energy", wanted, f"{found.joules * 1e3:.4g} mJ", is_kept=kept, note=found.note)]


def _check_size(folder: Path, manifest: Manifest) -> list[Check]:
    promised = manifest.promise.measurement.size_bytes
    if promised is None:
        return []
    found = (folder / "model.onnx").stat().st_size
    return [Check("size", f"{promised / 1e6:.3f} MB", f"{found / 1e6:.3f} MB", is_kept=found <= promised)]


def _check_accuracy(executable: Executable, manifest: Manifest, data: Any) -> list[Check]:
    promised = manifest.promise.measurement.accuracy
    dataset = load_dataset(data)
    metric = find_metric(dataset.metric)
    if metric.needs_original:
        note = f"{metric.name} compares with the original, which an artifact does not hold"
        return [Check("accuracy", "–", "not checked", is_kept=True, note=note)]
    split = dataset.test
    outputs = run_split(executable, split, batch_size=manifest.target.batch_size)
    found: Estimate = estimate(metric(outputs, split.labels, outputs))
    achieved = f"{found.mean:.4f} ± {found.standard_error:.4f} ({manifest.promise.split})"
    if promised is None:
        return [Check("accuracy", "–", achieved, is_kept=True, note="the artifact promises none")]
    margin = 2 * float(np.hypot(found.standard_error, promised.standard_error))
    kept = found.mean >= promised.mean - margin
    return [Check("accuracy", f"{promised.mean:.4f} ± {promised.standard_error:.4f}", achieved, is_kept=kept)]
