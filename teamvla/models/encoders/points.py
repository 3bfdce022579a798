"""Point clouds to tokens: PointNet++ with padding masked out.

Shapes: B batch, N points, M centres, S points of a group, C channels, D width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from teamvla.errors import ConfigError
from teamvla.models.encoders.sensors import SensorConfig, SensorEncoder, full_mask
from teamvla.models.encoders.thinning import cropped, thinned
from teamvla.models.features import Sensed, Tokens

Range = tuple[float, float]


class PointCloudConfig(SensorConfig):
    """Settings of :class:`PointCloudEncoder`."""

    type: Literal["pointnet"] = Field(default="pointnet", description="PointNet++.")
    output_dim: int = Field(default=512, ge=1, description="F, length of the feature vector.")
    crop_m: tuple[Range, Range, Range] | None = Field(
        default=None,
        description="Least and greatest x, y and z of the points that are looked at, in the "
        "sensor's frame, m; null: all.",
    )
    max_points: int | None = Field(
        default=None,
        ge=1,
        description="Points left of more: at random in training, else evenly among near and far "
        "ones; null: all.",
    )
    centers: tuple[int, int] = Field(default=(128, 32), description="Groups of each level.")
    radii: tuple[float, float] = Field(default=(4.0, 12.0), description="Of a group, m.")
    group: int = Field(default=32, ge=1, description="Points of a group at most, the nearest.")
    width: int = Field(default=64, ge=8, description="Of the first layer; of a token four times.")

    @model_validator(mode="after")
    def _sizes_make_sense(self) -> Self:
        if min(self.centers) < 1 or min(self.radii) <= 0:
            raise ValueError("centers are 1 or more and radii above 0")
        if any(low >= high for low, high in self.crop_m or ()):
            raise ValueError("crop_m gives the least before the greatest of x, y and z")
        return self


class SharedMLP(nn.Sequential):
    """Linear layers that every point goes through by itself, each with LayerNorm and ReLU.

    A norm over the channels of a point, not over a batch: a cloud's features depend neither on
    the clouds beside it nor on its padding.
    """

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()]
        super().__init__(*layers)


def ordered(points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Points [B,N,C] by x, then by y and so on, what is not there last, and their mask bool [B,N].

    Which of several at the same distance is taken then does not go by how they came: only what
    is the same in all channels has no order.
    """
    known = torch.where(mask.unsqueeze(-1), points, torch.inf)
    order = known[..., -1].argsort(dim=1, stable=True)
    for values in reversed(known.unbind(-1)[:-1]):
        order = order.gather(1, values.gather(1, order).argsort(dim=1, stable=True))
    return points.gather(1, order.unsqueeze(-1).expand_as(points)), mask.gather(1, order)


def farthest_points(places: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose points that lie as far from each other as can be.

    The first is the one farthest from the middle, so that the choice does not depend on the
    order of the points, but among those that are as far: see :func:`ordered`. Where there are
    fewer than ``count`` all are chosen.

    Args:
        places: [B,N,3].
        mask: bool [B,N], False on padding.
        count: M.

    Returns:
        Numbers of the chosen int64 [B,M], and which of them are there, bool [B,M].
    """
    weight = mask.unsqueeze(-1)
    middle = torch.where(weight, places, 0.0).sum(1) / mask.sum(1).clamp_min(1).unsqueeze(-1)
    spread = (places - middle.unsqueeze(1)).square().sum(-1).masked_fill(~mask, -1.0)
    left = torch.full_like(spread, torch.inf).masked_fill(~mask, -1.0)
    chosen, there = [], []
    for number in range(count):
        pick = (spread if number == 0 else left).argmax(1, keepdim=True)
        chosen.append(pick)
        # What was chosen before is at distance 0 of itself.
        there.append(left.gather(1, pick) > 0)
        away = (places - rows_at(places, pick)).square().sum(-1)
        left = torch.minimum(left, away)
    return torch.cat(chosen, 1), torch.cat(there, 1)


def rows_at(values: Tensor, numbers: Tensor) -> Tensor:
    """Of values [B,N,C] the rows with these numbers [B,...]: [B,...,C]."""
    batch = torch.arange(values.shape[0], device=values.device)
    return values[batch.reshape(-1, *[1] * (numbers.dim() - 1)), numbers]


class SetAbstraction(nn.Module):
    """Groups of near points to one feature each (Qi et al. 2017, arXiv 1706.02413).

        places, features -> M centres -> the S nearest within the radius of each
        -> their places seen from the centre, and features -> shared MLP -> maximum [B,M,C]

    The nearest in place of any S, so that the order of the points does not matter.

    Args:
        features: C of the points.
        widths: of the MLP.
        count: M.
        radius: m.
        group: S.
    """

    def __init__(
        self, features: int, widths: Sequence[int], count: int, radius: float, group: int
    ) -> None:
        super().__init__()
        self.count, self.radius, self.group = count, radius, group
        self.mlp = SharedMLP(3 + features, *widths)

    def forward(
        self, places: Tensor, features: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Places [B,N,3], features [B,N,C], mask bool [B,N] to those of the centres."""
        with torch.no_grad():
            numbers, there = farthest_points(places, mask, self.count)
        centers = rows_at(places, numbers)
        members, inside = self._groups(centers, places, mask)
        offsets = (rows_at(places, members) - centers.unsqueeze(2)) / self.radius
        found = self.mlp(torch.cat([offsets, rows_at(features, members)], -1))
        # Behind a ReLU nothing is below 0: what is not there never is the greatest.
        pooled = torch.where(inside.unsqueeze(-1), found, 0.0).amax(2)
        return centers, pooled * there.unsqueeze(-1), there

    @torch.no_grad()
    def _groups(self, centers: Tensor, places: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the members [B,M,S], and which of them are there."""
        away = torch.cdist(centers, places, compute_mode="donot_use_mm_for_euclid_dist")
        away = away.masked_fill(~mask.unsqueeze(1), torch.inf)
        nearest, members = away.topk(min(self.group, places.shape[1]), dim=-1, largest=False)
        return members, nearest <= self.radius


class PointCloudEncoder(SensorEncoder):
    """Clouds to one vector, and to a token for each group of the second level.

        points [B,N,C] -> crop, thin -> set abstraction x 2 -> tokens [B,M,D] -> group-all
        -> [B,F]

    PointNet++ (Qi et al. 2017, arXiv 1706.02413) with norms of each point's channels, and
    centres and groups that do not depend on the points' order. A token also tells where its
    group is. A cloud without points gives the vector of an empty scene, which is learned.

    Args:
        input_dim: C; the first three are x, y, z in m. ``scale`` divides the others, and the
            radii these.
        config, settings: see :class:`SensorEncoder`.
    """

    Config = PointCloudConfig

    def __init__(self, input_dim: int = 4, *, config: Any = None, **settings: Any) -> None:
        if input_dim < 3:
            expected = "points of x, y, z and more"
            raise ConfigError("sensor encoder 'pointnet'", expected, f"{input_dim} channels")
        super().__init__(input_dim, config=config, **settings)
        config = self.config
        (many, few), (near, self.reach), width = config.centers, config.radii, config.width
        self.dim = 4 * width
        first, second = (width, width, 2 * width), (2 * width, 2 * width, self.dim)
        self.first = SetAbstraction(input_dim - 3, first, many, near, config.group)
        self.second = SetAbstraction(first[-1], second, few, self.reach, config.group)
        self.whole = SharedMLP(3 + self.dim, self.dim, 8 * width, 16 * width)
        self.place = nn.Linear(3, self.dim)
        self.output = nn.Linear(16 * width, self.output_dim)

    def encode(self, readings: Tensor, mask: Tensor | None = None) -> Sensed:
        """See :meth:`SensorEncoder.encode`."""
        points, there = self._looked_at(readings, full_mask(readings, mask))
        places, features = points[..., :3], points[..., 3:] / self.scale[3:]
        places, features, there = self.first(places, features, there)
        places, features, there = self.second(places, features, there)
        where = places / self.reach
        found = self.whole(torch.cat([where, features], -1))
        pooled = torch.where(there.unsqueeze(-1), found, 0.0).amax(1)
        return Sensed(self.output(pooled), Tokens(features + self.place(where), there))

    @torch.no_grad()
    def _looked_at(self, points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The points that count and their mask; zeros in place of all others."""
        if self.config.crop_m is not None:
            mask = mask & cropped(points, self.config.crop_m)
        count = self.config.max_points or points.shape[1]
        if self.training:  # any of them, so that few are left to be put in order
            points, mask = ordered(*thinned(points, mask, count, random=True))
        else:
            points, mask = thinned(*ordered(points, mask), count)
        return torch.where(mask.unsqueeze(-1), points, 0.0), mask
