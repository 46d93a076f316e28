"""The untrained networks and their inputs by name, for specs and benchmarks; nothing here takes an argument.

A name is the family, then the width in percent (``w``), the depth (``d``) and the pixels per side (``r``) where they
differ from the published network.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from ...core.errors import SpecError
from ...evaluators.dataset import Dataset, Split
from ..minilm import MiniLmClassifier
from ..resnet import ResNet
from .convnext import ConvNeXt
from .efficientnet import EfficientNet
from .mobilenet import MobileNetV2
from .resnet import LargeImageResNet
from .untrained import finish, make_images, make_tokens
from .vit import VisionTransformer

#: samples per split: enough to calibrate ranges, few enough that nobody waits
_N_SAMPLES = 8
_PIXELS = 224


def mobilenet_v2(width: float = 1.0, size: int = _PIXELS) -> nn.Module:
    """MobileNetV2 for images of ``size`` pixels per side, every number of channels times ``width``."""
    return finish(partial(MobileNetV2, width), _example_images(3, size))


def resnet8() -> nn.Module:
    """ResNet-8 for grey images of 28 pixels per side, the network of the recipes without its training."""
    return finish(partial(ResNet, 1), _example_images(1, 28))


def resnet20() -> nn.Module:
    """ResNet-20 for grey images of 28 pixels per side, the network of the recipes without its training."""
    return finish(partial(ResNet, 3), _example_images(1, 28))


def resnet18(width: float = 1.0, size: int = _PIXELS) -> nn.Module:
    """ResNet-18 for images of ``size`` pixels per side, every number of channels times ``width``."""
    return finish(partial(LargeImageResNet, width=width), _example_images(3, size))


def convnext(widths: tuple[int, int, int, int] = (40, 80, 160, 320), size: int = _PIXELS) -> nn.Module:
    """ConvNeXt with (2, 2, 6, 2) blocks of these widths; the default is called atto in https://arxiv.org/abs/2301.00808."""
    return finish(partial(ConvNeXt, (2, 2, 6, 2), widths), _example_images(3, size))


def efficientnet_b0(width: float = 1.0, depth: float = 1.0, size: int = _PIXELS) -> nn.Module:
    """EfficientNet-B0 for images of ``size`` pixels per side, scaled by the factors ``width`` and ``depth``."""
    return finish(partial(EfficientNet, width, depth), _example_images(3, size))


def vit_tiny(width: int = 192, n_layers: int = 12, size: int = _PIXELS) -> nn.Module:
    """A vision transformer of the shape of DeiT-tiny.

    Raises:
        SpecError: transformers is not installed.
    """
    return finish(partial(VisionTransformer, width, n_layers, size), _example_images(3, size))


def minilm() -> nn.Module:
    """The shape of all-MiniLM-L6-v2 with a classifier of two classes, for sentences of 128 tokens."""
    tokens = {name: torch.from_numpy(array) for name, array in make_tokens(2, seed=0).items()}
    return finish(MiniLmClassifier, tokens)


convnext_w060_r192 = partial(convnext, (24, 48, 96, 192), 192)
convnext_w080_r160 = partial(convnext, (32, 64, 128, 256), 160)
convnext_w120_r224 = partial(convnext, (48, 96, 192, 384))
efficientnet_b0_w050_r160 = partial(efficientnet_b0, 0.5, 1.0, 160)
efficientnet_b0_w075_d050_r192 = partial(efficientnet_b0, 0.75, 0.5, 192)
efficientnet_b0_w110_d120_r240 = partial(efficientnet_b0, 1.1, 1.2, 240)
mobilenet_v2_w050_r128 = partial(mobilenet_v2, 0.5, 128)
mobilenet_v2_w050_r224 = partial(mobilenet_v2, 0.5)
mobilenet_v2_w075_r192 = partial(mobilenet_v2, 0.75, 192)
mobilenet_v2_w100_r160 = partial(mobilenet_v2, 1.0, 160)
mobilenet_v2_w140_r224 = partial(mobilenet_v2, 1.4)
resnet18_w050_r160 = partial(resnet18, 0.5, 160)
resnet18_w075_r192 = partial(resnet18, 0.75, 192)
vit_tiny_d050_r160 = partial(vit_tiny, 192, 6, 160)
vit_tiny_w067_d033_r192 = partial(vit_tiny, 128, 4, 192)
vit_tiny_w133_d033_r224 = partial(vit_tiny, 256, 4)


def images(n_channels: int = 3, size: int = _PIXELS) -> Dataset:
    """Random smooth images, input ``x`` (n, n_channels, size, size); scored by how near the outputs stay."""
    return _unlabelled(lambda seed: {"x": make_images(_N_SAMPLES, (n_channels, size), seed)})


images_mnist = partial(images, 1, 28)
images_128 = partial(images, 3, 128)
images_160 = partial(images, 3, 160)
images_192 = partial(images, 3, 192)
images_240 = partial(images, 3, 240)


def tokens() -> Dataset:
    """Random sentences of up to 128 tokens, ``input_ids`` and ``attention_mask``; scored as `images`."""
    return _unlabelled(lambda seed: make_tokens(_N_SAMPLES, seed))


#: name → what makes the network, and the data that fit it
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Dataset]]] = {
    "convnext": (convnext, images),
    "convnext_w060_r192": (convnext_w060_r192, images_192),
    "convnext_w080_r160": (convnext_w080_r160, images_160),
    "convnext_w120_r224": (convnext_w120_r224, images),
    "efficientnet_b0": (efficientnet_b0, images),
    "efficientnet_b0_w050_r160": (efficientnet_b0_w050_r160, images_160),
    "efficientnet_b0_w075_d050_r192": (efficientnet_b0_w075_d050_r192, images_192),
    "efficientnet_b0_w110_d120_r240": (efficientnet_b0_w110_d120_r240, images_240),
    "minilm": (minilm, tokens),
    "mobilenet_v2": (mobilenet_v2, images),
    "mobilenet_v2_w050_r128": (mobilenet_v2_w050_r128, images_128),
    "mobilenet_v2_w050_r224": (mobilenet_v2_w050_r224, images),
    "mobilenet_v2_w075_r192": (mobilenet_v2_w075_r192, images_192),
    "mobilenet_v2_w100_r160": (mobilenet_v2_w100_r160, images_160),
    "mobilenet_v2_w140_r224": (mobilenet_v2_w140_r224, images),
    "resnet18": (resnet18, images),
    "resnet18_w050_r160": (resnet18_w050_r160, images_160),
    "resnet18_w075_r192": (resnet18_w075_r192, images_192),
    "resnet20": (resnet20, images_mnist),
    "resnet8": (resnet8, images_mnist),
    "vit_tiny": (vit_tiny, images),
    "vit_tiny_d050_r160": (vit_tiny_d050_r160, images_160),
    "vit_tiny_w067_d033_r192": (vit_tiny_w067_d033_r192, images_192),
    "vit_tiny_w133_d033_r224": (vit_tiny_w133_d033_r224, images),
}


def build(name: str) -> nn.Module:
    """Makes a network of `MODELS`.

    Raises:
        SpecError: there is none of this name, or what it needs is not installed.
    """
    return _find(name)[0]()


def load_data(name: str) -> Dataset:
    """Makes data that fit a network of `MODELS`.

    Raises:
        SpecError: there is none of this name.
    """
    return _find(name)[1]()


def _find(name: str) -> tuple[Callable[[], nn.Module], Callable[[], Dataset]]:
    if name not in MODELS:
        raise SpecError(f"no architecture '{name}'; known are {', '.join(MODELS)}")
    return MODELS[name]


def _example_images(n_channels: int, size: int) -> dict[str, torch.Tensor]:
    return {"x": torch.from_numpy(make_images(2, (n_channels, size), seed=0))}


def _unlabelled(make: Callable[[int], dict[str, np.ndarray]]) -> Dataset:
    """Three splits from three seeds, none of them the example inputs' 0; the metric compares with the original."""
    calibration, validation, test = (Split(make(seed)) for seed in (1, 2, 3))
    return Dataset(calibration, validation, test, metric="kl")
