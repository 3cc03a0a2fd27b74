"""What happens to each image of a batch: drawn once, then carried out by torch or by one kernel."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusedtricks._host import extremes, moved
from fusedtricks.targets import Targets

__all__ = ["BatchPlan", "check_plan", "inside_boxes"]

# Shape after the number of images, and dtype.
_TENSORS = {
    "partner": ((), torch.int64),
    "own_share": ((), torch.float32),
    "patch": ((4,), torch.int64),
    "hole": ((4,), torch.int64),
}


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Blend, patch and hole of every image of a batch; all tensors lie on one device.

    Pixel p of image i becomes, in this order:
    images[partner[i]][p] inside the patch, and
    own_share[i] * images[i][p] + (1 - own_share[i]) * images[partner[i]][p] outside of it;
    then the fill value inside the hole.

    A box is (top, bottom, left, right) in pixels, bottom and right excluded; it is empty if
    bottom <= top or right <= left.

    Attributes:
        partner: Shape (N,), int64: the image that each one is blended with; itself for none.
        own_share: Shape (N,), float32, in [0, 1]; 1 blends nothing.
        patch: Shape (N, 4), int64: the box that comes from the partner.
        hole: Shape (N, 4), int64: the box that is filled.
        is_mixed: Whether partners may matter; if False, `own_share` is 1 and `patch` empty
            throughout, known without a look at the device. Default True.
        has_patches: Whether a patch may be there; if False, all are empty. Default True.
        has_holes: Whether a hole may be there; if False, all are empty. Default True.
    """

    partner: Tensor
    own_share: Tensor
    patch: Tensor
    hole: Tensor
    is_mixed: bool = True
    has_patches: bool = True
    has_holes: bool = True

    @classmethod
    def nothing(cls, n_images: int, device: torch.device | str = "cpu") -> "BatchPlan":
        """Return the plan that leaves `n_images` images as they are.

        Its flags are False: who replaces a tensor replaces the flags that speak of it too.
        """
        return cls(
            torch.arange(n_images, device=device),
            torch.ones(n_images, dtype=torch.float32, device=device),
            torch.zeros(n_images, 4, dtype=torch.int64, device=device),
            torch.zeros(n_images, 4, dtype=torch.int64, device=device),
            is_mixed=False,
            has_patches=False,
            has_holes=False,
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return self.partner.shape[0]

    def to(self, device: torch.device | str) -> "BatchPlan":
        """Return the plan on a device; nothing waits on the way from the CPU to a GPU."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        device = torch.device(device)
        return replace(self, **{name: moved(tensor, device) for name, tensor in tensors.items()})

    def mix_targets(self, targets: Targets, height: int, width: int) -> Targets:
        """Return the targets of the images that the plan makes.

        A label's share is own_share * (1 - pixels of the patch / (height * width)); holes change
        no target.

        Args:
            targets: Those of the N images.
            height: Height of the images in pixels.
            width: Width of the images in pixels.

        Raises:
            ValueError: If the number of targets is not the plan's.
        """
        if len(targets) != len(self):
            raise ValueError(
                f"expected targets of as many images as the plan has, {len(self)}, got "
                f"{len(targets)}"
            )
        if not self.is_mixed:
            return targets
        plan = self.to(targets.weights.device)
        rows, columns = inside_boxes(plan.patch, height, width)
        patch_share = rows.sum(dim=1) * columns.sum(dim=1) / max(height * width, 1)
        return targets.mix(plan.partner, plan.own_share * (1 - patch_share))


def check_plan(what: str, plan: BatchPlan, n_images: int) -> None:
    """Refuse what is no plan of so many images.

    Raises:
        TypeError: If it is no plan.
        ValueError: If it is of another number of images, a shape or a dtype does not fit, or, on
            the CPU, a partner is none of the images.
    """
    if not isinstance(plan, BatchPlan):
        raise TypeError(f"{what}: expected a BatchPlan, got {type(plan).__name__}")
    if len(plan) != n_images:
        raise ValueError(f"{what}: expected a plan of {n_images} images, got one of {len(plan)}")
    for name, (rest, dtype) in _TENSORS.items():
        tensor = getattr(plan, name)
        if tensor.shape != (n_images, *rest) or tensor.dtype != dtype:
            raise ValueError(
                f"{what}: expected {name} of the plan to be {dtype} of shape "
                f"{[n_images, *rest]}, got {tensor.dtype} of {list(tensor.shape)}"
            )
    for partner in extremes(plan.partner) or ():
        if not 0 <= partner < n_images:
            raise ValueError(f"{what}: expected partners from 0 to {n_images - 1}, got {partner}")


def inside_boxes(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return which rows, shape (N, height), and columns, shape (N, width), are inside the boxes.

    Args:
        boxes: Shape (N, 4): top, bottom, left and right; they may stick out of the image.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
    """
    top, bottom, left, right = boxes[:, :, None].unbind(dim=1)
    y = torch.arange(height, device=boxes.device)
    x = torch.arange(width, device=boxes.device)
    return (top <= y) & (y < bottom), (left <= x) & (x < right)
