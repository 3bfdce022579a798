"""The keys at the top level of a configuration: what holds whatever is run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from teamvla.config.settings import Settings
from teamvla.seeds import MAX_SEED


class SessionConfig(Settings):
    """Session-wide defaults."""

    seed: int = Field(
        default=0, ge=0, le=MAX_SEED, description="Every random stream derives from it."
    )
    device: str = Field(default="cpu", description="auto, cpu, cuda or cuda:N.")
    log_level: Literal["error", "warning", "info", "debug"] = Field(
        default="info", description="What reaches stderr."
    )
    data_root: str = Field(default="data", description="Folder that episodes are recorded into.")
