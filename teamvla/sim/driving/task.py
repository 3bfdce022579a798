"""The task ``driving``: its settings. MuJoCo is imported when an environment is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from teamvla.config.settings import Settings
from teamvla.sim.driving.roads import RouteName
from teamvla.sim.tasks.base import Factor, Phrasing, Span, TaskConfig

if TYPE_CHECKING:
    from typing import Self

    from teamvla.sim.driving.env import DrivingEnv

SituationName = Literal["clear", "night", "fog", "crossing", "occlusion", "mixed"]


def _words(*phrasings: str) -> Any:
    return Field(default=phrasings, min_length=1, description="Phrasings; one is drawn.")


class RoutePhrasings(Settings):
    """How each route is said."""

    keep_lane: tuple[Phrasing, ...] = _words(
        "keep your lane",
        "follow the lane straight on",
        "go straight over the crossing",
        "stay in this lane",
    )
    turn_left: tuple[Phrasing, ...] = _words(
        "turn left",
        "take the left turn at the crossing",
        "go left at the junction",
        "make a left",
    )
    turn_right: tuple[Phrasing, ...] = _words(
        "turn right",
        "take the right turn at the crossing",
        "go right at the junction",
        "make a right",
    )
    stop_behind: tuple[Phrasing, ...] = _words(
        "stop behind the vehicle ahead",
        "pull up behind the car in front",
        "halt behind the car ahead of you",
        "queue up behind the vehicle in your lane",
    )


class SurroundConfig(Settings):
    """The six cameras that look around."""

    height: int = Field(default=64, ge=8, le=1024, description="Rows of a picture.")
    width: int = Field(default=64, ge=8, le=1024, description="Columns of a picture.")


class LidarConfig(Settings):
    """The LiDAR on the roof."""

    columns: int = Field(default=360, ge=8, le=4096, description="Azimuths, all around.")
    beams: int = Field(default=16, ge=1, le=128, description="Elevations, -15 to 5 degrees.")
    range_m: float = Field(default=80.0, gt=1, le=300, description="Reach in clear air, m.")
    noise_m: float = Field(default=0.02, ge=0, description="Standard deviation of a range, m.")
    dropout: float = Field(default=0.02, ge=0, le=1, description="Share of returns that is lost.")


class RadarConfig(Settings):
    """The radar behind the front bumper."""

    targets: int = Field(default=32, ge=1, le=256, description="Rows at most; the nearest stay.")
    range_m: float = Field(default=100.0, gt=1, le=300, description="Reach, m.")
    noise_m: float = Field(default=0.1, ge=0, description="Standard deviation of a range, m.")
    noise_speed: float = Field(
        default=0.1, ge=0, description="Standard deviation of a radial velocity, m/s."
    )


class ImuConfig(Settings):
    """The inertial sensor; without noise it says what the physics does."""

    noise_acceleration: float = Field(default=0.0, ge=0, description="Standard deviation, m/s^2.")
    noise_turn: float = Field(default=0.0, ge=0, description="Standard deviation, rad/s.")


class TrajectoryConfig(Settings):
    """The target ``trajectory``."""

    waypoints: int = Field(default=6, ge=1, le=40, description="How many.")
    spacing_s: float = Field(
        default=0.5, ge=0.1, le=2, multiple_of=0.1, description="From one to the next, s."
    )


class DrivingReward(Settings):
    """Weights of the shaped reward; it lies in 0..1 if they add up to 1."""

    progress: float = Field(default=0.6, ge=0, description="Share of the way that is done.")
    lane: float = Field(default=0.2, ge=0, description="Near the middle of the route.")
    success: float = Field(default=0.2, ge=0, description="The goal is met.")


class DrivingConfig(TaskConfig):
    """The driving task. Spans are the ends of a uniform distribution."""

    name: str = Field(default="driving", description="Which task.")
    instructions: tuple[Phrasing, ...] = Field(
        default=("{route}", "please {route}", "{route} now", "your route: {route}"),
        min_length=1,
        description="Sentences; one is drawn, {route} becomes a phrasing of the route.",
    )
    max_steps: int = Field(
        default=800, ge=1, description="Control steps after which an episode ends."
    )
    phrasings: RoutePhrasings = Field(
        default=RoutePhrasings(), description="How each route is said."
    )
    routes: tuple[RouteName, ...] = Field(
        default=("keep_lane", "turn_left", "turn_right", "stop_behind"),
        min_length=1,
        description="Which routes are drawn; keep_lane stands in where a situation has none.",
    )
    situation: SituationName = Field(
        default="mixed", description="What makes it hard; mixed: one of them per episode."
    )
    hold_steps: int = Field(
        default=10, ge=1, description="Consecutive steps for which success must hold (20 a second)."
    )
    camera: SurroundConfig = Field(default=SurroundConfig(), description="The cameras.")
    lidar: LidarConfig = Field(default=LidarConfig(), description="The LiDAR.")
    radar: RadarConfig = Field(default=RadarConfig(), description="The radar.")
    imu: ImuConfig = Field(default=ImuConfig(), description="The inertial sensor.")
    trajectory: TrajectoryConfig = Field(
        default=TrajectoryConfig(), description="The target trajectory."
    )
    start_m: Span = Field(
        default=(-58.0, -50.0), description="Where the ego starts, m; the crossing is at 0."
    )
    traffic: float = Field(
        default=0.8, ge=0, le=1, description="Share of the eight other vehicles that are there."
    )
    parked: float = Field(
        default=0.8, ge=0, le=1, description="Share of the six parked vehicles that are there."
    )
    light_level: Factor = Field(default=(0.85, 1.15), description="Factor on daylight.")
    fog_visibility_m: Span = Field(
        default=(12.0, 18.0), description="Where contrast falls to 2 %, m."
    )
    reward: DrivingReward = Field(default=DrivingReward(), description="Weights of the reward.")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for sentence in self.instructions:
            if "{route}" not in sentence:
                raise ValueError(f"instructions: {sentence!r} has no {{route}} in it")
        if len(set(self.routes)) != len(self.routes):
            raise ValueError("routes: each of them once")
        if not (self.start_m[0] >= -70.0 and self.start_m[1] <= -45.0):
            raise ValueError("start_m: between -70 and -45")
        if self.fog_visibility_m[0] <= 0:
            raise ValueError("fog_visibility_m: greater than 0")
        return self


class DrivingTask:
    """What the registry of tasks holds under ``driving``."""

    Config: ClassVar[type[DrivingConfig]] = DrivingConfig

    @classmethod
    def make(cls, config: TaskConfig, render_mode: str | None = None) -> DrivingEnv:
        """The environment that ``config`` describes."""
        from teamvla.sim.driving.env import DrivingEnv

        return DrivingEnv(config, render_mode)
