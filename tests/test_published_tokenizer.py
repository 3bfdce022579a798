"""The tokenizer of a published model in a checkpoint, and the folder that it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_models import write_tokenizer

from teamvla.errors import ConfigError
from teamvla.models.openvla.tokenizer import PublishedTokenizer
from teamvla.models.pretrained.settings import weights_follow


def tokenizer_of(folder: Path, size: int) -> PublishedTokenizer:
    tokenizer = PublishedTokenizer(size)
    tokenizer.load_from(str(folder))
    return tokenizer


def test_a_checkpoint_has_its_own_whatever_the_folder_holds_by_now(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "model", "lift the tray")
    size = (folder / "tokenizer.json").stat().st_size
    before = tokenizer_of(folder, size)
    expected = before.encode("lift the tray")
    write_tokenizer(folder, "the tray and quite other words")
    with weights_follow():
        after = tokenizer_of(folder, size)
    after.load_state_dict(before.state_dict())
    assert after.encode("lift the tray") == expected


def test_one_of_another_size_is_refused_where_nothing_follows(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "model", "lift the tray")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: expected 10 bytes"):
        tokenizer_of(folder, 10)
