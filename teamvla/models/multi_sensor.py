"""Policy for vehicles with cameras all around, LiDAR, radar and an inertial sensor.

Shapes: B batch, V cameras, N tokens, D width, W waypoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.config.bytype import ByType
from teamvla.contract import Contract
from teamvla.errors import ContractError
from teamvla.models.bev import BEVConfig, BirdsEyeView
from teamvla.models.blocks import ResidualBlock
from teamvla.models.chunking import ExecutionConfig
from teamvla.models.composed import ComposedConfig, ComposedPolicy, OfSensor
from teamvla.models.encoders.base import EncoderConfig
from teamvla.models.encoders.imu import IMUConfig
from teamvla.models.encoders.points import PointCloudConfig
from teamvla.models.encoders.radar import RadarConfig
from teamvla.models.encoders.sensors import SensorConfig
from teamvla.models.encoders.vision import ConvConfig
from teamvla.models.features import Features
from teamvla.models.fusion.base import FusionConfig, Pictured
from teamvla.models.fusion.cross_modal import CrossModalConfig
from teamvla.models.losses import LossConfig
from teamvla.models.observations import batch_of
from teamvla.models.registries import ENCODER_REGISTRY, FUSION_REGISTRY
from teamvla.models.spaces import Spaces

#: the target signal that is predicted
TRAJECTORY = "trajectory"
#: what the head's numbers are multiplied by, m
_SCALE_M = 10.0
#: encoders of a vehicle's sensors, small enough to learn within an hour on a CPU
_USUAL: dict[str, SensorConfig] = {
    "points": PointCloudConfig(
        output_dim=128,
        crop_m=((-20.0, 60.0), (-40.0, 40.0), (-1.7, 4.0)),  # the road is 1.9 m below the LiDAR
        max_points=384,
        centers=(64, 16),
        group=16,
        width=32,
    ),
    "radar": RadarConfig(embed_dim=64, mlp_ratio=2.0),
    "imu": IMUConfig(output_dim=32, num_layers=1),
}


class MultiSensorConfig(ComposedConfig):
    """Settings of :class:`MultiSensorVLA`."""

    type: Literal["multi_sensor"] = Field(
        default="multi_sensor", description="Cameras all around, LiDAR, radar, IMU."
    )
    vision: Annotated[EncoderConfig | None, ByType(ENCODER_REGISTRY, "cnn", optional=True)] = Field(
        default=ConvConfig(stride=4, grid=16), description="Encoder of pictures; null: none."
    )
    bev: BEVConfig | None = Field(
        default=BEVConfig(),
        description="The map that pictures are looked up for; null: their own tokens are fused.",
    )
    sensors: dict[str, OfSensor] | None = Field(
        default=None,
        description="Field -> encoder of a sensor; null: points, radar and imu, as far as there.",
    )
    fusion: Annotated[FusionConfig, ByType(FUSION_REGISTRY, "cross_modal")] = CrossModalConfig()
    trajectory_weight: float = Field(
        default=0.1, ge=0, description="Weight of the predicted trajectory's error, 1/m."
    )
    execution: ExecutionConfig = ExecutionConfig(stall_steps=0)


class MultiSensorVLA(ComposedPolicy):
    """Vision-language-action policy of several sensors, for driving.

        image [B,V,C,H,W] -> cnn -> tokens of V pictures -> map from above --+
        points [B,P,4] ----> PointNet++ ------------------------------------+
        radar [B,P,5] -----> attention among targets -----------------------+-> cross-modal
        imu [B,T,7] -------> LSTM ------------------------------------------+   attention
        words, state -------------------------------------------------------+       |
                                 trajectory [B,W,2] <- MLP <- summary [B,D] -> head <-+

    The trajectory is learned beside the actions where the contract has a target of this name:
    what a plan needs must then be in the summary. Cameras without a known pose (none of theirs
    is in ``bev.cameras``) are fused by their own tokens.

    Args:
        config: settings; left out, the defaults.
        contract: see :class:`teamvla.models.base.Policy`; left out, plain sizes of a vehicle
            with two controls, which has no sensors but ``sensor_encoders``.
        statistics, loss, vision, language, sensor_encoders: see :class:`ComposedPolicy`.
    """

    Config = MultiSensorConfig
    config: MultiSensorConfig
    SIZES: ClassVar[Mapping[str, int]] = {"action_dim": 2, "state_dim": 4}

    def __init__(
        self,
        config: MultiSensorConfig | None = None,
        contract: Contract | Spaces | None = None,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
        **encoders: Any,
    ) -> None:
        spaces = Spaces.plain(**self.SIZES) if contract is None else contract
        super().__init__(config or MultiSensorConfig(), spaces, statistics, loss, **encoders)
        shape = _trajectory_shape(spaces) if self.config.trajectory_weight else None
        self.trajectory = None if shape is None else TrajectoryHead(self.fusion.dim, shape)

    def wanted_sensors(self) -> dict[str, SensorConfig | None]:
        """See :meth:`ComposedPolicy.wanted_sensors`."""
        if self.config.sensors is not None:
            return super().wanted_sensors()
        return {name: kind for name, kind in _USUAL.items() if name in self.spaces.sensors}

    def build_view(self) -> tuple[Pictured | None, int]:
        """See :meth:`ComposedPolicy.build_view`: the map, if the cameras' poses are known."""
        self.bev = None
        config, fields = self.config.bev, self.spaces.fields
        known = config is not None and any(field in config.poses for field in fields)
        if config is None or self.vision is None or not known:
            return super().build_view()
        self.bev = BirdsEyeView(config, fields, self.vision, self.spaces.picture)
        return self.bev, 1

    def viewed(self, pictures: Tensor | None, rows: int) -> tuple[Tensor | None, Tensor | None]:
        """See :meth:`ComposedPolicy.viewed`: without pictures too a cell unseen tells nothing."""
        if self.bev is None:
            return super().viewed(pictures, rows)
        mask = self.bev.mask.expand(rows, 1, -1)
        return None if pictures is None else self.bev(pictures).values.unsqueeze(1), mask

    def _outputs(self, features: Sequence[Features]) -> dict[str, Any]:
        """See :meth:`Policy._outputs`; besides ``predicted_trajectory`` [B,W,2], m."""
        output = super()._outputs(features)
        if self.trajectory is not None:
            output["predicted_trajectory"] = self.trajectory(features[0].summary)
        return output

    def _loss(self, features: Sequence[Features], steps: Mapping[str, Any]) -> dict[str, Tensor]:
        """See :meth:`Policy._loss`; besides ``trajectory``, mean error of a coordinate, m.

        Args:
            steps: with ``targets`` {``trajectory``: [B,W,2]} where the contract has it.

        Raises:
            ContractError: the trajectory is missing.
        """
        losses = super()._loss(features, steps)
        if self.trajectory is None:
            return losses
        targets = steps.get("targets", {})
        if TRAJECTORY not in targets:
            mend = "With model.trajectory_weight: 0 it trains without."
            raise ContractError("batch['targets']", f"{TRAJECTORY!r}", f"{sorted(targets)}", mend)
        off = self.trajectory(features[0].summary) - targets[TRAJECTORY].float()
        part = off.abs().mean()
        total = losses["loss"] + self.config.trajectory_weight * part
        return {**losses, "loss": total, TRAJECTORY: part}

    @torch.no_grad()
    def predict_trajectory(
        self, obs: Mapping[str, Any], language: str | Sequence[str] | None = None
    ) -> Tensor:
        """Where it would drive: waypoints [B,W,2], x ahead and y left, m.

        Args:
            obs, language: see :meth:`Policy.predict_action_chunk`.

        Raises:
            ContractError: the policy has not learned any.
        """
        if self.trajectory is None:
            expected = f"one that predicts {TRAJECTORY!r}"
            mend = "It takes a contract with this target and model.trajectory_weight above 0."
            raise ContractError("policy", expected, "one that does not", mend)
        batch = batch_of(obs, language, self._contract, self.device, self._last_action)
        features: list[Features] = self._features(batch, None, batch)
        predicted: Tensor = self.trajectory(features[0].summary)
        return predicted


class TrajectoryHead(nn.Module):
    """A summary [B,D] to waypoints [B,*shape], m.

    Args:
        input_dim: D.
        shape: of the waypoints.
    """

    def __init__(self, input_dim: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.Sequential(
            ResidualBlock(input_dim),
            nn.LayerNorm(input_dim),
            nn.Linear(input_dim, int(torch.Size(shape).numel())),
        )

    def forward(self, summary: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.layers(summary)
        return found.float().reshape(-1, *self.shape) * _SCALE_M


def _trajectory_shape(contract: Contract | Spaces) -> tuple[int, ...] | None:
    """Of the target in the contract; None if it has no such target."""
    targets = contract.target_signals if isinstance(contract, Contract) else ()
    fitting = (s for s in targets if s.field == TRAJECTORY and s.dtype == "float32")
    return next((s.shape for s in fitting if not s.varies), None)
