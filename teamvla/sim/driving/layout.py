"""What is drawn for one episode, and the traffic that it starts with.

Everything random is drawn at the reset in a fixed order and kept as plain arrays by name, so that
a state can hold it and the scene can be built from it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from teamvla.sim import saved
from teamvla.sim.driving import roads
from teamvla.sim.driving.planner import free_time
from teamvla.sim.driving.roads import (
    EAST_INNER,
    EAST_OUTER,
    LANES,
    NORTH,
    ROUTES,
    SOUTH,
    WEST_INNER,
    WEST_OUTER,
    FloatArray,
    Route,
)
from teamvla.sim.driving.vehicle import FRONT_M, MIDDLE_M, WIDTH_M

if TYPE_CHECKING:
    from teamvla.sim.driving.task import DrivingConfig

Layout = dict[str, NDArray[np.float64]]
SITUATIONS = ("clear", "night", "fog", "crossing", "occlusion")
CLEAR, NIGHT, FOG, CROSSING, OCCLUSION = range(len(SITUATIONS))
VEHICLES, PARKED, BUILDINGS = 9, 6, 16
#: Columns of ``traffic``, one row per vehicle; the first is the one that matters, if any does.
LANE, ALONG, SPEED, DESIRED, LENGTH, HALT_AT, HALT_UNTIL = range(7)
NOWHERE = 1e6  # m or s: never
SENSORS = 2**52  # so many different noises
CAR_LENGTH_M = 4.4
TRUCK_LENGTH_M, TRUCK_WIDTH_M = 16.0, 2.4
_SLOTS_M = (-95.0, -62.0, -36.0, 30.0)  # of other vehicles along their lanes, from the crossing
_KERBSIDE_Y = roads.MAIN_HALF_M + 1.3
_MANOEUVRES = {CROSSING: (0, 1), OCCLUSION: (0,)}  # on which the crossing vehicle is in the way


def draw(config: DrivingConfig, rng: np.random.Generator) -> Layout:
    """One episode."""
    layout = _choices(config, rng)
    layout["start"] = np.array([rng.uniform(*config.start_m), rng.uniform(-0.15, 0.15)])
    layout["traffic"] = _traffic(config, rng, layout)
    layout["traffic_colour"] = _colours(rng, VEHICLES)
    if int(layout["situation"]) == NIGHT:
        layout["traffic_colour"][0] *= 0.25  # who broke down is dark
    layout["parked"] = _parked(config, rng, layout)
    layout["parked_colour"] = _colours(rng, PARKED)
    layout["buildings"] = _buildings(rng)
    layout["building_colour"] = rng.uniform((0.45, 0.38, 0.32), (0.85, 0.76, 0.68), (BUILDINGS, 3))
    layout["weather"] = _weather(config, rng, int(layout["situation"]))
    layout["sensors"] = np.array(float(rng.integers(SENSORS)))
    return layout


def check(layout: Layout, config: DrivingConfig) -> None:
    """SimulationError where a number of an episode is none that can be drawn."""
    counts = {"situation": len(SITUATIONS), "route": len(ROUTES), "lane": EAST_OUTER + 1}
    for name, count in (counts | {"sensors": SENSORS}).items():
        saved.require_whole(f"drawn_{name}", layout[name], 0, count - 1)
    phrasings = getattr(config.phrasings, ROUTES[int(layout["route"])])
    most = (len(config.instructions) - 1, len(phrasings) - 1)
    saved.require_whole("drawn_words", layout["words"], 0, most)
    saved.require_whole("drawn_traffic", layout["traffic"][:, LANE], 0, len(LANES) - 1)
    for name in ("traffic_colour", "parked_colour", "building_colour"):
        saved.require_within(f"drawn_{name}", layout[name], 0, 1)
    saved.require_within("drawn_weather: sun", layout["weather"][:3], -1, 1)
    saved.require_within("drawn_weather", layout["weather"][3:], 0, np.inf)


def route_of(layout: Layout) -> Route:
    """The route that was drawn."""
    return roads.route(ROUTES[int(layout["route"])], int(layout["lane"]))


def _choices(config: DrivingConfig, rng: np.random.Generator) -> Layout:
    """Situation, route, lane and words."""
    drawn = rng.integers(len(SITUATIONS))
    fixed = config.situation != "mixed"
    situation = SITUATIONS.index(config.situation) if fixed else int(drawn)
    wanted = [ROUTES.index(name) for name in config.routes]
    possible = [at for at in wanted if at in _MANOEUVRES.get(situation, wanted)] or [0]
    chosen = possible[int(rng.integers(len(possible)))]
    lane = int(rng.integers(2))
    lane = {"turn_left": EAST_INNER, "turn_right": EAST_OUTER}.get(ROUTES[chosen], lane)
    phrasings = getattr(config.phrasings, ROUTES[chosen])
    words = (rng.integers(len(config.instructions)), rng.integers(len(phrasings)))
    return {
        "situation": np.array(float(situation)),
        "route": np.array(float(chosen)),
        "lane": np.array(float(lane)),
        "words": np.array(words, np.float64),
    }


def _traffic(config: DrivingConfig, rng: np.random.Generator, layout: Layout) -> FloatArray:
    situation, lane = int(layout["situation"]), int(layout["lane"])
    rows = np.zeros((VEHICLES, 7))
    rows[:, LENGTH] = CAR_LENGTH_M
    rows[:, HALT_AT], rows[:, HALT_UNTIL] = NOWHERE, 0.0
    _elsewhere(rows, range(VEHICLES))
    first = _ahead(rng, layout) if situation in (CLEAR, NIGHT, FOG) else _across(rng, layout)
    rows[0, [LANE, ALONG, SPEED, DESIRED, HALT_AT, HALT_UNTIL]] = first
    others = _free_slots(rng, lane, situation, ROUTES[int(layout["route"])])
    others = others[: round(config.traffic * (VEHICLES - 1))]
    for index, (where, slot) in enumerate(others, 1):
        speed = rng.uniform(6.5, 9.5)
        along = roads.FAR_M + slot + rng.uniform(-5.0, 5.0)
        rows[index, [LANE, ALONG, SPEED, DESIRED]] = where, along, speed, speed
    return rows


def _elsewhere(rows: FloatArray, which: range) -> None:
    """Vehicles that this episode does not need stand far away, out of every sensor's reach."""
    for index in which:
        rows[index, [LANE, ALONG]] = SOUTH, 2500.0 + 20.0 * index


def _free_slots(
    rng: np.random.Generator, lane: int, situation: int, name: str
) -> list[tuple[int, float]]:
    """Places for the other vehicles, in an order that was drawn."""
    aside = EAST_INNER + EAST_OUTER - lane
    places = [(lane, _SLOTS_M[0]), *((aside, slot) for slot in _SLOTS_M)]
    places += [(WEST_INNER, slot) for slot in _SLOTS_M] + [(WEST_OUTER, slot) for slot in _SLOTS_M]
    if situation in (CROSSING, OCCLUSION):
        # Nobody else may be what the ego waits for.
        empty = {WEST_INNER, WEST_OUTER} if name == "turn_left" else set()
        if situation == OCCLUSION:
            empty.add(EAST_OUTER)  # nor may somebody hide what the lorry does not
        places = [place for place in places if place[0] not in empty]
    else:
        places += [(road, slot) for road in (NORTH, SOUTH) for slot in _SLOTS_M[:3]]
    return [places[index] for index in rng.permutation(len(places))]


def _ahead(rng: np.random.Generator, layout: Layout) -> tuple[float, ...]:
    """A vehicle in the ego's lane: it drives, or it stands in night or fog."""
    lane, situation = int(layout["lane"]), int(layout["situation"])
    behind = ROUTES[int(layout["route"])] == "stop_behind"
    start = float(layout["start"][0]) + FRONT_M + CAR_LENGTH_M / 2 + roads.FAR_M
    stands, drives = rng.uniform(24.0, 30.0), rng.uniform(9.0, 14.0)
    speed, halt = rng.uniform(6.0, 8.0), rng.uniform(22.0, 32.0)
    leaves = rng.uniform(8.0, 10.0)
    if situation == CLEAR:
        at = start + drives
        return (lane, at, speed, speed, at + halt if behind else NOWHERE, NOWHERE)
    at = start + stands
    return (lane, at, 0.0, speed, at, NOWHERE if behind else leaves)


def _across(rng: np.random.Generator, layout: Layout) -> tuple[float, ...]:
    """A vehicle on the cross road: it comes when the ego would be there, or it gives way."""
    speed, late, waits = rng.uniform(7.5, 9.5), rng.uniform(-0.2, 0.3), rng.uniform() < 0.4
    route = route_of(layout)
    gives_way = waits and int(layout["situation"]) == CROSSING
    side = NORTH
    if rng.uniform() < 0.5 and int(layout["situation"]) == CROSSING:
        side = SOUTH
    stop = LANES[side].stop_m - CAR_LENGTH_M / 2 - 0.5
    if gives_way:
        return (side, stop, 0.0, speed, stop, NOWHERE)
    zone = next(zone for zone in route.zones if zone.lane == side)
    begin = float(layout["start"][0]) + 110.0
    enters = (zone.route_m[0] + min(zone.route_m[1], zone.route_m[0] + 4.0)) / 2 - MIDDLE_M
    middle = zone.lane_m[0] + 2.0 if zone.joins else sum(zone.lane_m) / 2
    arrives = free_time(route, begin, enters)
    return (side, middle - speed * (arrives + late), speed, speed, NOWHERE, NOWHERE)


def _parked(config: DrivingConfig, rng: np.random.Generator, layout: Layout) -> FloatArray:
    """x, y, heading, length, width of what stands at the kerb; the first may be the truck."""
    rows = np.zeros((PARKED, 5))
    slots = [(x, side) for x in (-56.0, -43.0, 26.0, 40.0, 54.0) for side in (-1, 1)]
    for index, at in enumerate(rng.permutation(len(slots))[:PARKED]):
        x, side = slots[at]
        x += rng.uniform(-3.0, 3.0)
        rows[index] = x, side * _KERBSIDE_Y, 0.0 if side < 0 else np.pi, CAR_LENGTH_M, WIDTH_M
    rows[round(config.parked * PARKED) :, 0] = 3000.0
    truck_x = rng.uniform(-18.6, -18.2)
    if int(layout["situation"]) == OCCLUSION:
        rows[0] = truck_x, -_KERBSIDE_Y - 0.2, 0.0, TRUCK_LENGTH_M, TRUCK_WIDTH_M
    return rows


def _buildings(rng: np.random.Generator) -> FloatArray:
    """x, y of the middles and half sizes x, y, z, four in each quarter of the crossing."""
    rows = np.zeros((BUILDINGS, 5))
    for index in range(BUILDINGS):
        quarter, place = divmod(index, 4)
        half = rng.uniform((6.0, 5.0, 3.0), (9.0, 7.5, 10.0))
        set_back = rng.uniform(0.0, 4.0, 2)
        east = (16.0 + set_back[0] + half[0], 40.0 + set_back[0] + half[0],
                62.0 + set_back[0] + half[0], 14.0 + set_back[0] + half[0])[place]  # fmt: skip
        north = (16.0 if place < 3 else 42.0) + set_back[1] + half[1]
        rows[index] = ((-1, 1)[quarter % 2] * east, (-1, 1)[quarter // 2] * north, *half)
    return rows


def _weather(config: DrivingConfig, rng: np.random.Generator, situation: int) -> FloatArray:
    """Sun x, y, z; its strength; ambient light; fog's extinction, 1/m."""
    bearing, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.2)
    level, visibility = rng.uniform(*config.light_level), rng.uniform(*config.fog_visibility_m)
    sun = np.array([np.cos(bearing), np.sin(bearing), height])
    strength, ambient = (0.02, 0.02) if situation == NIGHT else (0.6 * level, 0.45 * level)
    extinction = 3.912 / visibility if situation == FOG else 0.0
    return np.array([*sun / np.sqrt((sun**2).sum()), strength, ambient, extinction])


def _colours(rng: np.random.Generator, count: int) -> FloatArray:
    """Of paint: from black over a hue to white."""
    grey = rng.uniform(0.1, 0.9, (count, 1))
    return np.asarray(np.clip(grey + rng.uniform(-0.3, 0.3, (count, 3)), 0.05, 0.95))
