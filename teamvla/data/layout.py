"""Which fields of the episodes make up the rows of the cache."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from teamvla.contract import Contract, Signal
from teamvla.data.cache_shards import RowShape
from teamvla.data.cache_signals import SignalShape
from teamvla.data.manifest import unusable
from teamvla.data.npz import Episode
from teamvla.errors import ContractError

REWARD = SignalShape("reward", "float32", ())
#: of what a batch has beside the signals; none of these can be called so
TAKEN = ("image", "state", "actions", "language", "reward")


@dataclass(frozen=True)
class Layout:
    """Which fields make up the cache's rows; equal in all episodes of an index.

    ``state`` has the arms' joints and openings, then the signals that are plain vectors;
    ``actions`` the arms' commands, then the action signals. Each other signal is an array of
    its own, and so is the reward of each step.
    """

    cameras: tuple[str, ...]
    picture: tuple[int, ...]  # height, width, channels
    arms: tuple[str, ...]
    joints: tuple[int, ...]  # of each arm, without the gripper
    measured_grip: bool  # whether grip_q_* is recorded; else state has the previous command
    signals: tuple[Signal, ...] = ()
    reward: bool = False  # whether it is recorded

    @classmethod
    def of(cls, episode: Episode, contract: Contract | None) -> Layout:
        """What the contract promises; without one, what a two-arm episode shows.

        Raises:
            EpisodeError: its cameras differ in size.
            ContractError: a signal has the name of something else in a batch.
        """
        shapes = {name: field.shape[1:] for name, field in episode.fields.items()}
        if contract is None:
            cameras: tuple[str, ...] = ("rgb_a", "rgb_b")
            arms: tuple[str, ...] = ("a", "b")
            pictures = {shapes.get(camera, ()) for camera in cameras}
            joints = tuple(sum(shapes.get(f"q_{arm}", ())) for arm in arms)
        else:
            cameras = tuple(camera.field for camera in contract.cameras)
            arms = tuple(arm.name for arm in contract.arms)
            pictures = {(camera.height, camera.width, 3) for camera in contract.cameras}
            joints = tuple(arm.num_joints for arm in contract.arms)
        if len(pictures) > 1:
            got = ", ".join(map(str, sorted(pictures)))
            raise unusable(episode.path, "cameras of one size", got, "E502")
        picture = pictures.pop() if pictures else (0, 0, 3)
        measured = all(f"grip_q_{arm}" in shapes for arm in arms)
        signals = () if contract is None else contract.signals
        reward = "reward" in shapes and all(signal.field != "reward" for signal in signals)
        layout = cls(cameras, picture, arms, joints, measured, signals, reward)
        layout._check_names(str(episode.path))
        return layout

    def _check_names(self, where: str) -> None:
        for signal in (*self.sensors, *self.targets):
            if signal.field in TAKEN:
                expected = f"signals with other names than {', '.join(TAKEN)}"
                mend = "These stand beside them in a batch; rename the signal's field."
                raise ContractError(f"{where}: contract", expected, signal.field, mend)

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Layout:
        """The layout that :meth:`to_dict` wrote."""
        cameras, picture, arms, joints = (
            tuple(data[name]) for name in ("cameras", "picture", "arms", "joints")
        )
        signals = tuple(Signal.model_validate(signal) for signal in data["signals"])
        flags = bool(data["measured_grip"]), bool(data["reward"])
        return cls(cameras, picture, arms, joints, flags[0], signals, flags[1])

    def to_dict(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**plain, "signals": [signal.model_dump(mode="json") for signal in self.signals]}

    @property
    def state_signals(self) -> tuple[Signal, ...]:
        """Those in ``state``."""
        return tuple(signal for signal in self.signals if signal.in_state)

    @property
    def action_signals(self) -> tuple[Signal, ...]:
        """Those in ``actions``."""
        return tuple(signal for signal in self.signals if signal.role == "action")

    @property
    def sensors(self) -> tuple[Signal, ...]:
        """The other observations, an array each."""
        return tuple(s for s in self.signals if s.role == "observation" and not s.in_state)

    @property
    def targets(self) -> tuple[Signal, ...]:
        """What a policy may learn to tell, an array each."""
        return tuple(signal for signal in self.signals if signal.role == "target")

    @property
    def arrays(self) -> tuple[SignalShape, ...]:
        """What is an array of its own, in the order of the contract; the reward comes last."""
        own = (s for s in self.signals if s.role != "action" and not s.in_state)
        shapes = tuple(SignalShape(signal.field, signal.dtype, signal.shape) for signal in own)
        return (*shapes, REWARD) if self.reward else shapes

    @property
    def state_columns(self) -> list[str]:
        """What stands where in a state, as ``q_a[0]``, ``grip_q_a``, ``ego[0]``."""
        return self._columns("q", "grip_q" if self.measured_grip else "grip", self.state_signals)

    @property
    def action_columns(self) -> list[str]:
        """What stands where in an action, as ``action_a[0]``, ``grip_a``, ``controls[0]``."""
        return self._columns("action", "grip", self.action_signals)

    def _columns(self, joint: str, gripper: str, signals: tuple[Signal, ...]) -> list[str]:
        names: list[str] = []
        for arm, joints in zip(self.arms, self.joints, strict=True):
            names += [f"{joint}_{arm}[{number}]" for number in range(joints)]
            names.append(f"{gripper}_{arm}")
        return [*names, *(name for signal in signals for name in signal.names)]

    @property
    def state_dim(self) -> int:
        """Length of a state."""
        return len(self.state_columns)

    @property
    def action_dim(self) -> int:
        """Length of an action."""
        return len(self.action_columns)

    def rows(self, max_chunk: int, codec: str) -> RowShape:
        """The rows of a cache of this layout."""
        return RowShape(
            len(self.cameras),
            self.picture,
            self.state_dim,
            self.action_dim,
            max_chunk,
            codec if self.cameras else "raw",
            self.arrays,
        )
