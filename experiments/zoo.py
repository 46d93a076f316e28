"""The models of the recipes: callables that take nothing and return a trained module in eval mode.

Each module carries ``example_inputs``: forward argument → tensor with a batch of two. What has to be trained is trained
on first use and kept in the cache.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
import torch
from torch import nn

from ..core.errors import DataError
from ..evaluators.dataset import Dataset
from ..experiments import datasets
from .cache import cached_arrays
from .minilm import N_TOKENS, MiniLmClassifier, load_bert
from .probe import L2_PENALTY, fit_probe
from .resnet import ResNet
from .sources import minilm_folder
from .training import Schedule, train_classifier
from .vit_digits import DigitsTransformer

#: raised by hand when code that a trained model depends on changes
_VERSION = 1
_DIGITS_SCHEDULE = Schedule(n_epochs=8, batch_size=32, max_shift=2)
_TRANSFORMER_SCHEDULE = Schedule(n_epochs=32, learning_rate=0.05, max_shift=2)
_FASHION_SCHEDULE = Schedule(n_epochs=3, batch_size=128, mirror=True)
#: mails embedded at once; larger batches fall out of the cache
_N_PER_BATCH = 32


def resnet8() -> nn.Module:
    """ResNet-8 for MNIST digits.

    Raises:
        DataError: it is not trained yet and the digits are missing.
    """
    return _image_classifier("resnet8-digits", lambda: ResNet(1), datasets.digits, _DIGITS_SCHEDULE)


def vit_digits() -> nn.Module:
    """A transformer of four blocks for MNIST digits.

    Raises:
        DataError: it is not trained yet and the digits are missing.
    """
    return _image_classifier("vit-digits", DigitsTransformer, datasets.digits, _TRANSFORMER_SCHEDULE)


def resnet8_fashion() -> nn.Module:
    """ResNet-8 for Fashion-MNIST.

    Raises:
        DataError: it is not trained yet and Fashion-MNIST is missing.
    """
    return _image_classifier("resnet8-fashion", lambda: ResNet(1), datasets.fashion, _FASHION_SCHEDULE)


def resnet20_fashion() -> nn.Module:
    """ResNet-20 for Fashion-MNIST.

    Raises:
        DataError: it is not trained yet and Fashion-MNIST is missing.
    """
    return _image_classifier("resnet20-fashion", lambda: ResNet(3), datasets.fashion, _FASHION_SCHEDULE)


def minilm_spam() -> nn.Module:
    """all-MiniLM-L6-v2 with a logistic probe that tells spam from ham.

    Raises:
        DataError: the pretrained weights or the mails are missing.
    """
    model = MiniLmClassifier()
    model.bert = load_bert(minilm_folder() / "model.safetensors")
    tokens, labels = _train_split(datasets.minilm_spam)
    recipe = {"version": _VERSION, "tokens": hashlib.sha256(tokens["input_ids"].tobytes()).hexdigest()}
    embedded = cached_arrays("minilm-spam-embeddings", recipe=recipe, build=lambda: _embed(model, tokens))
    probe = cached_arrays(
        "minilm-spam-probe",
        recipe={**recipe, "l2_penalty": L2_PENALTY},
        build=lambda: fit_probe(embedded["x"], labels),
    )
    model.probe.load_state_dict({name: torch.from_numpy(array) for name, array in probe.items()})
    return _finish(model, _example_tokens())


def _image_classifier(
    name: str, build: Callable[[], nn.Module], load: Callable[[], Dataset], schedule: Schedule
) -> nn.Module:
    def train() -> dict[str, np.ndarray]:
        inputs, labels = _train_split(load)
        trained = train_classifier(build, inputs["x"], labels, schedule)
        return {key: tensor.contiguous().numpy() for key, tensor in trained.state_dict().items()}

    state = cached_arrays(name, recipe={"version": _VERSION, "schedule": asdict(schedule)}, build=train)
    model = build()
    model.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()})
    return _finish(model, {"x": torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))})


def _finish(model: nn.Module, example_inputs: dict[str, torch.Tensor]) -> nn.Module:
    model.example_inputs = example_inputs
    return model.eval()


def _train_split(load: Callable[[], Dataset]) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    train = load().train
    if train is None or train.labels is None:
        raise DataError("a model of the zoo needs a labelled train split")
    return train.inputs, train.labels


def _embed(model: MiniLmClassifier, tokens: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns ``x``: (n, 384) float32 embeddings of (n, 128) int64 tokens and mask."""
    ids, mask = torch.from_numpy(tokens["input_ids"]), torch.from_numpy(tokens["attention_mask"])
    batches = zip(ids.split(_N_PER_BATCH), mask.split(_N_PER_BATCH), strict=True)
    with torch.inference_mode():
        return {"x": torch.cat([model.embed(*batch) for batch in batches]).numpy()}


def _example_tokens() -> dict[str, torch.Tensor]:
    """A full sentence of words drawn at random and one that is half padding; nobody's mail."""
    ids = torch.randint(1000, 30000, (2, N_TOKENS), generator=torch.Generator().manual_seed(0))
    ids[1, N_TOKENS // 2 :] = 0
    return {"input_ids": ids, "attention_mask": (ids != 0).to(torch.int64)}
