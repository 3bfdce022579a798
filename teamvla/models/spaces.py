"""The sizes that a policy is built for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from teamvla.contract import Contract
from teamvla.errors import ConfigError, ContractError


@dataclass(frozen=True)
class ActionGroup:
    """Numbers of an action that one head gives.

    Attributes:
        size: how many.
        grippers: places among them that are grippers.
        choices: place among them -> how many choices there are, where a number is one of several.
    """

    size: int
    grippers: tuple[int, ...] = ()
    choices: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Spaces:
    """Sizes of what comes in and what goes out.

    Attributes:
        states: numbers of the state that belong to each part of a command: an arm's joints and
            gripper; none to a part that is no arm's.
        actions: numbers of each part of a command: the arms', then the action signals'.
        grippers: places of the grippers in the joined action.
        cameras: for each camera the arms that see by it, by their places.
        picture: channels, height and width of every picture.
        shared: numbers of the state behind the arms', which belong to no part in particular.
        sensors: what is observed besides -> its shape in one step, -1 for a length that varies.
        fields: names of the cameras; none where there is no robot behind the sizes.
        choices: place in the joined action -> how many choices there are, where a number is one of
            several moves and not a quantity.
    """

    states: tuple[int, ...]
    actions: tuple[int, ...]
    grippers: tuple[int, ...] = ()
    cameras: tuple[tuple[int, ...], ...] = ()
    picture: tuple[int, int, int] = (3, 64, 64)
    shared: int = 0
    sensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    choices: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, contract: Contract) -> Spaces:
        """The sizes of a robot. A camera whose name ends in an arm's belongs to that arm.

        Raises:
            ContractError: a part of its commands is neither real numbers nor a choice, or its
                cameras differ in size.
        """
        sizes = sorted({(3, camera.height, camera.width) for camera in contract.cameras})
        if len(sizes) > 1:
            raise ContractError("contract: cameras", "one size", f"{sizes}")
        arms = tuple(arm.num_joints + 1 for arm in contract.arms)
        return cls(
            (*arms, *(0 for _ in contract.action_signals)),
            contract.command_sizes,
            tuple(contract.grippers),
            _owners(contract),
            sizes[0] if sizes else (3, 64, 64),
            sum(signal.size for signal in contract.state_signals),
            {signal.field: signal.shape for signal in contract.sensor_signals},
            tuple(camera.field for camera in contract.cameras),
            _choices(contract),
        )

    @classmethod
    def plain(
        cls,
        action_dim: int,
        state_dim: int = 0,
        *,
        image_size: int = 0,
        image_channels: int = 3,
        num_cameras: int = 1,
    ) -> Spaces:
        """Vectors without a robot behind them; ``image_size`` 0: no pictures.

        Raises:
            ConfigError: a size that is none.
        """
        _check("action_dim", action_dim, 1)
        _check("image_channels", image_channels, 1)
        for name, size in (
            ("state_dim", state_dim), ("image_size", image_size), ("num_cameras", num_cameras),
        ):  # fmt: skip
            _check(name, size, 0)
        cameras = ((0,),) * num_cameras if image_size else ()
        picture = (image_channels, image_size, image_size)
        return cls((state_dim,), (action_dim,), (), cameras, picture)

    @property
    def state_dim(self) -> int:
        """Length of the joined state."""
        return sum(self.states) + self.shared

    @property
    def action_dim(self) -> int:
        """Length of the joined action."""
        return sum(self.actions)

    @property
    def whole_action(self) -> ActionGroup:
        """The joined action."""
        return ActionGroup(self.action_dim, self.grippers, self.choices)

    @property
    def action_groups(self) -> list[ActionGroup]:
        """The parts of an action."""
        groups = []
        for end, size in zip(accumulate(self.actions), self.actions, strict=True):
            inside = range(end - size, end)
            grippers = tuple(place - inside.start for place in self.grippers if place in inside)
            choices = {p - inside.start: n for p, n in self.choices.items() if p in inside}
            groups.append(ActionGroup(size, grippers, choices))
        return groups


def _owners(contract: Contract) -> tuple[tuple[int, ...], ...]:
    """For each camera the parts of a command that see by it: an arm's own, or all."""
    everyone = tuple(range(len(contract.command_sizes)))
    owners = {f"_{arm.name}": (place,) for place, arm in enumerate(contract.arms)}
    return tuple(
        next((own for end, own in owners.items() if camera.field.endswith(end)), everyone)
        for camera in contract.cameras
    )


def _choices(contract: Contract) -> dict[int, int]:
    """Place in the joined action -> how many choices; ContractError for numbers without names."""
    for signal in contract.action_signals:
        if signal.dtype != "float32" and not signal.count:
            where, expected = (
                f"contract: action signal {signal.field!r}",
                "float32, or with choices",
            )
            mend = "Name what each number means: choices: [left, right, ...]."
            raise ContractError(where, expected, f"{signal}", mend)
    return contract.choices


def _check(name: str, size: object, least: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < least:
        raise ConfigError(name, f"a whole number, at least {least}", repr(size))
