"""Execution of action chunks."""

from __future__ import annotations

import numpy as np
import pytest

from teamvla.errors import ConfigError
from teamvla.models.chunking import ActionChunker, ExecutionConfig

K = 4


def execution(**values) -> ExecutionConfig:
    return ExecutionConfig(**{"stall_steps": 0, "n_action_steps": 2, **values})


def chunk(start: float) -> np.ndarray:
    """Rows start, start + 1, ... of two equal numbers."""
    return np.repeat(start + np.arange(K, dtype=np.float32)[:, None], 2, axis=1)


def drive(chunker: ActionChunker, ticks: int, state=lambda tick: np.full(2, float(tick))):
    """Actions and the ticks at which a chunk was asked for; tick t's chunk starts at 100 t."""
    actions, planned = [], []
    for tick in range(ticks):
        chunker.observe(state(tick))
        if chunker.wants_chunk:
            planned.append(tick)
            chunker.add(chunk(100.0 * tick))
        actions.append(float(chunker.next_action()[0]))
    return actions, planned


def test_receding_executes_the_first_steps_of_each_chunk():
    actions, planned = drive(ActionChunker(execution(mode="receding"), K), 5)
    assert planned == [0, 2, 4]
    assert actions == [0, 1, 200, 201, 400]


def test_ensemble_averages_all_chunks_that_cover_the_tick():
    actions, planned = drive(ActionChunker(execution(), K), 7)
    assert planned == [0, 2, 4, 6]
    # tick 2: row 2 of chunk 0 and row 0 of chunk 2; and so on; chunk 0 ends behind tick 3
    means = [0, 1, (2 + 200) / 2, (3 + 201) / 2, (202 + 400) / 2, (203 + 401) / 2, (402 + 600) / 2]
    np.testing.assert_allclose(actions, means)


def test_ensemble_decay_weighs_the_oldest_most():
    chunker = ActionChunker(execution(replan_every=1, ensemble_decay=0.5), K)
    actions, _ = drive(chunker, 3)
    weights = np.exp([0, -0.5, -1.0])
    expected = np.dot(weights, [2, 101, 200]) / weights.sum()
    assert actions[2] == pytest.approx(expected, rel=1e-6)


def test_reset_forgets_the_episode():
    chunker = ActionChunker(execution(), K)
    first, _ = drive(chunker, 5)
    chunker.reset()
    again, _ = drive(chunker, 5)
    assert again == first


def still(_tick: int) -> np.ndarray:
    return np.full(2, 0.5)


def test_stall_breaker_executes_one_whole_chunk_without_looking():
    chunker = ActionChunker(execution(stall_steps=3), K)
    actions, planned = drive(chunker, 8, still)
    # still for ticks 0, 1, 2: at 2 a whole chunk begins; at 6 planning every 2 goes on
    assert planned == [0, 2, 6]
    assert actions[2:6] == [200, 201, 202, 203]


def test_stall_breaker_waits_a_whole_window_before_it_fires_again():
    chunker = ActionChunker(execution(stall_steps=3), K)
    _, planned = drive(chunker, 13, still)
    # looking again from tick 6 on: stalled once more at 8, open loop until 12
    assert planned == [0, 2, 6, 8, 12]


def test_motion_of_one_joint_is_no_stall():
    chunker = ActionChunker(execution(stall_steps=3), K)
    _, planned = drive(chunker, 7, lambda tick: np.array([0.5, 0.5 + 0.02 * tick]))
    assert planned == [0, 2, 4, 6]


def test_drift_below_the_tolerance_is_a_stall():
    chunker = ActionChunker(execution(stall_steps=3, stall_tolerance=0.05), K)
    _, planned = drive(chunker, 7, lambda tick: np.array([0.5, 0.5 + 0.02 * tick]))
    assert planned == [0, 2, 6]


def test_stall_breaker_works_under_receding_execution():
    chunker = ActionChunker(execution(mode="receding", stall_steps=3), K)
    actions, planned = drive(chunker, 6, still)
    assert planned == [0, 2]
    assert actions[2:] == [200, 201, 202, 203]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"replan_every": 5}, "replan_every"),
        ({"mode": "receding", "n_action_steps": 5}, "n_action_steps"),
    ],
)
def test_a_chunk_may_not_run_out(values, name):
    expected = f"model.execution.{name}: expected at most chunk_size = 4, got 5. Lower it, or"
    with pytest.raises(ConfigError, match=f"^{expected}"):
        ActionChunker(execution(**values), K)


def test_a_chunk_of_another_length_is_refused():
    chunker = ActionChunker(execution(), K)
    with pytest.raises(ValueError, match="expected a chunk of 4 rows, got 3"):
        chunker.add(chunk(0.0)[:3])


def voted(*chunks: list[float], **settings) -> list[float]:
    """What is taken of the choices of chunks that come a tick apart, and the mean of the rest."""
    chunker = ActionChunker(execution(replan_every=1, **settings), len(chunks), choices=[1])
    for start, moves in enumerate(chunks):
        rows = np.stack([np.full(len(chunks), float(start)), np.array(moves)], 1)
        chunker.add(rows.astype(np.float32))
        action = chunker.next_action()
    return action.tolist()


def test_among_choices_that_most_chunks_make_is_taken_and_no_mean():
    assert voted([0, 0, 6], [0, 6, 0], [2, 0, 0]) == [1, 6]


def test_among_choices_with_equal_votes_the_newest_is_taken():
    assert voted([0, 6], [1, 0]) == [0.5, 1]
    assert voted([0, 1], [6, 0]) == [0.5, 6]
    assert voted([0, 0, 3], [0, 5, 0], [4, 0, 0])[1] == 4


def test_votes_weigh_as_chunks_do():
    old = {"ensemble_decay": 2.0}
    assert voted([0, 0, 3], [0, 5, 0], [5, 0, 0], **old)[1] == 3
    assert voted([0, 0, 3], [0, 3, 0], [5, 0, 0], ensemble_decay=-2.0)[1] == 5


@pytest.mark.parametrize("mode", ["ensemble", "receding"])
def test_who_feels_nothing_never_stalls(mode):
    chunker = ActionChunker(execution(mode=mode, stall_steps=3), K)
    _, planned = drive(chunker, 12, lambda _tick: np.zeros(0, np.float32))
    assert planned == [0, 2, 4, 6, 8, 10]
