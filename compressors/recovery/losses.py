"""How wrong the outputs of a model are."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...core.errors import DataError, SpecError
from ...core.imports import import_object
from ...core.names import describe_unknown
from .data import Order, TrainingData, take_batch

#: (list of output tensors, label tensor) → scalar tensor
Loss = Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]

LOSSES = ("cross_entropy", "mse", "binary_cross_entropy")


def list_outputs(outputs: Any) -> list[torch.Tensor]:
    """Returns what a model gave as a list of float tensors: of a tensor, a tuple, a list, or a mapping of them.

    Raises:
        DataError: there is no float tensor among them.
    """
    if isinstance(outputs, torch.Tensor):
        found = [outputs]
    elif isinstance(outputs, Mapping):
        found = [value for value in outputs.values() if isinstance(value, torch.Tensor)]
    elif isinstance(outputs, tuple | list):
        found = [value for value in outputs if isinstance(value, torch.Tensor)]
    else:
        found = []
    found = [tensor for tensor in found if tensor.is_floating_point()]
    if not found:
        raise DataError(f"recovery needs a model that returns float tensors, got {type(outputs).__name__}")
    return found


def find_loss(loss: object) -> Loss:
    """Returns the loss of this name, or by the labels for None: see `TrainingData`.

    Of several outputs each is held against its column of the labels, where these have one for each, and the mean of
    all is taken; otherwise only the first output counts.

    Raises:
        SpecError: the loss is not known.
    """
    if isinstance(loss, str) and ":" in loss:
        loss = import_object(loss, noun="loss")
    if callable(loss):
        return loss
    if loss is not None and loss not in LOSSES:
        raise SpecError(describe_unknown("loss", str(loss), [*LOSSES, "module:callable"]))
    return lambda outputs, labels: _mean_of_tasks(outputs, labels, loss)


def iterate_losses(
    module: nn.Module, data: TrainingData, *, n_batches: int = 8, batch_size: int = 64
) -> Iterator[torch.Tensor]:
    """Yields the loss of some batches with the graph behind it, for who wants gradients of the weights.

    The module is left alone: whoever calls chooses its mode and clears its gradients.

    Args:
        module: the network.
        data: its labels are needed.
        n_batches: batches at most.
        batch_size: samples in each.

    Raises:
        SpecError: there are no labels, or the loss is not known.
    """
    if data.labels is None:
        raise SpecError("the loss of a model needs labels in the train split")
    measure = find_loss(data.loss)
    order = Order(len(data), min(batch_size, len(data)), seed=0)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    for step in range(min(n_batches, order.batches_per_epoch)):
        batch = take_batch(data, order.indices(step), device=device)
        with torch.enable_grad():
            yield measure(list_outputs(module(**batch.inputs)), batch.labels)


def class_axis(logits: torch.Tensor, labels: torch.Tensor | None) -> int:
    """Returns the axis of the classes: 1, or the last where there are labels for each token."""
    is_last = labels is not None and labels.shape == logits.shape[:-1]
    is_second = labels is not None and labels.shape == logits.shape[:1] + logits.shape[2:]
    if is_last == is_second:  # either would do: tokens come as (n, tokens, classes), images as (n, classes, h, w)
        is_last = logits.ndim <= 3
    return logits.ndim - 1 if is_last else 1


def _mean_of_tasks(outputs: list[torch.Tensor], labels: torch.Tensor, name: object) -> torch.Tensor:
    measure = _MEASURES[name or ("mse" if labels.is_floating_point() else "cross_entropy")]
    if len(outputs) == 1 or labels.ndim < 2 or labels.shape[1] != len(outputs):
        return measure(outputs[0], labels)
    return torch.stack([measure(output, labels[:, task]) for task, output in enumerate(outputs)]).mean()


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative labels do not count: nobody knows what is true there."""
    axis = class_axis(logits, labels)
    scores = logits.movedim(axis, 1)
    if scores.ndim < 2 or labels.shape != scores.shape[:1] + scores.shape[2:] or labels.is_floating_point():
        raise DataError(
            "cross_entropy needs outputs (n, classes, …) and whole numbers (n, …) as labels, "
            f"got {tuple(logits.shape)} and {labels.dtype} {tuple(labels.shape)}"
        )
    known = labels.clamp_min(-1)
    total = functional.cross_entropy(scores, known, ignore_index=-1, reduction="sum")
    return total / (known >= 0).sum().clamp_min(1)


def _mse(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(outputs, _as_shape(labels, outputs, "mse"))


def _binary_cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    labels = _as_shape(labels, outputs, "binary_cross_entropy")
    return functional.binary_cross_entropy_with_logits(outputs, labels)


def _as_shape(labels: torch.Tensor, outputs: torch.Tensor, name: str) -> torch.Tensor:
    if labels.numel() != outputs.numel():
        raise DataError(f"{name} needs labels as many as outputs, got {tuple(labels.shape)} and {tuple(outputs.shape)}")
    return labels.reshape(outputs.shape).to(outputs.dtype)


_MEASURES: Mapping[object, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cross_entropy": _cross_entropy,
    "mse": _mse,
    "binary_cross_entropy": _binary_cross_entropy,
}
