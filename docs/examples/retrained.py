"""ResNet-8 for MNIST digits, trained from two seeds: what is in production, and its next training."""

import os

import torch
from torch import nn
from trimtab.experiments.datasets import digits
from trimtab.experiments.resnet import ResNet
from trimtab.experiments.training import Schedule, train_classifier


def first() -> nn.Module:
    """The model for which a policy is searched."""
    return _train(seed=0)


def again() -> nn.Module:
    """The same model after another training, to which the policy is applied."""
    return _train(seed=1)


def _train(seed: int) -> nn.Module:
    train = digits().train
    schedule = Schedule(n_epochs=int(os.environ.get("EPOCHS", "8")), batch_size=32, max_shift=2, seed=seed)
    model = train_classifier(lambda: ResNet(1), train.inputs["x"], train.labels, schedule)
    model.example_inputs = {"x": torch.zeros(2, 1, 28, 28)}
    return model
