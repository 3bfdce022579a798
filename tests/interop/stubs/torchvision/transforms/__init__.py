"""``ToTensor`` for PIL pictures: float32[3,H,W] in [0, 1]."""

import numpy as np
import torch


class ToTensor:
    def __call__(self, picture):
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(torch.float32) / 255
