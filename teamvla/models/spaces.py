"""The sizes that a policy is built for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from teamvla.contract import Contract
from teamvla.errors import ConfigError, ContractError


@dataclass(frozen=True)
class Spaces:
    """Sizes of what comes in and what goes out.

    Attributes:
        states: numbers of each arm's part of the state.
        actions: numbers of each arm's part of an action.
        grippers: places of the grippers in the joined action.
        cameras: for each camera the arms that see by it, by their places.
        picture: channels, height and width of every picture.
    """

    states: tuple[int, ...]
    actions: tuple[int, ...]
    grippers: tuple[int, ...] = ()
    cameras: tuple[tuple[int, ...], ...] = ()
    picture: tuple[int, int, int] = (3, 64, 64)

    @classmethod
    def of(cls, contract: Contract) -> Spaces:
        """The sizes of a robot. A camera whose name ends in an arm's belongs to that arm.

        Raises:
            ContractError: its commands are more than arms, or its cameras differ in size.
        """
        if contract.action_signals:
            fields = ", ".join(signal.field for signal in contract.action_signals)
            raise ContractError(
                "contract: action", "arms, for which this package has policies", fields
            )
        arms = tuple(arm.num_joints + 1 for arm in contract.arms)
        sizes = sorted({(3, camera.height, camera.width) for camera in contract.cameras})
        if len(sizes) > 1:
            raise ContractError("contract: cameras", "one size", f"{sizes}")
        everyone = tuple(range(len(arms)))
        owners = {f"_{arm.name}": (place,) for place, arm in enumerate(contract.arms)}
        cameras = tuple(
            next((own for end, own in owners.items() if camera.field.endswith(end)), everyone)
            for camera in contract.cameras
        )
        picture = sizes[0] if sizes else (3, 64, 64)
        return cls(arms, arms, tuple(contract.grippers), cameras, picture)

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
        return sum(self.states)

    @property
    def action_dim(self) -> int:
        """Length of the joined action."""
        return sum(self.actions)

    @property
    def action_groups(self) -> list[tuple[int, tuple[int, ...]]]:
        """Of each arm the length of its action, and where in it the grippers are."""
        ends = list(accumulate(self.actions))
        groups = []
        for end, size in zip(ends, self.actions, strict=True):
            inside = (place - (end - size) for place in self.grippers)
            groups.append((size, tuple(place for place in inside if 0 <= place < size)))
        return groups


def _check(name: str, size: object, least: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < least:
        raise ConfigError(name, f"a whole number, at least {least}", repr(size))
