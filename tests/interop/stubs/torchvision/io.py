"""``VideoReader`` as LeRobot calls it: seek, iterate, ``container``."""

import av
import torch


class VideoReader:
    def __init__(self, path, stream):
        self.container = av.open(path)
        self._stream = self.container.streams.video[0]

    def seek(self, time_s, keyframes_only=False):
        offset = int(time_s / self._stream.time_base)
        self.container.seek(offset, stream=self._stream, backward=True)

    def __iter__(self):
        for frame in self.container.decode(self._stream):
            data = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            yield {"data": data, "pts": float(frame.pts * self._stream.time_base)}
