"""Structure-aware fuzzing: any file gives an episode or an error with a known code."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from fuzzing import Fuzzer


def fuzz(folder: Path, count: int, seed: int) -> dict[str, int]:
    return Fuzzer(folder, seed).run(0, count)


def test_a_thousand_mutations_are_survived(tmp_path: Path) -> None:
    answers = fuzz(tmp_path, 1000, 0)
    assert sum(answers.values()) == 1000
    assert 10 < answers["episode"] < 500  # neither always harmless nor always broken
    assert len(answers) > 35


def test_the_cases_are_always_the_same(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 50, 3) == fuzz(tmp_path, 50, 3)


@pytest.mark.slow
def test_two_hundred_thousand_mutations_are_survived(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        answers = list(pool.map(partial(fuzz, tmp_path, 100_000), (1, 2)))
    assert sum(sum(found.values()) for found in answers) == 200_000
    assert all(len(found) > 45 for found in answers)
