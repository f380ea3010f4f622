"""What a predicted mask is told about the true one.

Letters in shapes: n masks, k points, h w pixels of a low-resolution mask.

Source: Sa2VA's training (bytedance/Sa2VA, `projects/sa2va/models`), after Mask2Former (arXiv 2112.01527) and
PointRend (arXiv 1912.08193).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

NUM_POINTS = 12544
_OVERSAMPLED, _UNCERTAIN = 3, 0.75
_SMALL = 1e-4
_EPSILON = torch.finfo(torch.float32).eps


def mask_loss(logits: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Mean binary cross-entropy of the points of all masks; targets in [0, 1]. 0 for no masks."""
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return entropy / (logits.numel() + _SMALL + _EPSILON)


def dice_loss(logits: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Mean over the masks of one minus the Dice overlap, with first powers below the line; targets in [0, 1].

    An empty target is met by an empty mask. 0 for no masks.
    """
    found = logits.sigmoid()
    overlap = (2 * (found * targets).sum(1) + 1) / (found.sum(1) + targets.sum(1) + 1)
    return (1 - overlap).sum() / (len(logits) + _SMALL + _EPSILON)


def at_points(masks: Float[Tensor, "n h w"], points: Float[Tensor, "n k 2"]) -> Float[Tensor, "n k"]:
    """Values of masks at points (x, y) in [0, 1], interpolated between pixel centres."""
    sampled = functional.grid_sample(masks[:, None], 2 * points[:, :, None] - 1, align_corners=False)
    return sampled[:, 0, :, 0]


@torch.no_grad()
def uncertain_points(
    logits: Float[Tensor, "n h w"], generator: torch.Generator | None, *, count: int = NUM_POINTS
) -> Float[Tensor, "n k 2"]:
    """Points (x, y) in [0, 1] to learn at: three quarters where the mask is least decided, the rest anywhere.

    The undecided ones are the best of three times as many drawn by chance. Without a generator, torch's own is asked.
    """
    number, device = len(logits), logits.device
    drawn = torch.rand(number, _OVERSAMPLED * count, 2, device=device, generator=generator)
    doubt = -at_points(logits, drawn).abs()
    kept = int(_UNCERTAIN * count)
    best = doubt.topk(kept, dim=1).indices
    chosen = drawn.gather(1, best[..., None].expand(-1, -1, 2))
    anywhere = torch.rand(number, count - kept, 2, device=device, generator=generator)
    return torch.cat([chosen, anywhere], dim=1)
