"""Random changes of each image of a batch for itself: flips, shifts, rotations, scales, noise."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from fusedtricks._checks import check_number, check_whole
from fusedtricks._host import moved
from fusedtricks.data.checks import check_images, check_interval
from fusedtricks.data.drawing import device_of, uniform
from fusedtricks.data.layout import same_layout

__all__ = ["add_noise", "random_affine", "random_flip", "random_shift"]


def random_flip(
    images: Tensor,
    *,
    probability: float = 0.5,
    vertical: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Mirror some of the images. Only for training.

    Args:
        images: Shape (N, C, H, W), any dtype; not modified.
        probability: How likely each image is mirrored. Default 0.5.
        vertical: Whether top and bottom change places instead of left and right. Default False.
        generator: Where the random numbers come from. Default None: torch's default generator of
            the CPU.

    Returns:
        New images of the same shape, dtype and memory format.

    Raises:
        ValueError: If the shape does not fit, or the probability is not in [0, 1].
        TypeError: If an argument is of another kind.

    Example:
        >>> random_flip(torch.tensor([[[[1, 2, 3]]]]), probability=1)
        tensor([[[[3, 2, 1]]]])

    Source: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural
        Networks", section 4.1.
    """
    check_images("random_flip", images, any_dtype=True)
    check_number("random_flip", "probability", probability, low=0, high=1)
    drawn = uniform((len(images), 1, 1, 1), 0, 1, generator=generator, device=images.device)
    mirrored = images.flip(2 if vertical else 3)
    return same_layout(torch.where(drawn < probability, mirrored, images), images)


def random_shift(
    images: Tensor,
    *,
    max_shift: int,
    fill: float | Tensor = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """Move each image by whole pixels. Only for training.

    The same as a crop at random from images padded by `max_shift` on all sides, which is the
    usual augmentation of CIFAR with `max_shift=4`.

    Args:
        images: Shape (N, C, H, W), any dtype; not modified.
        max_shift: Largest shift in pixels, drawn uniformly and separately for both directions;
            0 draws nothing.
        fill: Value of what moves in, or one for each image and channel, shape (N, C, 1, 1), such
            as `images[:, :, :1, :1]`. For images of integers, a whole number of their range, or a
            tensor of their dtype. Default 0.
        generator: Where the random numbers come from. Default None: torch's default generator of
            the CPU.

    Returns:
        New images of the same shape, dtype and memory format.

    Raises:
        ValueError: If a shape does not fit, max_shift is negative, or the images' dtype has no
            such number as fill.
        TypeError: If an argument is of another kind.

    Example:
        >>> random_shift(torch.ones(5, 3, 32, 32), max_shift=4).shape
        torch.Size([5, 3, 32, 32])

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.
    """
    check_images("random_shift", images, any_dtype=True)
    check_whole("random_shift", "max_shift", max_shift, low=0)
    n_images, n_channels, height, width = images.shape
    _check_fill(fill, images)
    if max_shift == 0:
        return same_layout(images.clone(), images)
    n_places = 2 * max_shift + 1
    offsets = torch.randint(
        n_places, (2, n_images, 1, 1), generator=generator, device=device_of(generator)
    )
    top, left = moved(offsets[:, :, 0, 0], images.device)
    padded = images.new_empty(n_images, n_channels, height + 2 * max_shift, width + 2 * max_shift)
    padded = same_layout(padded, images)
    padded[:] = fill
    padded[:, :, max_shift : max_shift + height, max_shift : max_shift + width] = images
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, places, places, H, W)
    which = torch.arange(n_images, device=images.device)
    return same_layout(windows[which, :, top, left], images)


def _check_fill(fill: float | Tensor, images: Tensor) -> None:
    is_floating = images.is_floating_point()
    if isinstance(fill, Tensor):
        shape = [*images.shape[:2], 1, 1]
        if list(fill.shape) != shape:
            raise ValueError(
                f"random_shift: expected a number or a fill of shape {shape}, got one of shape "
                f"{list(fill.shape)}"
            )
        if not is_floating and fill.dtype != images.dtype:
            raise TypeError(
                f"random_shift: expected fill of the images' dtype {images.dtype}, got {fill.dtype}"
            )
        return
    if images.dtype == torch.bool:
        low, high = 0, 1
    else:
        info = torch.finfo(images.dtype) if is_floating else torch.iinfo(images.dtype)
        low, high = info.min, info.max
    check_number("random_shift", "fill", fill, low=low, high=high)
    if not is_floating and fill != int(fill):
        raise ValueError(
            f"random_shift: expected fill to be a whole number for images of {images.dtype}, got "
            f"{fill}"
        )


def random_affine(
    images: Tensor,
    *,
    degrees: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    shift: float = 0.0,
    fill: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """Rotate and scale each image about its centre, then move it. Only for training.

    One bilinear interpolation for all three. Angles, factors and shifts are drawn uniformly, for
    each image its own.

    Args:
        images: Shape (N, C, H, W), floating point; not modified. Half precision is computed in
            float32.
        degrees: Largest angle in degrees, in both directions. Default 0.
        scale: Smallest and largest factor, above 0; larger than 1 enlarges. Default (1, 1).
        shift: Largest shift in pixels, separately for both directions. Default 0.
        fill: Value outside of the image. Default 0, the mean of images that are normalised.
        generator: Where the random numbers come from. Default None: torch's default generator of
            the CPU.

    Returns:
        New images of the same shape, dtype and memory format.

    Raises:
        ValueError: If the shape does not fit, or a value is out of range.
        TypeError: If an argument is of another kind.

    Example:
        >>> images = torch.rand(5, 3, 32, 32)
        >>> random_affine(images, degrees=15, scale=(0.9, 1.1), shift=2).shape
        torch.Size([5, 3, 32, 32])

    Source: Simard et al. 2003, "Best Practices for Convolutional Neural Networks Applied to
        Visual Document Analysis", section 2.
    """
    check_images("random_affine", images)
    check_interval("random_affine", "scale", scale)
    smallest, largest = scale
    check_number("random_affine", "degrees", degrees, low=0)
    check_number("random_affine", "shift", shift, low=0)
    check_number("random_affine", "fill", fill, low=-math.inf)
    precise = torch.promote_types(images.dtype, torch.float32)
    drawn = uniform((4, len(images)), 0, 1, generator=generator, device=images.device)
    angle, factor, down, right = drawn.to(precise)
    grid = _sampling_grid(
        images.shape[2:],
        angle=(2 * angle - 1) * math.radians(degrees),
        factor=smallest + (largest - smallest) * factor,
        down=(2 * down - 1) * shift,
        right=(2 * right - 1) * shift,
    )
    sampled = functional.grid_sample(
        images.to(precise) - fill, grid, padding_mode="zeros", align_corners=False
    )
    return same_layout((sampled + fill).to(images.dtype), images)


def _sampling_grid(
    size: tuple[int, int], *, angle: Tensor, factor: Tensor, down: Tensor, right: Tensor
) -> Tensor:
    """Return where each pixel comes from, shape (N, H, W, 2), as grid_sample wants it.

    In pixels from the centre, so that a rotation of a rectangle is one; and without a matrix
    product, which autocast would do in half precision.

    Args:
        size: Height and width in pixels.
        angle: Shape (N,), radians, clockwise.
        factor: Shape (N,).
        down: Shape (N,), pixels.
        right: Shape (N,), pixels.
    """
    height, width = size
    y = torch.arange(height, device=angle.device, dtype=angle.dtype) - (height - 1) / 2
    x = torch.arange(width, device=angle.device, dtype=angle.dtype) - (width - 1) / 2
    y = y[:, None] - down[:, None, None]
    x = x - right[:, None, None]
    cosine = (angle.cos() / factor)[:, None, None]
    sine = (angle.sin() / factor)[:, None, None]
    from_x = (cosine * x + sine * y) * (2 / width)
    from_y = (cosine * y - sine * x) * (2 / height)
    return torch.stack([from_x, from_y], dim=-1)


def add_noise(images: Tensor, *, std: float, generator: Generator | None = None) -> Tensor:
    """Add independent normal noise to every pixel. Only for training.

    images' = images + std * e, e ~ N(0, 1). Values may leave the range of the images.

    Args:
        images: Shape (N, C, H, W), floating point; not modified. Half precision is computed in
            float32.
        std: Standard deviation in the unit of the images, at least 0.
        generator: Where the random numbers come from. Default None: torch's default generator of
            the images' device, because one number for each pixel had better be drawn there.

    Returns:
        New images of the same shape, dtype and memory format.

    Raises:
        ValueError: If the shape does not fit, or std is negative.
        TypeError: If an argument is of another kind.

    Example:
        >>> add_noise(torch.rand(5, 3, 32, 32), std=0.1).shape
        torch.Size([5, 3, 32, 32])

    Source: Bishop 1995, "Training with Noise is Equivalent to Tikhonov Regularization".
    """
    check_images("add_noise", images)
    check_number("add_noise", "std", std, low=0)
    device = images.device if generator is None else device_of(generator)
    noise = torch.randn(
        images.shape,
        generator=generator,
        device=device,
        dtype=torch.promote_types(images.dtype, torch.float32),
    )
    noisy = images + std * moved(noise, images.device)
    return same_layout(noisy.to(images.dtype), images)
