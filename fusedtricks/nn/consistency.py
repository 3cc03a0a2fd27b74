"""How much a model's answer depends on where in the image the object is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ShiftConsistency", "shift_consistency"]


@dataclass(frozen=True)
class ShiftConsistency:
    """What `shift_consistency` measured.

    Attributes:
        agreement: Share of the pairs with one top class, 0 to 1.
        similarity: Mean cosine similarity of the outputs of a pair, -1 to 1.
        n_pairs: Number of pairs of all images together.
    """

    agreement: float
    similarity: float
    n_pairs: int


@torch.no_grad()
def shift_consistency(
    model: nn.Module,
    images: Tensor,
    *,
    max_shift: int,
    n_pairs: int,
    circular: bool = False,
    generator: torch.Generator | None = None,
) -> ShiftConsistency:
    """Compare a model's outputs for pairs of shifts of an image.

    agreement = mean of 1{argmax f(shift_a(x)) = argmax f(shift_b(x))}, the shifts a and b drawn
    uniformly, down and right by 0 to `max_shift` pixels each, for every image and pair. The
    model runs in evaluation mode, without gradients, and is in the mode it was in afterwards.

    Args:
        model: Maps images to outputs, shape (N, K).
        images: Shape (N, C, H, W), of the dtype and on the device that the model takes.
        max_shift: Largest shift, pixels, at least 1.
        n_pairs: Pairs per image, at least 1; 2 * n_pairs batches of N images go through the model.
        circular: Whether what leaves the image at one side comes back at the other one, as the
            paper does for CIFAR-10. Default False: crops of max_shift pixels less per side, as
            for ImageNet, which show no seam.
        generator: Draws the shifts. Default None: torch's default one.

    Raises:
        ValueError: If there are no images, or a number is out of range.

    Example:
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> images = torch.rand(5, 3, 32, 32)
        >>> shift_consistency(model, images, max_shift=4, n_pairs=2, circular=True).agreement
        1.0

    Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", section 4,
        "Classification consistency"; the similarity is not in the paper.
    """
    _check(images, max_shift, n_pairs, circular)
    device = torch.device("cpu") if generator is None else generator.device
    # (pair, shift a or b, image, down or right)
    shifts = torch.randint(
        max_shift + 1, (n_pairs, 2, len(images), 2), generator=generator, device=device
    ).tolist()
    agreement = similarity = 0.0
    with _evaluating(model):
        for pair in shifts:
            first, second = (
                model(_shifted(images, offsets, max_shift, circular)).flatten(1).double()
                for offsets in pair
            )
            agreement += (first.argmax(dim=1) == second.argmax(dim=1)).double().mean().item()
            similarity += functional.cosine_similarity(first, second).mean().item()
    return ShiftConsistency(agreement / n_pairs, similarity / n_pairs, n_pairs * len(images))


def _shifted(images: Tensor, offsets: list[list[int]], max_shift: int, circular: bool) -> Tensor:
    if circular:
        shifted = [
            i.roll((down, right), dims=(1, 2))
            for i, (down, right) in zip(images, offsets, strict=True)
        ]
    else:
        height, width = (side - max_shift for side in images.shape[-2:])
        shifted = [
            image[:, max_shift - down :, max_shift - right :][:, :height, :width]
            for image, (down, right) in zip(images, offsets, strict=True)
        ]
    return torch.stack(shifted)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _check(images: Tensor, max_shift: int, n_pairs: int, circular: bool) -> None:
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"shift_consistency: expected images of shape (N, C, H, W) with N of at least 1, got "
            f"{list(images.shape)}"
        )
    if n_pairs < 1:
        raise ValueError(f"shift_consistency: expected n_pairs of at least 1, got {n_pairs}")
    side = min(images.shape[-2:])
    if not 1 <= max_shift < side:
        raise ValueError(
            f"shift_consistency: expected max_shift of 1 to {side - 1} for images of "
            f"{images.shape[-2]}x{images.shape[-1]} pixels, got {max_shift}"
        )
