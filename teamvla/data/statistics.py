"""Normalisation statistics, exact, over the steps that train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

#: names and order of the figures in every statistics mapping
FIGURES = ("mean", "std", "min", "max", "q01", "q99")


def column_statistics(array: np.ndarray, pieces: Iterable[slice]) -> dict[str, list[float]]:
    """Figures of each column of ``array`` [rows, D] over the rows in ``pieces``.

    One column at a time is in memory, so even the quantiles are exact: 4 bytes a row.

    Returns:
        mean, std (population), min, max, q01, q99, each a list of D numbers.
    """
    chosen = list(pieces)
    columns = [
        _figures(np.concatenate([array[piece, column] for piece in chosen]))
        for column in range(array.shape[1])
    ]
    return {name: [column[name] for column in columns] for name in FIGURES}


def _figures(values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values, (0.01, 0.99))
    figures = (
        values.mean(dtype=np.float64),
        values.std(dtype=np.float64),
        values.min(),
        values.max(),
        low,
        high,
    )
    return dict(zip(FIGURES, map(float, figures), strict=True))


def describe(statistics: dict[str, Any]) -> list[str]:
    """One readable line per vector: the range of its means, deviations and values."""
    return [
        f"{name}: {len(figures['mean'])} numbers in [{min(figures['min']):.3g}, "
        f"{max(figures['max']):.3g}], deviations {min(figures['std']):.3g} to "
        f"{max(figures['std']):.3g}"
        for name, figures in statistics.items()
        if isinstance(figures, dict)
    ]
