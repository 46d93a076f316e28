"""Learning from teachers: their softened outputs, and what their modules compute on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...core.errors import PolicyError, SpecError
from ...core.names import describe_unknown
from .data import TrainingData, take_batch
from .losses import class_axis, list_outputs

#: teachers' outputs for all samples are kept where they take no more than this
_MAX_KEPT_BYTES = 512 * 2**20
#: samples that teachers are shown at once when their outputs are kept
_N_AT_ONCE = 256


def output_kind(loss: object, labels: np.ndarray | None) -> str:
    """Returns what outputs are: ``categorical`` or ``bernoulli`` logits, or ``real`` numbers.

    Args:
        loss: as in `TrainingData`; a loss of the user's own says nothing.
        labels: of any shape; None, without a named loss, stands for logits of classes.
    """
    if loss == "binary_cross_entropy":
        return "bernoulli"
    if loss == "cross_entropy":
        return "categorical"
    is_real = labels is not None and np.issubdtype(labels.dtype, np.floating)
    return "real" if loss == "mse" or is_real else "categorical"


@dataclass(frozen=True)
class SoftTargets:
    """Compares outputs with those of teachers.

    Logits: KL(teachers ‖ student) of the probabilities at temperature T, times T²; Hinton, Vinyals and Dean (2015),
    section 2. Several teachers speak with the mean of their probabilities. Real outputs: the mean squared error.
    """

    kind: str
    temperature: float

    def soften(self, outputs: Sequence[torch.Tensor], labels: torch.Tensor | None) -> list[torch.Tensor]:
        """Returns what is learned of each output of one teacher: probabilities, or the outputs themselves.

        Args:
            outputs: (batch, …) tensors.
            labels: (batch, …), which tell the axis of the classes; None.
        """
        if self.kind == "real":
            return list(outputs)
        if self.kind == "bernoulli":
            return [torch.sigmoid(output / self.temperature) for output in outputs]
        return [torch.softmax(output / self.temperature, class_axis(output, labels)) for output in outputs]

    def loss(
        self, outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns the mean over outputs: scalar.

        Args:
            outputs: (batch, …) tensors of the student.
            targets: as `soften` makes them, each of the shape of its output.
            labels: (batch, …); where there is one for each token, negative ones are passed over.

        Raises:
            PolicyError: student and teacher have outputs of different shapes.
        """
        shapes = [tuple(output.shape) for output in outputs], [tuple(target.shape) for target in targets]
        if shapes[0] != shapes[1]:
            raise PolicyError(f"student and teacher must give outputs of equal shapes, got {shapes[0]} and {shapes[1]}")
        return torch.stack(
            [self._loss(output, target, labels) for output, target in zip(outputs, targets, strict=True)]
        ).mean()

    def _loss(self, output: torch.Tensor, target: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        if self.kind == "real":
            return functional.mse_loss(output, target)
        softened = output / self.temperature
        if self.kind == "bernoulli":
            entropy = functional.binary_cross_entropy(target, target)
            return self.temperature**2 * (functional.binary_cross_entropy_with_logits(softened, target) - entropy)
        axis = class_axis(output, labels)
        log_probability = torch.log_softmax(softened, axis)
        divergence = (torch.xlogy(target, target) - target * log_probability).sum(axis)
        if labels is not None and labels.shape == divergence.shape:
            divergence = divergence[labels >= 0]
        return self.temperature**2 * divergence.sum() / max(1, divergence.numel())


@dataclass
class Teachers:
    """Networks that are listened to, in eval mode; their outputs are kept where each sample comes more than once."""

    modules: Sequence[nn.Module]
    targets: SoftTargets
    data: TrainingData
    device: torch.device
    #: whether samples come again
    keeps: bool = False
    #: whether they compute in bfloat16
    is_half: bool = False
    #: per output an (n_samples, …) tensor
    _kept: list[torch.Tensor] = field(default_factory=list)

    def teach(self, indices: np.ndarray) -> list[torch.Tensor]:
        """Returns per output (batch, …) what is to be learned of the samples at ``indices``: (batch,) int array."""
        if not self.keeps:
            return self._ask(indices)
        if not self._kept:
            self._keep_all()
        if not self._kept:
            return self._ask(indices)
        chosen = torch.from_numpy(indices)
        return [kept[chosen].to(self.device) for kept in self._kept]

    def _ask(self, indices: np.ndarray) -> list[torch.Tensor]:
        batch = take_batch(self.data, indices, device=self.device)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_half):
            given = [list_outputs(module(**batch.inputs)) for module in self.modules]
        answers = [self.targets.soften([output.float() for output in outputs], batch.labels) for outputs in given]
        try:
            return [torch.stack(same).mean(0) for same in zip(*answers, strict=True)]
        except (RuntimeError, ValueError) as error:
            raise PolicyError(f"teachers must have equally many outputs of equal shapes: {error}") from error

    def _keep_all(self) -> None:
        """Asks in the order of the data, so that what is kept does not depend on when it is first needed."""
        first = self._ask(np.arange(min(2, len(self.data))))
        n_bytes = len(self.data) * sum(answer[0].numel() * answer.element_size() for answer in first)
        if n_bytes > _MAX_KEPT_BYTES:
            self.keeps = False
            return
        starts = range(0, len(self.data), _N_AT_ONCE)
        parts = [self._ask(np.arange(start, min(start + _N_AT_ONCE, len(self.data)))) for start in starts]
        self._kept = [torch.cat(same).cpu() for same in zip(*parts, strict=True)]


class FeatureMatch(nn.Module):
    """Brings outputs of the student's modules close to those of a teacher's.

    The squared error is divided by the variance of the teacher's, so that modules count alike; where the channels
    differ, a learned linear map takes the student's to the teacher's (Romero et al., FitNets (2015), section 2.2).
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.adaptors = nn.ModuleDict()
        self._pairs = tuple(pairs)
        self._seen: dict[tuple[str, int], torch.Tensor] = {}
        for place, (ours, theirs) in enumerate(self._pairs):
            self._watch("student", place, _find(student, ours, "student"))
            self._watch("teacher", place, _find(teacher, theirs, "teacher"))

    def _watch(self, side: str, place: int, module: nn.Module) -> None:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._seen[side, place] = list_outputs(output)[0].float()

        module.register_forward_hook(keep)

    def prepare(self) -> None:
        """Makes the adaptors for what student and teacher have just computed."""
        for place, (ours, _) in enumerate(self._pairs):
            seen, wanted = self._seen["student", place], self._seen["teacher", place]
            axis = _channel_axis(seen)
            other = [side for i, side in enumerate(seen.shape) if i != axis]
            if seen.ndim != wanted.ndim or other != [side for i, side in enumerate(wanted.shape) if i != axis]:
                raise PolicyError(
                    f"feature {ours}: student and teacher may differ in channels only, "
                    f"got {tuple(seen.shape)} and {tuple(wanted.shape)}"
                )
            if seen.shape[axis] != wanted.shape[axis]:
                adaptor = nn.Linear(seen.shape[axis], wanted.shape[axis])
                self.adaptors[str(place)] = adaptor.to(seen.device)
        self._seen.clear()

    def loss(self) -> torch.Tensor:
        """Returns the mean over pairs, after student and teacher have run on a batch: scalar."""
        losses = []
        for place in range(len(self._pairs)):
            seen, wanted = self._seen["student", place], self._seen["teacher", place]
            if str(place) in self.adaptors:
                axis = _channel_axis(seen)
                seen = self.adaptors[str(place)](seen.movedim(axis, -1)).movedim(-1, axis)
            variance = wanted.var().clamp_min(torch.finfo(wanted.dtype).tiny)
            losses.append(functional.mse_loss(seen, wanted) / variance)
        self._seen.clear()
        return torch.stack(losses).mean()


def _channel_axis(tensor: torch.Tensor) -> int:
    """Images and signals have their channels second, rows and tokens last."""
    return 1 if tensor.ndim >= 4 else tensor.ndim - 1


def _find(root: nn.Module, name: str, side: str) -> nn.Module:
    modules = dict(root.named_modules())
    if name not in modules:
        raise SpecError(f"features: {describe_unknown(f'module of the {side}', name, [m for m in modules if m])}")
    return modules[name]
