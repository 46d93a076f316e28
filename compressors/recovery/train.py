"""Training after compression, step by step, so that it can be stopped, scored and gone on with at any moment."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from ...core.errors import PolicyError, RunError, SpecError
from ...core.seeds import derive_seed
from ...spaces.recovery import Recovery
from ...spaces.treatment import Treatment
from ..layer_inputs import LayerInputs
from .data import Batch, Order, TrainingData, take_batch
from .distill import FeatureMatch, SoftTargets, Teachers, output_kind
from .input_statistics import collect_inputs
from .losses import find_loss, list_outputs
from .optimizers import Optimizers
from .schedules import learning_rate_factor
from .simulate import Simulation, simulated_part

#: gradients longer than this are cut to it
_MAX_NORM = 5.0


@dataclass(frozen=True)
class RecoveryPlan:
    """How a student is trained."""

    #: module path → what becomes of the layer; modules that are missing stay as they are
    treatments: Mapping[str, Treatment]
    recovery: Recovery
    #: the networks that are listened to; at least one for ``distill``
    teachers: Sequence[nn.Module] = ()
    seed: int = 0
    #: module path → what enters it; looked at on training data where it is missing and needed
    layer_inputs: Mapping[str, LayerInputs] = field(default_factory=dict)
    #: codes of static int8 activations, as the target's ``Capabilities.activation_codes``
    activation_codes: str = "asymmetric"


@dataclass(frozen=True)
class Recovered:
    """A trained model, its weights exactly as they will be stored."""

    #: of the student's class, in eval mode
    module: nn.Module
    #: module path → (n_outputs,) float32 step of its int8 weight
    learned_steps: Mapping[str, np.ndarray]
    #: module path → (low, high) of its int8 input
    learned_ranges: Mapping[str, tuple[float, float]]
    #: module path → the two values of its binary input
    learned_levels: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def recover(student: nn.Module, data: TrainingData, plan: RecoveryPlan) -> Recovered:
    """Trains from beginning to end; see `RecoverySession`."""
    session = RecoverySession(student, data, plan)
    session.advance(session.n_steps)
    return session.finish()


class RecoverySession:
    """Training that is under way.

    Student and teachers are left as they are, and so is the global random state. On a CPU with equally many threads
    the same seed gives the same weights, also when the training was stopped and gone on with.

    >>> data = TrainingData({"input": np.eye(4, dtype=np.float32)}, np.arange(4))
    >>> session = RecoverySession(nn.Linear(4, 4), data, RecoveryPlan({}, Recovery("finetune", epochs=3)))
    >>> session.n_steps
    3
    >>> session.advance(2) > 0, session.n_done
    (True, 2)
    """

    def __init__(self, student: nn.Module, data: TrainingData, plan: RecoveryPlan) -> None:
        """Puts the treatments into a copy of the student.

        Args:
            student: the network after pruning and low rank; its weights are those before anything else.
            data: what is learned from.
            plan: how.

        Raises:
            SpecError: loss, features, labels or teachers do not fit together.
            PolicyError: the treatments do not fit the student.
        """
        recovery = plan.recovery
        self._original, self._data, self._recovery = student, data, recovery
        self._student = copy.deepcopy(student)
        _unfreeze(self._student)
        self._device = next((p.device for p in student.parameters()), torch.device("cpu"))
        self._order = Order(len(data), min(recovery.batch_size, len(data)), plan.seed)
        self._step = 0
        #: all steps of the training; 0 where the method is ``none``
        self.n_steps = self._order.n_steps(recovery.epochs) if recovery.trains else 0
        self._random = self._first_random(plan.seed)
        with self._randomness():
            self._simulation = self._simulate(plan)
            self._is_half = computes_faster_in_half(self._device) and not self._simulation.is_fine
            self._prepare_losses(plan)
        learners = nn.ModuleList([self._student, *([self._features] if self._features else [])])
        self._optimizers = Optimizers(
            learners, self._simulation.special_parameters(), learning_rate=recovery.learning_rate
        )

    @property
    def n_done(self) -> int:
        """Steps that have been made."""
        return self._step

    def advance(self, n_steps: int) -> float:
        """Makes so many steps, or those that are left; returns the mean loss of them, NaN where there was none.

        Raises:
            PolicyError: the training diverged.
        """
        losses = []
        with self._randomness(), torch.enable_grad():
            self._student.train()
            for _ in range(min(n_steps, self.n_steps - self._step)):
                losses.append(self._make_step())
        return float(np.mean(losses)) if losses else math.nan

    def snapshot(self) -> Recovered:
        """Returns the model as it is now; training can go on."""
        return Recovered(
            self._simulation.bake(self._original),
            self._simulation.learned_steps(),
            self._simulation.learned_ranges(),
            self._simulation.learned_levels(),
        )

    def finish(self) -> Recovered:
        """Returns the trained model.

        Raises:
            RunError: steps are left.
        """
        if self._step < self.n_steps:
            raise RunError(f"a training must be at its end, got step {self._step} of {self.n_steps}; advance first")
        return self.snapshot()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns name → array of everything that going on needs, besides what the session was made of."""
        arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in self._tensors()}
        arrays.update({f"optimizer/{n}": t.detach().cpu().numpy().copy() for n, t in self._optimizers.tensors()})
        arrays.update({f"random/{i}": state.numpy().copy() for i, state in enumerate(self._random)})
        return {**arrays, "step": np.array(self._step, np.int64)}

    def load_state_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from what `state_dict` gave, in a session made of the same student, data and plan.

        Raises:
            RunError: the state is that of another session.
        """
        tensors = dict(self._tensors())
        n_random = len(self._random)
        wanted = {*tensors, "step", *(f"random/{i}" for i in range(n_random))}
        given = {name for name in arrays if not name.startswith("optimizer/")}
        if wanted != given or any(tuple(tensors[n].shape) != arrays[n].shape for n in tensors):
            odd = sorted(wanted ^ given)[:3] or "shapes"
            raise RunError(f"the training state must be that of the same student and plan; it differs in {odd}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(torch.from_numpy(arrays[name].copy()))
        self._optimizers.load(
            {n.removeprefix("optimizer/"): a for n, a in arrays.items() if n.startswith("optimizer/")}
        )
        self._random = [torch.from_numpy(arrays[f"random/{i}"].copy()) for i in range(n_random)]
        self._step = int(arrays["step"])

    # -- preparation ------------------------------------------------------------------------------

    def _simulate(self, plan: RecoveryPlan) -> Simulation:
        treatments = {
            path: simulated_part(treatment, quantization_aware=plan.recovery.quantization_aware)
            for path, treatment in plan.treatments.items()
        }
        simulation = Simulation(
            self._student,
            treatments,
            inputs={**self._collect(treatments, plan.layer_inputs), **plan.layer_inputs},
            gradual=plan.recovery.sparsity_schedule == "gradual" and plan.recovery.trains,
            codes=plan.activation_codes,
        )
        simulation.watch(lambda: _run_unchanged(self._student, self._first_batch))
        return simulation

    @property
    def _first_batch(self) -> Batch:
        return take_batch(self._data, self._order.indices(0), device=self._device)

    def _collect(self, treatments: Mapping[str, Treatment], known: Mapping[str, LayerInputs]) -> dict[str, LayerInputs]:
        paths = [path for path, treatment in treatments.items() if treatment.goes_by_inputs and path not in known]
        found = [path for path, module in self._student.named_modules() if path in paths and _has_rows(module)]
        if not found:
            return {}
        return collect_inputs(self._student.eval(), found, self._first_batch.inputs)

    def _prepare_losses(self, plan: RecoveryPlan) -> None:
        recovery, labels = plan.recovery, self._data.labels
        self._hard = find_loss(self._data.loss)
        self._teachers: Teachers | None = None
        self._features: FeatureMatch | None = None
        distils = recovery.method == "distill"
        if labels is None and recovery.trains and not (distils and recovery.mix >= 1.0):
            raise SpecError("recovery needs labels in the train split, or distillation with mix: 1")
        if not distils:
            return
        if not plan.teachers:
            raise SpecError("distillation needs at least one teacher, got none")
        modules = [copy.deepcopy(teacher).eval().to(self._device) for teacher in plan.teachers]
        targets = SoftTargets(output_kind(self._data.loss, labels), recovery.temperature)
        keeps = recovery.epochs > 1 and not recovery.features
        self._teachers = Teachers(modules, targets, self._data, self._device, keeps=keeps, is_half=self._is_half)
        if recovery.features:
            self._features = FeatureMatch(self._student, modules[0], recovery.features)
            self._teachers.teach(self._order.indices(0))
            _run_unchanged(self._student, self._first_batch)
            self._features.prepare()

    # -- one step ---------------------------------------------------------------------------------

    def _make_step(self) -> float:
        self._simulation.before_step(self._step, self.n_steps)
        indices = self._order.indices(self._step)
        loss = self._loss(take_batch(self._data, indices, device=self._device), indices)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._optimizers.weights, _MAX_NORM)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise PolicyError(f"training diverged at step {self._step} of {self.n_steps}; lower learning_rate")
        self._optimizers.step(learning_rate_factor(self._step, self.n_steps))
        self._step += 1
        return value

    def _loss(self, batch: Batch, indices: np.ndarray) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_half):
            given = self._student(**batch.inputs)
        outputs = [output.float() for output in list_outputs(given)]
        mix = self._recovery.mix if self._teachers is not None else 0.0
        total = outputs[0].new_zeros(())
        if mix < 1.0 and batch.labels is not None:
            total = total + (1.0 - mix) * self._hard(outputs, batch.labels)
        if self._teachers is not None:
            wanted = self._teachers.teach(indices)
            total = total + mix * self._teachers.targets.loss(outputs, wanted, batch.labels)
        if self._features is not None:
            total = total + self._recovery.feature_weight * self._features.loss()
        return total

    # -- state ------------------------------------------------------------------------------------

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for prefix, module in (("student", self._student), ("features", self._features)):
            if module is not None:
                for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                    yield f"{prefix}/{name}", tensor

    def _first_random(self, seed: int) -> list[torch.Tensor]:
        with torch.random.fork_rng(devices=self._cuda):
            torch.manual_seed(derive_seed(seed, "recovery", "torch"))
            return self._random_state()

    def _random_state(self) -> list[torch.Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._cuda)]

    @property
    def _cuda(self) -> list[torch.device]:
        return [self._device] if self._device.type == "cuda" else []

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Draws from the session's own random state, and leaves the global one as it was."""
        with torch.random.fork_rng(devices=self._cuda):
            torch.set_rng_state(self._random[0])
            for device, state in zip(self._cuda, self._random[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
            self._random = self._random_state()


def computes_faster_in_half(device: torch.device) -> bool:
    """Whether the device is a CPU that multiplies bfloat16 itself.

    There a step of ResNet-20 or MiniLM takes 0.53 of the time, and ResNet-20 with binary weights got to 91.2 % within
    half an epoch, and to 91.0 % in float32 (AMD EPYC with AVX512-BF16, torch 2.13).
    """
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, and not in every torch
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in asked)


def _has_rows(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)


def _unfreeze(student: nn.Module) -> None:
    """A network that is frozen as a whole was frozen for inference."""
    if not any(parameter.requires_grad for parameter in student.parameters()):
        for parameter in student.parameters():
            parameter.requires_grad_(parameter.is_floating_point())


def _run_unchanged(student: nn.Module, batch: Batch) -> None:
    """Runs a batch with the batch's own statistics in batch norms, and leaves the running ones as they were."""
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    student.eval()
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    with torch.no_grad():
        student(**batch.inputs)
        for name, buffer in student.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
