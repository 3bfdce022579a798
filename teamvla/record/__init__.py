"""Demonstrations: an expert's rollouts, written as episodes."""

from teamvla.record.noise import ActionNoise, NoiseConfig
from teamvla.record.recorder import RecordConfig, Recorded, Recorder, software
from teamvla.record.recording import Recording, Shard, record

__all__ = [
    "ActionNoise",
    "NoiseConfig",
    "RecordConfig",
    "Recorded",
    "Recorder",
    "Recording",
    "Shard",
    "record",
    "software",
]
