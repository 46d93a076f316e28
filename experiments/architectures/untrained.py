"""What every untrained network needs: seeded weights, settled statistics, inputs that look like images or words."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ..minilm import N_TOKENS

#: pixels of the coarse grid that is blown up to an image, per side; a natural image is smooth, too
_COARSE = 8
#: share of the variance of an image that is noise from pixel to pixel
_NOISE = 0.05
#: word pieces of BERT's vocabulary that are whole words
_WORDS = (1000, 30000)
_SEED = 0


def finish(make: Callable[[], nn.Module], example_inputs: dict[str, torch.Tensor]) -> nn.Module:
    """Makes a network with the same weights every time, in eval mode, with ``example_inputs``.

    Batch normalisation takes its statistics from the example inputs, as training would from images, so that every
    layer sees values of about unit variance. The caller's random state stays as it is.

    Args:
        make: returns the network with weights drawn from torch's own generator.
        example_inputs: forward argument → tensor with a batch of two.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(_SEED)
        model = make()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        if norms:
            _settle(model, norms, example_inputs)
    model.example_inputs = example_inputs
    return model.eval()


def _settle(model: nn.Module, norms: list[nn.BatchNorm2d], inputs: dict[str, torch.Tensor]) -> None:
    """One pass whose statistics replace the initial ones; momentum 1 keeps nothing of what was there."""
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(**inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def make_images(n_samples: int, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Returns (n_samples, channels, size, size) float32 smooth images of about zero mean and unit variance.

    Args:
        n_samples: how many.
        shape: channels, and pixels per side.
        seed: the same seed gives the same images.
    """
    n_channels, size = shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n_samples, n_channels, _COARSE, _COARSE, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    smooth = smooth / smooth.std(dim=(1, 2, 3), keepdim=True)
    noise = torch.randn(smooth.shape, generator=generator)
    images: np.ndarray = ((1 - _NOISE) ** 0.5 * smooth + _NOISE**0.5 * noise).numpy()
    return images


def make_tokens(n_samples: int, seed: int) -> dict[str, np.ndarray]:
    """Returns ``input_ids`` and ``attention_mask``, (n_samples, 128) int64 each, sentences of 16 to 128 tokens.

    The first sentence is full. The words are drawn at random; the tokens behind a sentence are 0 and masked.

    Args:
        n_samples: how many.
        seed: the same seed gives the same sentences.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(*_WORDS, size=(n_samples, N_TOKENS), dtype=np.int64)
    lengths = rng.integers(16, N_TOKENS + 1, size=n_samples)
    lengths[0] = N_TOKENS
    mask = (np.arange(N_TOKENS) < lengths[:, None]).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}


def make_divisible(width: float) -> int:
    """Returns the multiple of 8 that is nearest to the width, and not more than a tenth below it.

    The rounding of MobileNetV2 and EfficientNet, https://github.com/tensorflow/models, ``_make_divisible``.
    """
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded
