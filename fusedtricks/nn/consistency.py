"""How much a model's answer depends on where in the image the object is."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusedtricks._checks import check_bool, check_module, check_tensor, check_whole
from fusedtricks.nn.model_tensors import restored_modes

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
        TypeError: If an argument is of another type, or the model returns no tensor.
        ValueError: If there are no images, a number is out of range, or the model returns fewer
            than 2 outputs for an image, or one that is not finite.

    Example:
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> images = torch.rand(5, 3, 32, 32)
        >>> shift_consistency(model, images, max_shift=4, n_pairs=2, circular=True).agreement
        1.0

    Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", section 4,
        "Classification consistency"; the similarity is not in the paper.
    """
    check_module("shift_consistency", "model", model)
    _check(images, max_shift, n_pairs, circular)
    max_shift, n_pairs = int(max_shift), int(n_pairs)
    device = torch.device("cpu") if generator is None else generator.device
    # (pair, shift a or b, image, down or right)
    shifts = torch.randint(
        max_shift + 1, (n_pairs, 2, len(images), 2), generator=generator, device=device
    ).tolist()
    agreement = similarity = 0.0
    with restored_modes(model):
        model.eval()
        for pair in shifts:
            first, second = (
                _scores(model(_shifted(images, offsets, max_shift, circular)), len(images))
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


def _scores(outputs: Tensor, n_images: int) -> Tensor:
    """Return a model's outputs in float64, shape (N, K)."""
    check_tensor("shift_consistency", "the model's output", outputs)
    shape = list(outputs.shape)
    if outputs.ndim < 2 or shape[0] != n_images or outputs[0].numel() < 2:
        raise ValueError(
            f"shift_consistency: expected the model to return shape ({n_images}, K) with K of at "
            f"least 2, got {shape}; one output is always the largest"
        )
    if not outputs.isfinite().all():
        raise ValueError(
            "shift_consistency: expected the model to return finite outputs, got inf or NaN; "
            "comparing these says nothing"
        )
    return outputs.flatten(1).double()


def _check(images: Tensor, max_shift: int, n_pairs: int, circular: bool) -> None:
    check_tensor("shift_consistency", "images", images)
    check_bool("shift_consistency", "circular", circular)
    check_whole("shift_consistency", "n_pairs", n_pairs, 1)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"shift_consistency: expected images of shape (N, C, H, W) with N of at least 1, got "
            f"{list(images.shape)}"
        )
    height, width = images.shape[-2:]
    name = f"max_shift for images of {height}x{width} pixels"
    check_whole("shift_consistency", name, max_shift, 1, min(height, width) - 1)
