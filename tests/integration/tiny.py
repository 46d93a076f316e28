"""What a user of Trimtab would bring along: models, data, a metric. Copied beside the specs of the tests."""

import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
from trimtab import Dataset, Split
from trimtab.evaluators.testing import SimulatedDevice

N_CALIBRATION, N_VALIDATION, N_TEST, N_TRAIN = 8, 64, 64, 512
#: what `noted_loss` writes
STEPS = Path(__file__).with_name("steps.log")


def cnn():
    """Large enough for integers to save more bytes than their conversions cost."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = {
        "first": nn.Conv2d(3, 16, 3, stride=2, padding=1), "relu1": nn.ReLU(),
        "second": nn.Conv2d(16, 32, 3, stride=2, padding=1), "relu2": nn.ReLU(),
        "flat": nn.Flatten(), "last": nn.Linear(512, 5),
    }  # fmt: skip
    model = nn.Sequential(OrderedDict(layers)).eval()
    model.example_inputs = {"input": torch.zeros(2, 3, 16, 16)}
    return model


def retrained():
    """The same architecture with weights a little further on."""
    import torch

    model = cnn()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=generator))
    return model


def mlp():
    """Small enough to be trained within a second."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = {"first": nn.Linear(32, 48), "relu": nn.ReLU(), "second": nn.Linear(48, 4)}
    model = nn.Sequential(OrderedDict(layers)).eval()
    model.example_inputs = {"input": torch.zeros(2, 32)}
    return model


def lessons():
    """Vectors to learn from, labelled by the untouched model; every step of a training leaves a line in a file."""
    import torch

    def split(n, seed):
        vectors = np.random.default_rng(seed).normal(size=(n, 32)).astype(np.float32)
        with torch.no_grad():
            labels = mlp()(torch.from_numpy(vectors)).argmax(1).numpy()
        return Split({"input": vectors}, labels)

    splits = split(N_CALIBRATION, 1), split(N_VALIDATION, 2), split(N_TEST, 3), split(N_TRAIN, 4)
    return Dataset(*splits, loss="tiny:noted_loss")


def noted_loss(outputs, labels):
    """Cross entropy, slow enough for a training to be interrupted."""
    from torch.nn import functional

    with STEPS.open("a") as file:
        file.write("step\n")
    time.sleep(0.01)
    return functional.cross_entropy(outputs[0], labels)


def images():
    """Images whose labels are what the model itself says, so that its accuracy is 1."""
    import torch

    def split(n, seed):
        images = np.random.default_rng(seed).normal(size=(n, 3, 16, 16)).astype(np.float32)
        with torch.no_grad():
            labels = cnn()(torch.from_numpy(images)).argmax(1).numpy()
        return Split({"input": images}, labels)

    return Dataset(split(N_CALIBRATION, 1), split(N_VALIDATION, 2), split(N_TEST, 3))


def pictures():
    """The same with a train split."""
    import torch

    found = images()
    train = np.random.default_rng(4).normal(size=(128, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        labels = cnn()(torch.from_numpy(train)).argmax(1).numpy()
    return replace(found, train=Split({"input": train}, labels))


def vectors(**replaced):
    """Vectors for ``tiny.onnx``, scored by agreement with the original; parts may be replaced."""
    splits = {
        name: Split({"x": np.random.default_rng(seed).normal(size=(n, 1024)).astype(np.float32)})
        for seed, (name, n) in enumerate(
            [("calibration", N_CALIBRATION), ("validation", N_VALIDATION), ("test", N_TEST)]
        )
    }
    return Dataset(**{**splits, "metric": "agreement", **replaced})


def many_vectors():
    """As `vectors`, with enough of them for a clear loser to be stopped early."""
    return vectors(validation=Split({"x": np.random.default_rng(2).normal(size=(512, 1024)).astype(np.float32)}))


class SlowDevice(SimulatedDevice):
    """Takes a moment to load, so that there is time to interrupt a search."""

    def load(self, artifact):
        time.sleep(0.03)
        return super().load(artifact)


class MeteredDevice(SimulatedDevice):
    """Is timed as real devices are, by a clock that always tells the same of a model."""

    def load(self, artifact):
        return MeteredExecutable(super().load(artifact))


class MeteredExecutable:
    def __init__(self, executable):
        self.executable = executable
        # less than the run really takes, or nobody would believe it
        self.seconds = executable.simulated_latency_s / 8

    def run(self, inputs):
        return self.executable.run(inputs)

    def time_once(self, inputs):
        self.executable.run(inputs)
        return self.seconds


class BrokenDevice(SimulatedDevice):
    """Computes nothing but NaN."""

    def load(self, artifact):
        return BrokenExecutable(super().load(artifact))


class BrokenExecutable:
    def __init__(self, executable):
        self.executable = executable
        self.simulated_latency_s = executable.simulated_latency_s

    def run(self, inputs):
        return [np.full_like(array, np.nan) for array in self.executable.run(inputs)]
