"""mp4 files as LeRobot writes them: one camera each, episodes one after another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.data.formats.base import ConvertConfig
from teamvla.data.formats.output import Output
from teamvla.errors import ConfigError, EpisodeError, MissingDependencyError

_GROUP = 2  # pictures from one key frame to the next: seeking is near everywhere
_PIXELS = "yuv420p"


def import_av() -> Any:
    """PyAV; MissingDependencyError without the extra."""
    os.environ.setdefault("SVT_LOG", "1")  # the encoder writes to stderr past all logging
    try:
        import av
    except ImportError:
        raise MissingDependencyError.for_extra("av", "lerobot") from None
    return av


class VideoWriter:
    """One mp4 file that grows picture by picture.

    Raises:
        ConfigError: the encoder does not take pictures of this size.
        OSError: the disk does not take the file.
    """

    def __init__(
        self, path: Path, fps: Fraction, size: tuple[int, int], config: ConvertConfig
    ) -> None:
        height, width = size
        if config.codec == "libx264" and (height % 2 or width % 2):
            mend = "Use the codec libsvtav1, or PNG pictures."
            raise ConfigError("codec", "even sizes for libx264", f"{height} x {width}", mend)
        self._av = import_av()
        self.num_frames, self.output = 0, Output(path)
        self._file = self._av.open(self.output, "w", format="mp4")
        options = {"g": str(_GROUP), "crf": str(config.crf)}
        self._stream = self._file.add_stream(config.codec, fps, options=options)
        self._stream.pix_fmt = _PIXELS
        self._stream.height, self._stream.width = height, width

    def add(self, pictures: np.ndarray) -> None:
        """Append pictures, uint8[T,H,W,3]."""
        for picture in pictures:
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            self._file.mux(self._stream.encode(frame))
            self.num_frames += 1
        self.output.check()

    def close(self) -> None:
        """Write what the encoder still holds, and the index at the end."""
        self._file.mux(self._stream.encode())
        self._file.close()
        self.output.close()
        self.output.check()


def video_info(path: Path) -> dict[str, Any]:
    """What ``info.json`` says of a camera's files."""
    with import_av().open(str(path)) as file:
        stream = file.streams.video[0]
        return {
            "video.height": stream.height,
            "video.width": stream.width,
            "video.codec": stream.codec.canonical_name,
            "video.pix_fmt": stream.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": int(stream.base_rate),
            "video.channels": 3,
            "has_audio": False,
        }


def read_frames(path: Path, first_s: float, count: int, fps: float, limit: int) -> np.ndarray:
    """The ``count`` pictures from ``first_s`` on, uint8[T,H,W,3].

    Raises:
        EpisodeError: the file is no video, has no picture at one of the times, or the
            pictures would take more than ``limit`` bytes.
    """
    av = import_av()
    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            size = count * stream.height * stream.width * 3
            if size > limit:
                expected = f"pictures of at most {limit} bytes"
                raise EpisodeError(str(path), expected, str(size), code="E609")
            frames = list(_from(file, stream, first_s, count, fps))
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise EpisodeError(str(path), "an mp4 file", str(error), code="E610") from None
    if len(frames) != count:
        at = f"{first_s + len(frames) / fps:.4f} s"
        raise EpisodeError(str(path), f"a picture at {at}", "none", code="E610")
    return np.stack(frames)


def _from(file: Any, stream: Any, first_s: float, count: int, fps: float) -> Iterator[np.ndarray]:
    file.seek(int(first_s / stream.time_base), stream=stream, backward=True)
    wanted, tolerance = 0, 0.25 / fps
    for frame in file.decode(stream):
        ahead = float(frame.pts * stream.time_base) - (first_s + wanted / fps)
        if ahead > tolerance:
            return  # a gap: the picture is not there
        if (frame.height, frame.width) != (stream.height, stream.width):
            raise ValueError("pictures whose size changes")
        if abs(ahead) <= tolerance:
            yield frame.to_ndarray(format="rgb24")
            wanted += 1
            if wanted == count:
                return
