"""From a batch of bytes to what a network is trained with: mixed, cut, normalised, in one sweep."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Generator, Tensor

from fusedtricks._checks import check_number
from fusedtricks._host import moved
from fusedtricks.data import prepare_op
from fusedtricks.data.applying import planned_images
from fusedtricks.data.batch_tricks import BatchTrick
from fusedtricks.data.checks import check_images, checked_normalisation
from fusedtricks.data.plan import BatchPlan, check_plan
from fusedtricks.targets import Targets, as_targets

__all__ = ["BatchPreparation", "prepare_batch"]

_BACKENDS = ("auto", "triton", "reference")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MEMORY_FORMATS = (torch.channels_last, torch.contiguous_format)


def prepare_batch(
    images: Tensor,
    targets: Tensor | Targets | None = None,
    plan: BatchPlan | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    fill: float = 0.0,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    backend: str = "auto",
) -> tuple[Tensor, Targets | None]:
    """Normalise a batch of bytes and carry out a plan on it, on a GPU in one kernel.

    normalised = (images / 255 - mean[channel]) / std[channel]; then what `apply_plan` does to
    normalised images, so that `fill` is in their unit and 0 the mean colour.

    The kernel computes (other + own_share * (own - other) - 255 * mean) * (1 / (255 * std)) in
    float32 and rounds to `dtype` once; it is off by at most 2^-22 of max(|mean|, |1 - mean|) / std,
    where images are blended 2^-21. A plan that lies on the CPU goes to the GPU in one copy. Nothing
    waits.

    Args:
        images: Shape (N, C, H, W), uint8, any strides; not modified. Both usual layouts are read as
            they are, others are copied first.
        targets: Labels, shape (N,); class probabilities, shape (N, K); or `Targets`, on the device
            of the images. Default None.
        plan: What happens to the N images, on any device. Default None: nothing.
        mean: Subtracted from images in [0, 1]; one for each channel.
        std: What they are then divided by, above 0; one for each channel.
        fill: Value inside the holes. Default 0.
        dtype: Of the result: float32, bfloat16, float16, or float64 without the kernel. Default
            float32.
        memory_format: Of the result: channels_last, the default, or contiguous_format.
        backend: "triton" for the kernel, "reference" for torch's operators, "auto", the default,
            for the kernel on GPUs where it can run.

    Returns:
        New images, shape (N, C, H, W), and their targets, None if none were given.

    Raises:
        TypeError: If images are not uint8, or an argument is of another kind.
        ValueError: If a shape, the number of images of the plan, or a value does not fit.
        RuntimeError: If backend="triton" cannot run.

    Example:
        >>> from fusedtricks.data import MixUp
        >>> images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
        >>> images, targets = prepare_batch(
        ...     images, torch.arange(5), MixUp(0.2).plan(5, 8, 8), mean=[0.5] * 3, std=[0.25] * 3
        ... )
        >>> images.dtype, targets.is_mixed
        (torch.float32, True)
    """
    _check_bytes("prepare_batch", images)
    mean, std = checked_normalisation("prepare_batch", mean, std)
    _check_result("prepare_batch", dtype, memory_format, backend)
    check_number("prepare_batch", "fill", fill, low=-math.inf)
    n_images, n_channels, height, width = images.shape
    if len(mean) != n_channels:
        raise ValueError(
            f"prepare_batch: expected a mean and a std for each of {n_channels} channels, got "
            f"{len(mean)}"
        )
    with_kernel = prepare_op.takes(backend, images, dtype)
    targets = None if targets is None else as_targets(targets)
    if targets is not None and len(targets) != n_images:
        raise ValueError(f"prepare_batch: expected {n_images} targets, got {len(targets)}")
    if plan is not None:
        check_plan("prepare_batch", plan, n_images)
        plan = prepare_op.on_device(plan, images.device)
        targets = None if targets is None else plan.mix_targets(targets, height, width)
    if not with_kernel:
        return _by_torch(images, plan, mean, std, fill, dtype, memory_format), targets
    is_channels_last = memory_format == torch.channels_last
    return prepare_op.run(images, plan, mean, std, fill, dtype, is_channels_last), targets


@dataclass(frozen=True)
class BatchPreparation:
    """What a training loop does to each batch of bytes once it is on the GPU.

    Draws what happens to the images, then calls `prepare_batch`. For evaluation, one without
    tricks.

    Args:
        mean: Subtracted from images in [0, 1]; one for each channel.
        std: What they are then divided by, above 0; one for each channel.
        tricks: What happens at random: `MixUp`, `CutMix`, `Cutout`, or several of them in a `OneOf`
            or `Chain`; holes have the fill value of `tricks`. Default None: nothing.
        dtype: Of the result. Default float32.
        memory_format: Of the result. Default channels_last.
        backend: See `prepare_batch`. Default "auto".

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If a value is out of range.

    Example:
        >>> from fusedtricks.data import Chain, Cutout, MixUp
        >>> prepare = BatchPreparation(
        ...     (0.5, 0.4, 0.3), (0.2, 0.3, 0.2), tricks=Chain(MixUp(0.2), Cutout(4))
        ... )
        >>> images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
        >>> images, targets = prepare(images, torch.arange(5))
        >>> images.is_contiguous(memory_format=torch.channels_last), targets.is_mixed
        (True, True)
    """

    mean: Sequence[float]
    std: Sequence[float]
    _: KW_ONLY
    tricks: BatchTrick | None = None
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.channels_last
    backend: str = "auto"

    def __post_init__(self) -> None:
        mean, std = checked_normalisation("BatchPreparation", self.mean, self.std)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        _check_result("BatchPreparation", self.dtype, self.memory_format, self.backend)
        if self.tricks is not None and not isinstance(self.tricks, BatchTrick):
            raise TypeError(
                f"BatchPreparation: expected tricks such as MixUp(0.2), got {self.tricks!r}"
            )

    def __call__(
        self,
        images: Tensor,
        targets: Tensor | Targets | None = None,
        *,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Targets | None]:
        """Draw a plan and carry it out.

        Args:
            images: Shape (N, C, H, W), uint8.
            targets: See `prepare_batch`. Default None.
            generator: Where the random numbers come from. Default None: torch's default generator
                of the CPU.

        Returns:
            New images and their targets, None if none were given.
        """
        _check_bytes("BatchPreparation", images)
        plan = None
        if self.tricks is not None:
            n_images, _, height, width = images.shape
            plan = self.tricks.plan(n_images, height, width, generator=generator)
        return prepare_batch(
            images,
            targets,
            plan,
            mean=self.mean,
            std=self.std,
            fill=0.0 if self.tricks is None else self.tricks.fill,
            dtype=self.dtype,
            memory_format=self.memory_format,
            backend=self.backend,
        )


def _by_torch(
    images: Tensor,
    plan: BatchPlan | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    fill: float,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor:
    """Return what the kernel returns, by torch's operators: float32 for 16-bit results."""
    precise = torch.promote_types(dtype, torch.float32)
    means, stds = (
        moved(torch.tensor(values, dtype=precise, device="cpu"), images.device)[:, None, None]
        for values in (mean, std)
    )
    prepared = images.to(precise, memory_format=memory_format)
    prepared.div_(255).sub_(means).div_(stds)
    if plan is not None:
        prepared = planned_images(prepared, plan, fill=fill)
    return prepared.to(dtype, memory_format=memory_format)


def _check_bytes(what: str, images: Tensor) -> None:
    check_images(what, images, any_dtype=True)
    if images.dtype != torch.uint8:
        raise TypeError(
            f"{what}: expected images of uint8, from 0 to 255, got {images.dtype}; for images that "
            "are normalised already, use apply_plan"
        )


def _check_result(
    what: str, dtype: torch.dtype, memory_format: torch.memory_format, backend: str
) -> None:
    for name, value, allowed in (
        ("dtype", dtype, _DTYPES),
        ("memory_format", memory_format, _MEMORY_FORMATS),
        ("backend", backend, _BACKENDS),
    ):
        if value not in allowed:
            choices = ", ".join(map(str, allowed))
            raise ValueError(f"{what}: expected {name} to be one of {choices}, got {value!r}")
