"""Forward kinematics of the contract's arms, differentiable and batched.

Shapes: ... any batch, A arms, N joints of the longest arm, P = N + 1 points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from teamvla.contract import Arm, Contract

_EPSILON = 1e-9


class ArmChains(nn.Module):
    """Where the joints and the tools of all arms are, in the world frame.

    Joint i turns its frame by Rodrigues' formula, R_i = I + sin(q) K + (1 - cos(q)) K^2 with
    K the cross-product matrix of its axis; p_0 = base + offset_0, and behind it
    p_{i+1} = p_i + R_0 ... R_i offset_{i+1}, the tool being the offset behind the last joint.
    A shorter arm is filled up with joints that neither turn nor reach anywhere.

    Raises:
        ContractError: an arm's links are not known.
    """

    cross: Tensor
    cross_squared: Tensor
    offsets: Tensor
    start: Tensor
    radii: Tensor

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.num_joints = max(arm.num_joints for arm in contract.arms)
        self.joints_of_arm = tuple(arm.num_joints for arm in contract.arms)
        chains = [_arm_tensors(arm, self.num_joints) for arm in contract.arms]
        axes, offsets, start, radii = (torch.stack(part) for part in zip(*chains, strict=True))
        cross = _cross_matrices(axes)
        constants = {"cross": cross, "cross_squared": cross @ cross, "offsets": offsets}
        for name, value in {**constants, "start": start, "radii": radii}.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, joints: Sequence[Tensor]) -> Tensor:
        """Each arm's joints [..., its joints], rad, to points [..., A, P, 3], m; tool last."""
        with torch.autocast(self.start.device.type, enabled=False):
            return self._points(self._padded(joints))

    def _padded(self, joints: Sequence[Tensor]) -> Tensor:
        pads = [(0, self.num_joints - count) for count in self.joints_of_arm]
        parts = [
            nn.functional.pad(q.float(), pad) if pad[1] else q.float()
            for q, pad in zip(joints, pads, strict=True)
        ]
        return torch.stack(parts, dim=-2)

    def _points(self, joints: Tensor) -> Tensor:
        angles = joints[..., None, None]
        identity = torch.eye(3, device=joints.device)
        turns = identity + angles.sin() * self.cross + (1 - angles.cos()) * self.cross_squared
        points = [self.start.expand(*joints.shape[:-1], 3)]
        frame = turns[..., 0, :, :]
        for index in range(self.num_joints):
            reach = (frame @ self.offsets[:, index, :, None])[..., 0]
            points.append(points[-1] + reach)
            if index + 1 < self.num_joints:
                frame = frame @ turns[..., index + 1, :, :]
        return torch.stack(points, dim=-2)


def link_gaps(points: Tensor, radii: Tensor, first: int, second: int) -> Tensor:
    """Distances between the surfaces of two arms' link capsules, m; negative inside.

    Args:
        points: [..., A, P, 3] from :class:`ArmChains`.
        radii: [A, N], m.
        first, second: which two arms.

    Returns:
        [..., N, N], link i of the first arm against link j of the second.
    """
    one, other = points[..., first, :, :], points[..., second, :, :]
    between = segment_distance(
        one[..., :-1, None, :],
        one[..., 1:, None, :],
        other[..., None, :-1, :],
        other[..., None, 1:, :],
    )
    return between - radii[first][:, None] - radii[second]


def segment_distance(start_p: Tensor, end_p: Tensor, start_q: Tensor, end_q: Tensor) -> Tensor:
    """Distance [...] between the segments p and q, each given by end points [..., 3].

    The nearest places s, t in [0, 1] follow Ericson, Real-Time Collision Detection, 5.1.9.
    They are held fixed for the gradient: at the optimum, or clamped, moving them changes
    the distance to second order only (the envelope theorem).
    """
    with torch.no_grad():
        s, t = _nearest_places(start_p, end_p - start_p, start_q, end_q - start_q)
    gap = (1 - s) * start_p + s * end_p - (1 - t) * start_q - t * end_q
    return (gap.square().sum(-1) + _EPSILON).sqrt()


def _nearest_places(
    start_p: Tensor, along_p: Tensor, start_q: Tensor, along_q: Tensor
) -> tuple[Tensor, Tensor]:
    apart = start_p - start_q
    length_p = _dot(along_p, along_p).clamp_min(_EPSILON)
    length_q = _dot(along_q, along_q).clamp_min(_EPSILON)
    p_apart, q_apart, both = _dot(along_p, apart), _dot(along_q, apart), _dot(along_p, along_q)
    area = (length_p * length_q - both.square()).clamp_min(_EPSILON)
    s = ((both * q_apart - p_apart * length_q) / area).clamp(0, 1)
    t = ((both * s + q_apart) / length_q).clamp(0, 1)
    s = ((both * t - p_apart) / length_p).clamp(0, 1)
    return s, t


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(-1, keepdim=True)


def _arm_tensors(arm: Arm, num_joints: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    idle = num_joints - arm.num_joints
    links = arm.require_links("forward kinematics")
    axes = torch.tensor([link.axis for link in links] + [(0.0, 0.0, 0.0)] * idle)
    reaches = [link.offset for link in links[1:]] + [arm.tool] + [(0.0, 0.0, 0.0)] * idle
    start = torch.tensor(arm.base) + torch.tensor(links[0].offset)
    radii = [link.radius for link in links]
    return axes, torch.tensor(reaches), start, torch.tensor(radii + radii[-1:] * idle)


def _cross_matrices(axes: Tensor) -> Tensor:
    x, y, z = axes.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, dim=-1).reshape(*axes.shape, 3)
