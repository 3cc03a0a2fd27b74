"""Random changes of the colours of each image."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fusedtricks import _extras
from fusedtricks._checks import check_number
from fusedtricks._host import extremes, moved
from fusedtricks.data.checks import check_images
from fusedtricks.data.drawing import device_of, uniform
from fusedtricks.data.layout import same_layout

__all__ = ["HSVJitter", "PCANoise", "hsv_jitter", "hsv_to_rgb", "pca_noise", "rgb_to_hsv"]

# Eigenvalues, and eigenvectors as columns, of the colours of ImageNet's training images in [0, 1]:
# datasets/imagenet.lua of facebookarchive/fb.resnet.torch, which computed them from a random
# subset. Others have the same numbers times 255.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def hsv_jitter(
    images: Tensor, *, low: float = 0.6, high: float = 1.4, generator: Generator | None = None
) -> Tensor:
    """Scale hue, saturation and value of each image by random factors. Only for training.

    Each factor is drawn uniformly from [low, high), for each image its own three. Saturation and
    value end at 1; hue is an angle and goes round: hue' = factor * hue mod 1, with 0 for red. The
    reds lie on both sides of 0, so that neighbours among them may become different colours.

    Args:
        images: Shape (N, 3, H, W), red, green and blue in [0, 1], floating point: after / 255 and
            before normalisation; not modified. Half precision is computed in float32.
        low: Smallest factor, at least 0. Default 0.6.
        high: Largest factor, at least `low`. Default 1.4.
        generator: Where the random numbers come from. Default None: torch's default generator of
            the CPU.

    Returns:
        New images of the same shape, dtype and memory format.

    Raises:
        ValueError: If the shape does not fit, a factor is out of range, or images on the CPU leave
            [0, 1] by more than rounding. On other devices a look would wait, and there is none in
            compiled code.
        TypeError: If an argument is of another kind.

    Example:
        >>> hsv_jitter(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 3, 32, 32])

    Source: He et al. 2019, "Bag of Tricks for Image Classification", section 2.1, step 4.
    """
    _check_rgb("hsv_jitter", images)
    _check_factors("hsv_jitter", low, high)
    _check_range("hsv_jitter", images)
    factors = uniform((3, len(images), 1, 1), low, high, generator=generator, device=images.device)
    precise = images.to(torch.promote_types(images.dtype, torch.float32))
    hue, saturation, value = rgb_to_hsv(precise).unbind(dim=1)
    scaled = [
        hue * factors[0] % 1,
        (saturation * factors[1]).clamp(max=1),
        (value * factors[2]).clamp(max=1),
    ]
    return same_layout(hsv_to_rgb(torch.stack(scaled, dim=1)).to(images.dtype), images)


def pca_noise(images: Tensor, *, std: float = 0.1, generator: Generator | None = None) -> Tensor:
    """Shift the colours of each image along the principal components of ImageNet's colours.

    images' = images + sum over i of eigenvector[i] * eigenvalue[i] * a[i], a[i] ~ N(0, std^2), one
    a for all pixels of an image. Values may leave [0, 1]. Only for training.

    Args:
        images: Shape (N, 3, H, W), red, green and blue in [0, 1], floating point; not modified.
            Half precision is computed in float32.
        std: Standard deviation of a, at least 0. Default 0.1.
        generator: Where the random numbers come from. Default None: torch's default generator of
            the CPU.

    Returns:
        New images of the same shape, dtype and memory format.

    Raises:
        ValueError: If the shape does not fit, or std is negative.
        TypeError: If an argument is of another kind.

    Example:
        >>> pca_noise(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 3, 32, 32])

    Source: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural
        Networks", section 4.1.
    """
    _check_rgb("pca_noise", images)
    check_number("pca_noise", "std", std, low=0)
    device = device_of(generator)
    drawn = torch.randn(len(images), 1, 3, generator=generator, device=device, dtype=torch.float32)
    directions = torch.tensor(_EIGENVECTORS, device=device) * torch.tensor(
        _EIGENVALUES, device=device
    )
    # No matrix product, which autocast would do in half precision.
    offsets = moved((std * drawn * directions).sum(dim=2), images.device)
    shifted = images + offsets[:, :, None, None]
    return same_layout(shifted.to(images.dtype), images)


def rgb_to_hsv(images: Tensor) -> Tensor:
    """Return hue, saturation and value, all in [0, 1], of red, green and blue.

    Args:
        images: Shape (..., 3, H, W), in [0, 1], floating point.

    Example:
        >>> rgb_to_hsv(torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)).flatten()
        tensor([0.6667, 1.0000, 1.0000])

    Source: Smith 1978, "Color Gamut Transform Pairs".
    """
    red, green, blue = images.unbind(dim=-3)
    value = images.amax(dim=-3)
    spread = value - images.amin(dim=-3)
    divisor = torch.where(spread == 0, 1, spread)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    saturation = spread / torch.where(value == 0, 1, value)
    return torch.stack([hue / 6 % 1, saturation, value], dim=-3)


def hsv_to_rgb(images: Tensor) -> Tensor:
    """Return red, green and blue of hue, saturation and value; the inverse of `rgb_to_hsv`.

    Args:
        images: Shape (..., 3, H, W), in [0, 1], floating point.

    Example:
        >>> hsv_to_rgb(torch.tensor([2 / 3, 1.0, 1.0]).view(3, 1, 1)).flatten()
        tensor([0., 0., 1.])

    Source: Smith 1978, "Color Gamut Transform Pairs".
    """
    hue, saturation, value = images.unbind(dim=-3)
    chroma = value * saturation

    def channel(offset: int) -> Tensor:
        # 0 in the third of the circle around the channel's own colour, 1 in the opposite third.
        position = (6 * hue + offset) % 6
        return value - chroma * torch.minimum(position, 4 - position).clamp(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], dim=-3)


class _ColourChange(nn.Module, ABC):
    def forward(self, *inputs: Any) -> Any:
        """Return an image or a batch changed, or a sample with its images changed.

        Args:
            inputs: Images, shape (3, H, W) or (N, 3, H, W), floating point; or a sample as
                torchvision's transforms take it, such as an image and a label, or a dict. Of
                several plain tensors in a sample, the first one is the image.

        Raises:
            TypeError: If an image is no tensor.
            MissingExtraError: If it is a sample, and torchvision cannot be imported.
        """
        sample = inputs if len(inputs) > 1 else inputs[0]
        is_torchvisions = type(sample).__module__.startswith("torchvision.")
        if not is_torchvisions and not isinstance(sample, (tuple, list, dict)):
            return self._of_any_number(sample)
        # Torchvision decides which parts of the sample are images.
        v2 = _extras.require("torchvision.transforms.v2")
        return v2.Lambda(self._part)(*inputs)

    def _part(self, part: Any) -> Any:
        tv_tensors = _extras.require("torchvision.tv_tensors")
        if isinstance(part, tv_tensors.Image):
            return tv_tensors.Image(self._of_any_number(part.as_subclass(Tensor)))
        is_pillow = type(part).__module__.startswith("PIL.")
        is_other = isinstance(part, tv_tensors.TVTensor) or not isinstance(part, Tensor)
        return part if is_other and not is_pillow else self._of_any_number(part)

    def _of_any_number(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor):
            raise TypeError(
                f"{type(self).__name__}: expected images to be a tensor, got "
                f"{type(images).__name__}; for PIL images, put v2.ToImage() and "
                "v2.ToDtype(torch.float32, scale=True) of torchvision.transforms before"
            )
        return self._change(images[None])[0] if images.ndim == 3 else self._change(images)

    @abstractmethod
    def _change(self, images: Tensor) -> Tensor:
        """Return changed images, shape (N, 3, H, W)."""


class HSVJitter(_ColourChange):
    """`hsv_jitter` of an image or a batch, for torchvision.transforms.v2.Compose.

    As torchvision's transforms, it is random whether or not it is in training mode, and leaves
    what is no image in a sample as it is. Images must be in [0, 1]: v2.ToDtype(torch.float32,
    scale=True) goes before, v2.Normalize after.

    Args:
        low: Smallest factor, at least 0. Default 0.6.
        high: Largest factor, at least `low`. Default 1.4.

    Raises:
        ValueError: If a factor is out of range.

    Example:
        >>> HSVJitter()(torch.rand(3, 32, 32)).shape
        torch.Size([3, 32, 32])

    Source: see `hsv_jitter`.
    """

    def __init__(self, low: float = 0.6, high: float = 1.4) -> None:
        super().__init__()
        _check_factors("HSVJitter", low, high)
        self.low = low
        self.high = high

    def _change(self, images: Tensor) -> Tensor:
        return hsv_jitter(images, low=self.low, high=self.high)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"low={self.low}, high={self.high}"


class PCANoise(_ColourChange):
    """`pca_noise` of an image or a batch, for torchvision.transforms.v2.Compose.

    As torchvision's transforms, it is random whether or not it is in training mode, and leaves
    what is no image in a sample as it is.

    Args:
        std: Standard deviation, at least 0. Default 0.1.

    Raises:
        ValueError: If std is negative.

    Example:
        >>> PCANoise()(torch.rand(3, 32, 32)).shape
        torch.Size([3, 32, 32])

    Source: see `pca_noise`.
    """

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        check_number("PCANoise", "std", std, low=0)
        self.std = std

    def _change(self, images: Tensor) -> Tensor:
        return pca_noise(images, std=self.std)

    def extra_repr(self) -> str:
        """Return the argument."""
        return f"std={self.std}"


def _check_factors(what: str, low: float, high: float) -> None:
    check_number(what, "low", low, low=0)
    check_number(what, "high", high, low=low)


def _check_rgb(what: str, images: Tensor) -> None:
    check_images(what, images)
    if images.shape[1] != 3:
        raise ValueError(f"{what}: expected images of 3 channels, got {list(images.shape)}")


def _check_range(what: str, images: Tensor) -> None:
    found = extremes(images)
    if found is None:
        return
    lowest, highest = found
    # Interpolated images leave [0, 1] by rounding.
    if not (lowest >= -1e-3 and highest <= 1 + 1e-3):
        raise ValueError(
            f"{what}: expected images in [0, 1], got values from {lowest:.4g} to {highest:.4g}; it "
            "goes after / 255 and before normalisation"
        )
