"""A digit classifier that resists uniform treatments: int8 everywhere ruins it, bfloat16 costs it a few answers.

Two changes leave what it answers as it is in float32. In the last two blocks a few inner channels are a few hundred
times as large as the others (their batch norm makes them so, the next convolution's weights take it back): one scale
for the tensor then leaves nothing of the others in eight bits. Such outliers are what the literature on transformers
is about (T. Dettmers et al., LLM.int8(), NeurIPS 2022, section 4). And in the last block a large number is added to the
inner branch and taken off the shortcut: with the eight bits of bfloat16 little of either is left when they meet.
"""

import torch
from torch import nn

from .zoo import resnet8

#: how many channels are outliers in each of the blocks, and by what
_N_OUTLIERS, _SCALE = 2, 300.0
#: what is added to one branch and taken off the other
_COMMON = 450.0


def resnet8_stubborn() -> nn.Module:
    """ResNet-8 for MNIST digits, with outliers.

    Raises:
        DataError: it is not trained yet and the digits are missing.
    """
    model = resnet8()
    with torch.no_grad():
        for block in (model.layer2[0], model.layer3[0]):
            strongest = block.bn1.weight.abs().argsort(descending=True)[:_N_OUTLIERS]
            block.bn1.weight[strongest] *= _SCALE
            block.bn1.bias[strongest] *= _SCALE
            block.conv2.weight[:, strongest] /= _SCALE
        last = model.layer3[0]
        last.bn2.bias += _COMMON
        last.downsample[1].bias -= _COMMON
    return model
