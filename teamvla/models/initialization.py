"""Initial weights of everything that is trained from scratch, in one place.

    | where                                | weight                              | bias |
    | ------------------------------------ | ----------------------------------- | ---- |
    | convolution, linear                  | uniform +-1/sqrt(fan in) (PyTorch)  | same |
    | linear in a text block               | truncated normal, std 0.02 (ViT)    | 0    |
    | token and position embedding         | truncated normal, std 0.02          |      |
    | LayerNorm, GroupNorm                 | 1                                   | 0    |
    | last linear of a residual MLP block  | 0: the block starts as the identity | 0    |

The first row is PyTorch's own default, so that only the other rows need code.
"""

from __future__ import annotations

from torch import nn


def init_text(module: nn.Module) -> None:
    """ViT-style weights for all linear and embedding layers inside ``module``."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def init_identity(last: nn.Linear) -> None:
    """Let the residual block that ends in ``last`` start as the identity."""
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
