"""What a user of Trimtab would bring along: models, data, a metric. Copied beside the specs of the tests."""

import time

import numpy as np
from trimtab import Dataset, Split
from trimtab.compressors.testing import random_inputs, small_cnn
from trimtab.evaluators.testing import SimulatedDevice

N_CALIBRATION, N_VALIDATION, N_TEST = 8, 64, 64


def cnn():
    return small_cnn()


def retrained():
    """The same architecture with weights a little further on."""
    import torch

    model = small_cnn()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=generator))
    return model


def images():
    """Images whose labels are what the model itself says, so that its accuracy is 1."""
    import torch

    def split(n, seed):
        inputs = random_inputs("cnn", n, seed=seed)
        with torch.no_grad():
            labels = small_cnn()(torch.from_numpy(inputs["x"])).argmax(1).numpy()
        return Split(inputs, labels)

    return Dataset(split(N_CALIBRATION, 1), split(N_VALIDATION, 2), split(N_TEST, 3))


def vectors(**replaced):
    """Vectors for ``tiny.onnx``, scored by agreement with the original; parts may be replaced."""
    splits = {
        name: Split({"x": np.random.default_rng(seed).normal(size=(n, 1024)).astype(np.float32)})
        for seed, (name, n) in enumerate(
            [("calibration", N_CALIBRATION), ("validation", N_VALIDATION), ("test", N_TEST)]
        )
    }
    return Dataset(**{**splits, "metric": "agreement", **replaced})


class SlowDevice(SimulatedDevice):
    """Takes a moment to load, so that there is time to interrupt a search."""

    def load(self, artifact):
        time.sleep(0.03)
        return super().load(artifact)
