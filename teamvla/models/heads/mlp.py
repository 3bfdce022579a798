"""Features to actions by a multi-layer perceptron."""

from __future__ import annotations

from torch import Tensor, nn


class MLPActionHead(nn.Module):
    """Deterministic head: one action, or a chunk of them, from a feature vector.

    Args:
        input_dim: length of the features.
        action_dim: length of one action.
        hidden_dim: width of the hidden layers.
        n_layers: number of hidden layers; 0 leaves a linear map.
        dropout: rate behind every hidden layer.
        tanh_output: bound the output to [-1, 1].
        chunk_size: K, actions per prediction; at 1 the dimension is left out.
    """

    def __init__(
        self,
        input_dim: int,
        action_dim: int,
        hidden_dim: int = 256,
        n_layers: int = 2,
        dropout: float = 0.1,
        tanh_output: bool = True,
        chunk_size: int = 1,
    ) -> None:
        super().__init__()
        self.chunk_size, self.action_dim = chunk_size, action_dim
        layers: list[nn.Module] = []
        for _ in range(n_layers):
            layers += [nn.Linear(input_dim, hidden_dim), nn.GELU(), nn.Dropout(dropout)]
            input_dim = hidden_dim
        layers.append(nn.Linear(input_dim, chunk_size * action_dim))
        if tanh_output:
            layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B,input_dim] to actions [B,action_dim], or [B,K,action_dim] if K > 1."""
        actions: Tensor = self.layers(features)
        if self.chunk_size == 1:
            return actions
        return actions.reshape(*features.shape[:-1], self.chunk_size, self.action_dim)
