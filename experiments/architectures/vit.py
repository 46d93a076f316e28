"""Vision transformers from the package transformers, Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929.

The default is the shape of DeiT-tiny, Touvron et al. 2021, https://arxiv.org/abs/2012.12877, table 1.
"""

import torch
from torch import nn

from ...core.errors import SpecError

_PATCH = 16
#: channels per head (DeiT, table 1)
_HEAD_WIDTH = 64
_EXPANSION = 4


class VisionTransformer(nn.Module):
    """Makes plain logits of what ``ViTForImageClassification`` returns.

    Args:
        width: channels per token, a multiple of 64.
        n_layers: encoder layers.
        size: pixels per side of the images, a multiple of 16.
        n_classes: outputs.

    Raises:
        SpecError: transformers is not installed.
    """

    def __init__(self, width: int = 192, n_layers: int = 12, size: int = 224, n_classes: int = 1000) -> None:
        super().__init__()
        try:
            from transformers import ViTConfig, ViTForImageClassification
        except ImportError as error:
            raise SpecError("transformers is not installed; pip install 'trimtab[bench]'") from error
        shape = ViTConfig(
            hidden_size=width,
            num_hidden_layers=n_layers,
            num_attention_heads=width // _HEAD_WIDTH,
            intermediate_size=_EXPANSION * width,
            image_size=size,
            patch_size=_PATCH,
            num_labels=n_classes,
            attn_implementation="eager",  # written out as matrix products, which the export keeps
        )
        self.vit = ViTForImageClassification(shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, size, size) float32 → (batch, n_classes) logits."""
        return self.vit(pixel_values=x).logits
