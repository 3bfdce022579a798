"""The statistics that LeRobot keeps of every episode and of the whole data set."""

from __future__ import annotations

from typing import Any

import numpy as np

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_MOST_PICTURES = 100
Figures = dict[str, Any]


def episode_statistics(columns: dict[str, np.ndarray]) -> dict[str, Figures]:
    """min, max, mean, std, count and quantiles of each column, as lists; texts have none.

    Pictures are counted in [0, 1], by channel, of at most 100 of the episode's steps;
    their figures have the shape (3, 1, 1).
    """
    return {
        name: _of_pictures(values) if _is_picture(values) else _of_rows(values, len(values))
        for name, values in columns.items()
        if values.dtype.kind != "U"
    }


def _is_picture(values: np.ndarray) -> bool:
    return values.dtype == np.uint8 and values.ndim == 4


def _of_pictures(values: np.ndarray) -> Figures:
    stride = -(-len(values) // _MOST_PICTURES)
    taken = values[::stride]
    figures = _of_rows(taken.reshape(-1, 3), len(taken))
    return {
        name: value if name == "count" else [[[channel / 255.0]] for channel in value]
        for name, value in figures.items()
    }


def _of_rows(values: np.ndarray, count: int) -> Figures:
    rows = values.reshape(len(values), -1).astype(np.float64)
    quantiles = np.quantile(rows, list(_QUANTILES.values()), axis=0)
    figures = {
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "mean": rows.mean(axis=0),
        "std": rows.std(axis=0),
        **dict(zip(_QUANTILES, quantiles, strict=True)),
    }
    return {**{name: value.tolist() for name, value in figures.items()}, "count": [count]}


class Statistics:
    """Figures of all episodes together, from those of each."""

    def __init__(self) -> None:
        self._pooled: dict[str, dict[str, np.ndarray]] = {}

    def add(self, statistics: dict[str, Figures]) -> None:
        """Take in one episode."""
        for name, figures in statistics.items():
            arrays = {key: np.asarray(value, np.float64) for key, value in figures.items()}
            known = self._pooled.get(name)
            self._pooled[name] = _together(known, arrays) if known else arrays

    def total(self) -> dict[str, Figures]:
        """The figures as JSON data."""
        return {
            name: {
                key: [int(value[0])] if key == "count" else value.tolist()
                for key, value in figures.items()
            }
            for name, figures in self._pooled.items()
        }


def _together(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pooled figures; quantiles are the weighted mean of the parts', as LeRobot has them."""
    first, second = float(left["count"][0]), float(right["count"][0])
    share = second / (first + second)
    mean = left["mean"] + share * (right["mean"] - left["mean"])
    spread = [p["std"] ** 2 + (p["mean"] - mean) ** 2 for p in (left, right)]
    quantiles = {q: left[q] + share * (right[q] - left[q]) for q in _QUANTILES}
    return {
        "min": np.minimum(left["min"], right["min"]),
        "max": np.maximum(left["max"], right["max"]),
        "mean": mean,
        "std": np.sqrt(spread[0] + share * (spread[1] - spread[0])),
        **quantiles,
        "count": np.array([first + second]),
    }
