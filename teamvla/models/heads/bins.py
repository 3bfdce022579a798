"""Normalised actions as numbers of bins: real ones by equal parts of [-1, 1], choices as they are.

Shapes: D action, C most bins of a number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bins(nn.Module):
    """What the bins of each number of an action mean.

    Real numbers have ``num_bins`` bins each (RT-1, Brohan et al. 2022, arXiv 2212.06817), choices
    one for each choice.

    Args:
        action_dim: D.
        num_bins: of each real number.
        choices: place -> how many choices there are; see :class:`ActionHead`.

    Attributes:
        count: C, bins of the number that has most.
        counts: int64 [D], bins of each.
        is_choice: bool [D].
    """

    counts: Tensor
    is_choice: Tensor

    def __init__(self, action_dim: int, num_bins: int, choices: Mapping[int, int]) -> None:
        super().__init__()
        counts = [choices.get(place, num_bins) for place in range(action_dim)]
        self.count = max(counts)
        #: whether numbers differ in how many bins they have
        self.uneven = len({*counts}) > 1
        self.register_buffer("counts", torch.tensor(counts), persistent=False)
        chosen = torch.tensor([place in choices for place in range(action_dim)])
        self.register_buffer("is_choice", chosen, persistent=False)

    def of(self, actions: Tensor) -> Tensor:
        """Actions [...,D] to bins int64; what is outside [-1, 1] to the ends', NaN to any."""
        share = ((actions.nan_to_num() + 1) / 2).clamp(0, 1)  # infinity has no whole number
        places = torch.where(self.is_choice, share * (self.counts - 1) + 0.5, share * self.counts)
        return places.floor().long().minimum(self.counts - 1)

    def centres(self, bins: Tensor) -> Tensor:
        """Bins [...,D] to the numbers in their middles, and choices to where they lie."""
        middle = (bins.float() + 0.5) * (2 / self.counts) - 1
        exact = bins.float() * (2 / (self.counts - 1).clamp_min(1)) - 1
        return torch.where(self.is_choice, exact, middle)

    def means(self, chances: Tensor, bins: Tensor, reach: int) -> Tensor:
        """The number that each of ``bins`` [...,D] stands for: :meth:`centres`, choices apart.

        Of a real number the mean over the bins around it, as likely as they are: where the next
        one is nearly as likely, it lies between both.

        Args:
            chances: [...,D,C].
            bins: the chosen ones, int64.
            reach: bins to either side that count.
        """
        places = torch.arange(self.count, device=bins.device)
        near = (places - bins.unsqueeze(-1)).abs() <= reach
        weights = (chances * near).clamp_min(0)
        middles = (places + 0.5) * (2 / self.counts[:, None]) - 1
        mean = (weights * middles).sum(-1) / weights.sum(-1).clamp_min(1e-9)
        return torch.where(self.is_choice, self.centres(bins), mean)

    def legal(self, logits: Tensor) -> Tensor:
        """Logits [...,D,C] with minus infinity for bins that a number does not have."""
        if not self.uneven:
            return logits
        there = torch.arange(self.count, device=logits.device) < self.counts[:, None]
        return logits.masked_fill(~there, -torch.inf)

    def blurred(self, bins: Tensor, deviation: float) -> Tensor:
        """Bins [...,D] to chances [...,D,C]: of real numbers a normal around them.

        Bins are neighbours, which classes are not: a target that says so is learned from fewer
        examples (HL-Gauss, Imani and White 2018, arXiv 1806.04613; Farebrother et al. 2024,
        arXiv 2403.03950).

        Args:
            bins: int64.
            deviation: of the normal, in bins.
        """
        edges = torch.arange(self.count + 1, device=bins.device) - 0.5
        below = torch.special.ndtr((edges - bins.unsqueeze(-1)) / deviation)
        mass = below.diff(dim=-1)
        mass = self.legal(mass.log()).exp() if self.uneven else mass
        mass = mass / mass.sum(-1, keepdim=True)
        exact = functional.one_hot(bins, self.count).to(mass.dtype)
        return torch.where(self.is_choice.unsqueeze(-1), exact, mass)
