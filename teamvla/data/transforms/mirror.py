"""Left/right mirror of the whole scene: what one arm does, the other then does."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from pydantic import Field

from teamvla.config import Settings
from teamvla.contract import Arm, Contract, Link
from teamvla.data.transforms.base import Batch, Stream, pictures_of, random_units, with_pictures
from teamvla.errors import ContractError

_REFLECTION = np.array([1.0, -1.0, 1.0])  # y -> -y
_TOLERANCE = 1e-5
_WORDS = {
    "left": "right",
    "right": "left",
    "clockwise": "counterclockwise",
    "counterclockwise": "clockwise",
    "anticlockwise": "clockwise",
}


class MirrorConfig(Settings):
    """Mirror whole samples left to right, the two arms with their cameras and words."""

    type: Literal["mirror"] = "mirror"
    probability: float = Field(
        default=0.5, ge=0, le=1, description="Share of the samples that are mirrored."
    )

    def build(self, seed: int, contract: Contract | None = None) -> Mirror:
        return Mirror(contract, self.probability, seed)


class Mirror:
    """Reflection of the scene at the plane y = 0 between the two arms.

    State and actions of the arms change places, with the sign that the contract's
    kinematics give each joint (:func:`mirror_signs`); cameras whose names differ in the
    arm change places and all pictures are flipped; the words left and right (and
    clockwise, and `arm a`) change places in the instruction. A camera that belongs to no arm has
    to stand in the plane: the contract does not say where cameras stand.

    Args:
        contract: of the data; two arms that are each other's mirror images.
        probability: share of the samples that are mirrored.
        seed: of the run.

    Raises:
        ContractError: there is no contract, it has no kinematics or not two arms, its signals
            are parts of state or actions, or the robot is not mirror symmetric; the message
            says where.
    """

    def __init__(self, contract: Contract | None, probability: float = 0.5, seed: int = 0) -> None:
        first, second = _two_arms(contract)
        signs = np.append(mirror_signs(first, second), 1.0).astype(np.float32)
        count = len(signs)
        self.probability, self.seed = probability, seed
        self._order = np.roll(np.arange(2 * count), count)
        self._signs = np.tile(signs, 2)
        self._names = {first.name: second.name, second.name: first.name}
        assert contract is not None
        if joined := [s.field for s in (*contract.state_signals, *contract.action_signals)]:
            raise _not_symmetric("states and commands of arms alone", ", ".join(joined))
        self._cameras = _counterparts([camera.field for camera in contract.cameras], self._names)
        arms = "|".join(map(re.escape, self._names))
        self._word = re.compile(rf"\b(?:{'|'.join(_WORDS)}|(?<=\barm )(?:{arms}))\b", re.IGNORECASE)

    def __call__(self, batch: Batch) -> Batch:
        """Mirror the samples whose turn it is, all of their parts together."""
        units = random_units(batch, self.seed, Stream.MIRROR, 1)[:, 0]
        return self.mirror(batch, np.flatnonzero(units < self.probability))

    def mirror(self, batch: Batch, chosen: np.ndarray) -> Batch:
        """The batch with the samples at the places ``chosen`` mirrored.

        Raises:
            ContractError: it holds an observation or a target whose mirror image is not known.
        """
        observations = dict(batch["observations"])
        unknown = sorted(observations.keys() - {"image", "state"}) + sorted(
            batch.get("targets", ())
        )
        if unknown:
            raise _not_symmetric("observations of image and state", ", ".join(unknown))
        mirrored = {**batch, "observations": observations}
        if "state" in observations:
            observations["state"] = self._swapped(observations["state"], chosen)
        if "actions" in batch:
            mirrored["actions"] = self._swapped(batch["actions"], chosen)
        if "language" in batch:
            texts = list(batch["language"])
            for place in chosen.tolist():
                texts[place] = self._word.sub(self._other_word, texts[place])
            mirrored["language"] = texts
        pictures = pictures_of(batch)
        return (
            mirrored
            if pictures is None
            else with_pictures(mirrored, _flipped(pictures, chosen, self._cameras))
        )

    def _swapped(self, joined: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        swapped = joined.copy()
        swapped[chosen] = joined[chosen][..., self._order] * self._signs
        return swapped

    def _other_word(self, match: re.Match[str]) -> str:
        word = match[0]
        other = _WORDS.get(word.lower()) or self._names.get(word) or self._names[word.lower()]
        if word.isupper():
            return other.upper()
        return other.capitalize() if word[0].isupper() else other


def mirror_signs(arm: Arm, other: Arm) -> np.ndarray:
    """Signs [N] that make ``other``'s joint angles ``arm``'s when the scene is reflected.

    A reflection M takes a turn by q about the axis u to a turn by q about det(M) M u: the
    axis is a pseudo-vector. So if the other arm's axis is -M u the sign is +1, and if it
    is M u it is -1; offsets and limits have to match.

    Raises:
        ContractError: they are not each other's mirror image, or have no kinematics.
    """
    for one in (arm, other):
        if not one.links:
            raise _not_symmetric(f"the kinematic chain of arm {one.name}", "none in the contract")
    if len(arm.links) != len(other.links):
        raise _not_symmetric(
            f"as many joints of arm {other.name} as of arm {arm.name}, {len(arm.links)}",
            str(len(other.links)),
        )
    _require_reflected("base", arm, arm.base, other, other.base)
    _require_reflected("tool", arm, arm.tool, other, other.tool)
    pairs = zip(arm.links, other.links, strict=True)
    return np.array([_sign(arm, link, other, partner) for link, partner in pairs])


def _sign(arm: Arm, link: Link, other: Arm, partner: Link) -> float:
    _require_reflected(f"offset of joint {link.joint}", arm, link.offset, other, partner.offset)
    axis = -_REFLECTION * link.axis
    for sign in (1.0, -1.0):
        if np.allclose(sign * axis, partner.axis, atol=_TOLERANCE):
            break
    else:
        raise _not_symmetric(
            f"the axis of joint {link.joint} of arm {other.name} along {_vector(axis)}",
            _vector(partner.axis),
        )
    limits = sorted(sign * limit for limit in link.limits)
    if not np.allclose(limits, partner.limits, atol=_TOLERANCE):
        raise _not_symmetric(
            f"limits of joint {link.joint} of arm {other.name} {_vector(limits)} rad",
            _vector(partner.limits),
        )
    return sign


def _two_arms(contract: Contract | None) -> tuple[Arm, Arm]:
    if contract is None:
        raise _not_symmetric("a contract", "none")
    if len(contract.arms) != 2:
        raise _not_symmetric("two arms", str(len(contract.arms)))
    first, second = contract.arms
    return first, second


def _counterparts(cameras: list[str], names: dict[str, str]) -> list[int]:
    """For each camera the number of the one whose flipped picture takes its place."""
    numbers = []
    for field in cameras:
        swapped = "_".join(names.get(part, part) for part in field.split("_"))
        if swapped not in cameras:
            raise _not_symmetric(f"camera {swapped} beside {field}", ", ".join(cameras))
        numbers.append(cameras.index(swapped))
    return numbers


def _flipped(pictures: np.ndarray, chosen: np.ndarray, cameras: list[int]) -> np.ndarray:
    """The pictures [B,(T),V,H,W,C] with those at ``chosen`` exchanged and flipped."""
    flipped = pictures.copy()
    # One opaque item a pixel, so that a line is turned round pixel by pixel.
    pixel = np.dtype((np.void, pictures.shape[-1] * pictures.itemsize))
    source, target = (array.view(pixel)[..., 0] for array in (pictures, flipped))
    for place in chosen.tolist():
        for camera, partner in enumerate(cameras):
            target[place, ..., camera, :, :] = source[place, ..., partner, :, ::-1]
    return flipped


def _require_reflected(
    what: str, arm: Arm, vector: tuple[float, ...], other: Arm, partner: tuple[float, ...]
) -> None:
    reflected = _REFLECTION * vector
    if not np.allclose(reflected, partner, atol=_TOLERANCE):
        raise _not_symmetric(
            f"{what} of arm {other.name} at {_vector(reflected)} m, the mirror image of "
            f"arm {arm.name}'s",
            _vector(partner),
        )


def _vector(values: object) -> str:
    return f"({', '.join(f'{value + 0.0:g}' for value in np.asarray(values).tolist())})"


def _not_symmetric(expected: str, got: str) -> ContractError:
    return ContractError(
        "transform mirror", expected, got, "Leave it out of dataset.transforms for this robot."
    )
