"""Initial weights of everything that is trained from scratch, in one place.

    | where                                      | weight                              | bias |
    | ------------------------------------------ | ----------------------------------- | ---- |
    | convolution, linear                        | uniform +-1/sqrt(fan in) (PyTorch)  | same |
    | linear in a transformer, patch embedding   | truncated normal, std 0.02 (ViT)    | 0    |
    | token, position and query embedding        | truncated normal, std 0.02          |      |
    | linear from a condition to FiLM's scales   | normal, std 2/sqrt(fan in)          | 0    |
    | LayerNorm, GroupNorm                       | 1                                   | 0    |
    | last linear of a residual MLP block, of    | 0: it starts as the identity        | 0    |
    | listening to messages, and of a DiT's      |                                     |      |
    | scales, shifts and gates                   |                                     |      |
    | logarithm of spatial softmax' temperature  | 0                                   |      |

The first row is PyTorch's own default, so that only the other rows need code.
"""

from __future__ import annotations

import torch
from torch import nn


def init_transformer(module: nn.Module) -> None:
    """ViT-style weights for all linear, patch and embedding layers inside ``module``."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding, nn.Conv2d)):
            nn.init.trunc_normal_(part.weight, std=0.02)
        if isinstance(part, (nn.Linear, nn.Conv2d)) and part.bias is not None:
            nn.init.zeros_(part.bias)


def embedding(*shape: int) -> nn.Parameter:
    """A learned embedding of this shape: positions, kinds of tokens, queries."""
    weight = nn.Parameter(torch.empty(*shape))
    nn.init.trunc_normal_(weight, std=0.02)
    return weight


def init_identity(last: nn.Linear) -> None:
    """Let what ends in ``last`` start at 0, as a residual block that is the identity."""
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def init_modulation(linear: nn.Linear) -> None:
    """Let different conditions scale and shift differently from the first step on."""
    nn.init.normal_(linear.weight, std=2 / linear.in_features**0.5)
    nn.init.zeros_(linear.bias)
