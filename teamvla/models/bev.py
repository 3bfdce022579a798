"""Pictures of calibrated cameras as one map seen from above.

Frame of the vehicle: x ahead, y left, z up, origin on the ground. Shapes: B batch, V cameras,
N cells of a picture's features (H rows, W columns), C their channels, X Y cells of the map, Z
heights, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from teamvla.config import Settings
from teamvla.errors import ConfigError
from teamvla.models.encoders.base import VisionBackbone
from teamvla.models.encoders.vision import FlattenPooling, GroupNorm, as_tokens
from teamvla.models.features import Tokens
from teamvla.models.initialization import embedding

_SIDES = ("front", "front_left", "back_left", "back", "back_right", "front_right")


class CameraPose(Settings):
    """Where a level camera without distortion stands, and how much it sees."""

    yaw_deg: float = Field(description="Where it looks, from x to the left, degrees.")
    position_m: tuple[float, float, float] = Field(
        default=(1.4, 0.0, 1.6), description="x, y, z, m."
    )
    fov_deg: float = Field(default=60.0, gt=0, lt=180, description="Across a picture, degrees.")


def surround() -> dict[str, CameraPose]:
    """Six cameras of 60 degrees at one point, as the driving environment has them."""
    return {
        f"rgb_surround_{side}": CameraPose(yaw_deg=60.0 * place)
        for place, side in enumerate(_SIDES)
    }


class BEVConfig(Settings):
    """Settings of :class:`BirdsEyeView`."""

    cameras: dict[str, CameraPose] | None = Field(
        default=None, description="Field -> pose of a camera; null: those of the task driving."
    )
    x_m: tuple[float, float] = Field(default=(-16.0, 48.0), description="What the map covers, m.")
    y_m: tuple[float, float] = Field(default=(-32.0, 32.0), description="The same to the left, m.")
    cell_m: float = Field(default=4.0, gt=0, description="Side of a cell, m.")
    heights_m: tuple[float, ...] = Field(
        default=(0.0, 0.7, 1.4),
        min_length=1,
        description="Above each cell's middle features are looked up at these heights, m.",
    )
    width: int = Field(default=64, ge=8, multiple_of=8, description="D, of a token.")
    features: int = Field(default=256, ge=1, description="Length of the map's feature vector.")

    @model_validator(mode="after")
    def _covers_something(self) -> Self:
        for low, high in (self.x_m, self.y_m):
            if high - low < self.cell_m:
                raise ValueError(f"a map from {low:g} to {high:g} m has no cell of {self.cell_m:g}")
        return self

    @property
    def poses(self) -> dict[str, CameraPose]:
        """Field -> pose of each camera that is known."""
        return surround() if self.cameras is None else self.cameras

    @property
    def side(self) -> tuple[int, int]:
        """X and Y."""
        count = [int((high - low) // self.cell_m) for low, high in (self.x_m, self.y_m)]
        return count[0], count[1]


def project(points: Tensor, pose: CameraPose, aspect: float = 1.0) -> tuple[Tensor, Tensor]:
    """Where points are in a picture.

        u = -tan(bearing) / tan(fov / 2),  v = -aspect * rise / tan(fov / 2)

    with the bearing from the camera's axis to the left, and the rise per metre of depth.

    Args:
        points: [...,3], m, in the vehicle's frame.
        pose: of the camera.
        aspect: columns / rows of a picture.

    Returns:
        u, v [...,2], -1..1 from the left and upper edge to the right and lower one, and
        whether the camera sees them, bool [...].
    """
    turn = math.radians(pose.yaw_deg)
    ahead, left, up = (points - points.new_tensor(pose.position_m)).unbind(-1)
    depth = ahead * math.cos(turn) + left * math.sin(turn)
    aside = left * math.cos(turn) - ahead * math.sin(turn)
    reach = depth.clamp_min(1e-6) * math.tan(math.radians(pose.fov_deg) / 2)
    place = torch.stack([-aside / reach, -aspect * up / reach], -1)
    # A border that two cameras share belongs to both, whatever rounding says.
    return place, (depth > 0.1) & (place.abs() <= 1 + 1e-6).all(-1)


def cell_points(config: BEVConfig) -> Tensor:
    """Where features are looked up, [X,Y,Z,3], m: the cells' middles at each height."""
    rows, columns = config.side
    x = config.x_m[0] + config.cell_m * (torch.arange(rows) + 0.5)
    y = config.y_m[0] + config.cell_m * (torch.arange(columns) + 0.5)
    z = torch.tensor(config.heights_m)
    return torch.stack(torch.meshgrid(x, y, z, indexing="ij"), -1)


def lookup(place: Tensor, seen: Tensor, side: tuple[int, int], middle: float = 0.5) -> Tensor:
    """Bilinear sampling as weights of cells, [P,H*W]: 0 in rows of points that are not seen.

    Args:
        place: u, v [P,2], see :func:`project`.
        seen: bool [P].
        side: H and W, cells that share the picture evenly.
        middle: of the first cell, in cells from the picture's corner.
    """
    rows, columns = side
    across = ((place[:, 0] + 1) * columns / 2 - middle).clamp(0, columns - 1)
    down = ((place[:, 1] + 1) * rows / 2 - middle).clamp(0, rows - 1)
    # A tent of one cell each way.
    near = (1 - (down[:, None] - torch.arange(rows)).abs()).clamp_min(0)
    beside = (1 - (across[:, None] - torch.arange(columns)).abs()).clamp_min(0)
    return (near[:, :, None] * beside[:, None]).flatten(1) * seen[:, None]


class BirdsEyeView(nn.Module):
    """Features of V pictures, looked up above each cell of a map.

        tokens [B,V,N,C] -> at Z heights of X x Y cells, mean of the cameras that see it
        -> linear, embedding of the cell -> two convolutions -> tokens [B,X*Y/4,D]

    SimpleBEV (Harley et al. 2022, arXiv 2206.07959). Cameras do not move on the vehicle, so
    that looking up is one product with a matrix that is made once. Cells that no camera sees are
    masked out.

    Args:
        config: settings.
        fields: names of the V cameras in order.
        vision: who makes the tokens; its grid is row by row, behind a CLS token if it has one.
        picture: channels, height and width of a picture.

    Raises:
        ConfigError: a camera has no pose, or the tokens are no grid.
    """

    has_cls: ClassVar[bool] = False
    lift: Tensor
    mask: Tensor

    def __init__(
        self,
        config: BEVConfig,
        fields: Sequence[str],
        vision: VisionBackbone,
        picture: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.config, self.features, self.dim = config, config.features, config.width
        self.skipped = int(vision.has_cls)
        side = _grid(vision)
        poses = _poses(config, fields)
        lift, seen = _lifting(config, poses, side, vision.middle, picture[2] / picture[1])
        self.register_buffer("lift", lift, persistent=False)
        # A token is four cells.
        fewer = functional.max_pool2d(seen[None].float(), 2, ceil_mode=True)[0]
        self.register_buffer("mask", fewer.flatten() > 0, persistent=False)
        self.num_tokens = int(self.mask.numel())
        heights = len(config.heights_m)
        self.inward = nn.Linear(heights * vision.dim, self.dim)
        self.cells = embedding(lift.shape[0] // heights, self.dim)
        self.layers = nn.Sequential(
            nn.Conv2d(self.dim, self.dim, 3, 1, 1), GroupNorm(self.dim), nn.ReLU(inplace=True),
            nn.Conv2d(self.dim, self.dim, 3, 2, 1), GroupNorm(self.dim), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> Tokens:
        """Tokens of pictures [B,V,N,C] to those of the map, x by x and from right to left."""
        found = self.inward(self.lifted(pictures)) + self.cells
        maps = found.transpose(1, 2).unflatten(2, self.config.side)
        tokens = as_tokens(self.layers(maps))
        return Tokens(tokens, self.mask.expand(tokens.shape[0], -1))

    def lifted(self, pictures: Tensor) -> Tensor:
        """What is looked up for each cell [B,X*Y,Z*C]; 0 where no camera sees."""
        cells = pictures[:, :, self.skipped :].flatten(1, 2)
        found = torch.matmul(self.lift.to(cells.dtype), cells)
        return found.reshape(cells.shape[0], self.cells.shape[0], -1)

    def pooling(self) -> nn.Module:
        """See :meth:`VisionBackbone.pooling`."""
        return FlattenPooling(self.num_tokens, self.dim, self.features)


def _lifting(
    config: BEVConfig,
    poses: Sequence[CameraPose],
    side: tuple[int, int],
    middle: float,
    aspect: float,
) -> tuple[Tensor, Tensor]:
    """Weights [X*Y*Z,V*H*W] of the cells of all pictures, and which cells are seen [X,Y]."""
    points = cell_points(config).flatten(0, 2)
    weights, views = [], []
    for pose in poses:
        place, seen = project(points, pose, aspect)
        weights.append(lookup(place, seen, side, middle))
        views.append(seen)
    count = torch.stack(views).sum(0)
    mean = torch.cat(weights, 1) / count.clamp_min(1)[:, None]
    return mean, (count > 0).reshape(*config.side, -1).any(-1)


def _grid(vision: VisionBackbone) -> tuple[int, int]:
    """Rows and columns that the tokens of a picture are."""
    count = vision.num_tokens - vision.has_cls
    side = getattr(vision, "side", None) or (math.isqrt(count), math.isqrt(count))
    if side[0] * side[1] != count:
        kind = type(vision).__name__
        raise ConfigError("model.bev", "tokens that are a grid", f"{count} of a {kind}")
    return int(side[0]), int(side[1])


def _poses(config: BEVConfig, fields: Sequence[str]) -> list[CameraPose]:
    poses = config.poses
    if missing := [field for field in fields if field not in poses]:
        got = f"those of {', '.join(poses)}"
        raise ConfigError("model.bev.cameras", f"the pose of {missing[0]!r}", got)
    return [poses[field] for field in fields]
