"""Accounted bytes against what the file holds, and against sums by hand."""

import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from trimtab.compressors.pipeline import Pipeline
from trimtab.compressors.prepared import prepare_model
from trimtab.compressors.source import load_source
from trimtab.compressors.weights.accounting import account_layer, account_weights
from trimtab.compressors.weights.storage import measure_storage
from trimtab.hw_profiles.target import OPTION_KINDS, Capabilities
from trimtab.spaces.layer import Layer
from trimtab.spaces.policy import GraphTreatment
from trimtab.spaces.treatment import Treatment


def build_net():
    """A stem, a wide convolution with a batch norm that turns some signs, a depthwise one, a table and two linears."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 40, 3, bias=False)
            self.wide = nn.Conv2d(40, 48, 3, bias=False)
            self.norm = nn.BatchNorm2d(48)
            self.depthwise = nn.Conv2d(48, 48, 3, groups=48)
            self.table = nn.Embedding(60, 48)
            self.up, self.down = nn.Linear(48, 131), nn.Linear(131, 10)
            self.example_inputs = {"x": torch.zeros(2, 3, 8, 8), "ids": torch.zeros(2, dtype=torch.long)}

        def forward(self, x, ids):
            x = torch.relu(self.norm(self.wide(torch.relu(self.stem(x)))))
            return self.down(torch.relu(self.up(self.depthwise(x).mean((2, 3)) + self.table(ids))))

    torch.manual_seed(0)
    net = Net()
    nn.init.normal_(net.norm.weight)
    return net.eval()


@pytest.fixture(scope="module")
def net():
    rng = np.random.default_rng(0)
    calibration = {"x": rng.normal(size=(4, 3, 8, 8)).astype(np.float32), "ids": rng.integers(0, 60, 4)}
    return prepare_model(load_source(build_net), calibration)


@pytest.fixture(scope="module")
def pipeline(net):
    return Pipeline(net, Capabilities({option: frozenset(kinds) for option, kinds in OPTION_KINDS.items()}))


_WEIGHTS = [
    *({"weight_dtype": dtype} for dtype in ("float32", "float16", "int8")),
    {"weight_dtype": "int8", "granularity": "tensor"},
    {"weight_dtype": "int8", "activation_dtype": "int8"},
]
_BEFORE = [
    {"clusters": 2}, {"clusters": 4}, {"clusters": 16}, {"clusters": 30}, {"clusters": 5, "cluster_scope": "group"},
    {"binary": "binary"}, {"binary": "ternary"},
    {"sparsity": 0.3}, {"sparsity": 0.9}, {"pattern": "2:4"}, {"sparsity": 0.8, "saliency": "wanda"},
    {"clusters": 16, "sparsity": 0.95},
]  # fmt: skip
TREATMENTS = [
    *(Treatment(**before, **weight) for weight in _WEIGHTS for before in ({}, *_BEFORE)),
    Treatment(weight_dtype="int4", granularity="block32"),
    Treatment(weight_dtype="int4", granularity="block16", sparsity=0.5),
    Treatment(weight_dtype="int8", granularity="block64"),
    Treatment(weight_dtype="float8"),
    Treatment(binary="binary", activation_dtype="binary"),
]


def _can(layer, treatment):
    if layer.kind == "embedding":
        few = treatment.binary == "none" and not treatment.sparsity and treatment.granularity != "block64"
        return few and treatment.activation_dtype == "float32" and treatment.weight_dtype not in ("int4", "float8")
    return layer.kind == "linear" or not treatment.granularity.startswith("block")


def _constants_of(model, layers):
    """Bytes of the constants that belong to a layer's weight, by their names."""
    sizes = {t.name: numpy_helper.to_array(t).nbytes for t in onnx.load_model_from_string(model).graph.initializer}
    return sum(size for name, size in sizes.items() if any(name.startswith(f"{layer}.weight") for layer in layers))


@pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda treatment: treatment.label.replace("granularity=", ""))
def test_what_is_accounted_is_in_the_file(treatment, net, pipeline):
    treated = {layer.name: treatment for layer in net.layers if _can(layer, treatment)}
    model = pipeline.build(treated, GraphTreatment()).model
    accounted = account_weights(net.layers, treated, output_scales=net.output_scales)
    found = _constants_of(model, [layer.name for layer in net.layers])
    storage = measure_storage(model)
    rest = len(model) - found
    assert abs(accounted + rest - len(model)) <= 0.01 * len(model)
    assert found <= accounted
    # the split by use agrees with that by name; scales of activations and biases are not the weights'
    assert storage.weights <= found <= storage.weights + storage.scales + storage.zero_points
    assert storage.size_bytes == len(model)


def _layer(kind, *shape):
    return Layer("layer", kind, shape, (), math.prod(shape), 0)


_WIDE = _layer("conv", 64, 32, 3, 3)  # 18,432 weights
_BY_HAND = {
    "float32": (_WIDE, Treatment(), 4 * 18432),
    "int8: a scale and a zero point for each output": (_WIDE, Treatment(weight_dtype="int8"), 18432 + 5 * 64),
    "int8 per tensor": (_WIDE, Treatment(weight_dtype="int8", granularity="tensor"), 18432 + 5),
    "two codes of 16 in a byte": (_WIDE, Treatment(clusters=16), 18432 // 2 + 16 * 4),
    "five codes of 3 in a byte": (_WIDE, Treatment(clusters=3), math.ceil(18432 / 5) + 3 * 4),
    "int8 codes of 16": (_WIDE, Treatment(clusters=16, weight_dtype="int8"), 18432 // 2 + 16 + 5 * 64),
    "four codebooks and who has which": (
        _WIDE, Treatment(clusters=4, cluster_scope="group"), 18432 // 4 + 4 * 4 * 4 + 4 * 64
    ),
    "signs": (_WIDE, Treatment(binary="binary"), 18432 // 8 + 2 * 4 + 4 * 64),
    "signs as int8": (_WIDE, Treatment(binary="binary", weight_dtype="int8"), 18432 // 8 + 2 + 5 * 64),
    "a bit each, four bytes for 256, and what stays": (
        _WIDE, Treatment(sparsity=0.5), 18432 // 8 + 4 * 72 + 4 * (9216 + 1)
    ),
    "half of 32 channels at each of 9 places": (
        _WIDE, Treatment(pattern="2:4", weight_dtype="int8"), 18432 // 8 + 4 * 72 + (9216 + 1) + 5 * 64
    ),
    "blocks of int4": (
        _layer("linear", 100, 10), Treatment(weight_dtype="int4", granularity="block32"), 10 * 4 * (16 + 4)
    ),
    "a table": (_layer("embedding", 100, 8), Treatment(weight_dtype="int8"), 800 + 4 * 100),
    "float8": (_WIDE, Treatment(weight_dtype="float8"), 18432 + 5 * 64),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "treatment", "expected"), _BY_HAND.values(), ids=_BY_HAND)
def test_accounted_bytes_add_up_by_hand(layer, treatment, expected):
    assert account_layer(layer, treatment) == expected


def test_a_batch_norm_before_which_a_codebook_was_found_costs_a_scale_and_the_side_of_each_output():
    scale = np.linspace(-1, 1, 64)
    plain = 18432 // 2 + 4 * 64
    assert account_layer(_WIDE, Treatment(clusters=16), output_scale=scale) == plain + 16 * 4
    # int8: codes of outputs below 0 are turned, so that there are two codebooks
    turned = account_layer(_WIDE, Treatment(clusters=16, weight_dtype="int8"), output_scale=scale)
    assert turned == 18432 // 2 + 2 * 16 + 4 * 64 + 5 * 64
