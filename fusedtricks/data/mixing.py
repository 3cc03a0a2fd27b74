"""Blends of the images of a batch with each other."""

import dataclasses
import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Generator, Tensor

from fusedtricks._checks import check_number
from fusedtricks.data.batch_tricks import BatchTrick
from fusedtricks.data.drawing import device_of
from fusedtricks.data.plan import BatchPlan
from fusedtricks.targets import Targets

__all__ = ["CutMix", "MixUp", "cutmix", "mixup"]


@dataclass(frozen=True)
class _Mix(BatchTrick):
    alpha: float
    _: KW_ONLY
    per_sample: bool = False

    def __post_init__(self) -> None:
        check_number(type(self).__name__, "alpha", self.alpha, low=0)
        if not isinstance(self.per_sample, bool):
            raise TypeError(
                f"{type(self).__name__}: expected per_sample to be True or False, got "
                f"{self.per_sample!r}"
            )

    @property
    def mixes(self) -> bool:
        """Whether anything happens: alpha 0 stands for a share of 1."""
        return self.alpha > 0

    def _draw(self, n_images: int, generator: Generator | None) -> tuple[BatchPlan, Tensor]:
        """Draw own shares, shape (N,) or (1,), float64, then a plan with partners only."""
        device = device_of(generator)
        plan = BatchPlan.nothing(n_images, device)
        if not self.mixes:
            return plan, torch.ones(1, dtype=torch.float64, device=device)
        n_shares = n_images if self.per_sample else 1
        shares = _draw_beta(self.alpha, n_shares, generator=generator)
        partner = torch.randperm(n_images, generator=generator, device=device)
        return dataclasses.replace(plan, partner=partner, is_mixed=True), shares


@dataclass(frozen=True)
class MixUp(_Mix):
    """Blend every image, and its target, with another one of the batch.

    images'[i] = share * images[i] + (1 - share) * images[partner[i]], the same for targets, with
    share ~ Beta(alpha, alpha) and a random permutation as `partner`. Only for training.

    Others take max(share, 1 - share). With one share per batch that changes nothing but the order
    of the batch: a share of s with a permutation gives the same blends as 1 - s with its inverse.
    With one per sample, it makes each image the larger part of exactly one blend, where here that
    is so on average. Any batch will do, of odd size and of a single image, which stays as it is.

    Args:
        alpha: Concentration of the Beta distribution, at least 0: small values leave most images
            nearly alone, 1 makes all shares equally likely, 0 changes nothing. Default 0.2.
        per_sample: Whether each image draws its own share instead of one per batch. Default False.

    Raises:
        ValueError: If alpha is negative, infinite or NaN.
        TypeError: If alpha is no number, or per_sample no bool.

    Example:
        >>> images, labels = torch.rand(5, 3, 8, 8), torch.arange(5)
        >>> images, targets = MixUp(0.2)(images, labels)
        >>> targets.probabilities(10).shape, targets.is_mixed
        (torch.Size([5, 10]), True)

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", section 2, alpha in
        [0.1, 0.4] on ImageNet, section 3.1, and 1 on CIFAR, section 3.2.
    """

    alpha: float = 0.2

    def plan(
        self, n_images: int, height: int, width: int, *, generator: Generator | None = None
    ) -> BatchPlan:
        """Draw shares and partners; see `BatchTrick.plan`."""
        plan, shares = self._draw(n_images, generator)
        own_share = shares.to(torch.float32).expand(n_images).contiguous()
        return dataclasses.replace(plan, own_share=own_share)


@dataclass(frozen=True)
class CutMix(_Mix):
    """Replace a box of every image by the same box of another one of the batch.

    The box has the image's proportions and the area (1 - share) * height * width, with
    share ~ Beta(alpha, alpha); its centre is anywhere in the image, and what sticks out is cut
    off. The target is blended by the areas that are left: the partner's share is that of the
    pixels which it gave. Only for training.

    The edges of the box are rounded to pixels. The authors' code rounds its sides down to even
    numbers instead, which on small images makes the boxes too small.

    Args:
        alpha: Concentration of the Beta distribution, at least 0; 0 changes nothing. Default 1.
        per_sample: Whether each image draws its own box instead of one per batch. Default False.

    Raises:
        ValueError: If alpha is negative, infinite or NaN.
        TypeError: If alpha is no number, or per_sample no bool.

    Example:
        >>> images, labels = torch.rand(5, 3, 8, 8), torch.arange(5)
        >>> images, targets = CutMix(1.0)(images, labels)
        >>> targets.probabilities(10).sum(dim=1)
        tensor([1., 1., 1., 1., 1.])

    Source: Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with
        Localizable Features", section 3.1, eq. 1 and 2.
    """

    alpha: float = 1.0

    def plan(
        self, n_images: int, height: int, width: int, *, generator: Generator | None = None
    ) -> BatchPlan:
        """Draw sizes, partners and centres of the boxes; see `BatchTrick.plan`."""
        plan, shares = self._draw(n_images, generator)
        centres = torch.rand(
            2, len(shares), generator=generator, device=shares.device, dtype=torch.float64
        )
        half = (1 - shares).sqrt() / 2
        edges = []
        for centre, length in zip(centres, (height, width), strict=True):
            for edge in (centre - half, centre + half):
                edges.append((edge * length).round().clamp(0, length))
        patch = torch.stack(edges, dim=1).to(torch.int64).expand(n_images, 4).contiguous()
        return dataclasses.replace(plan, patch=patch, has_patches=plan.is_mixed)


def mixup(
    images: Tensor,
    targets: Tensor | Targets,
    *,
    alpha: float = 0.2,
    per_sample: bool = False,
    generator: Generator | None = None,
) -> tuple[Tensor, Targets]:
    """Blend every image, and its target, with another one of the batch.

    Args:
        images: Shape (N, C, H, W), floating point; not modified.
        targets: Labels, shape (N,); class probabilities, shape (N, K); or `Targets`.
        alpha: See `MixUp`. Default 0.2.
        per_sample: See `MixUp`. Default False.
        generator: Where the random numbers come from. Default None: torch's default generator of
            the CPU.

    Returns:
        New images of the same shape, dtype and memory format, and their targets.

    Raises:
        ValueError: If a shape does not fit, or alpha is out of range.
        TypeError: If a dtype does not fit, or an argument is of another kind.

    Example:
        >>> images, targets = mixup(torch.rand(5, 3, 8, 8), torch.arange(5), alpha=0.4)

    Source: see `MixUp`.
    """
    return MixUp(alpha, per_sample=per_sample)(images, targets, generator=generator)


def cutmix(
    images: Tensor,
    targets: Tensor | Targets,
    *,
    alpha: float = 1.0,
    per_sample: bool = False,
    generator: Generator | None = None,
) -> tuple[Tensor, Targets]:
    """Replace a box of every image by the same box of another one of the batch.

    Args:
        images: Shape (N, C, H, W), floating point; not modified.
        targets: Labels, shape (N,); class probabilities, shape (N, K); or `Targets`.
        alpha: See `CutMix`. Default 1.
        per_sample: See `CutMix`. Default False.
        generator: Where the random numbers come from. Default None: torch's default generator of
            the CPU.

    Returns:
        New images of the same shape, dtype and memory format, and their targets.

    Raises:
        ValueError: If a shape does not fit, or alpha is out of range.
        TypeError: If a dtype does not fit, or an argument is of another kind.

    Example:
        >>> images, targets = cutmix(torch.rand(5, 3, 8, 8), torch.arange(5), alpha=1.0)

    Source: see `CutMix`.
    """
    return CutMix(alpha, per_sample=per_sample)(images, targets, generator=generator)


def _draw_beta(alpha: float, n_draws: int, *, generator: Generator | None) -> Tensor:
    """Return numbers from Beta(alpha, alpha), shape (n_draws,), float64.

    If t follows Student's distribution with 2 alpha degrees of freedom, then
    (1 + t / sqrt(2 alpha + t^2)) / 2 follows Beta(alpha, alpha), and
    t = sqrt(2 alpha (u^(-1 / alpha) - 1)) cos(2 pi v) for uniform u and v. Two numbers for each,
    whatever alpha is, and no rejection; torch.distributions.Beta takes no generator.

    Source: Bailey 1994, "Polar generation of random variates with the t-distribution", and
        Devroye 1996, "Random variate generation in one line of code".
    """
    u, v = torch.rand(
        2, n_draws, generator=generator, device=device_of(generator), dtype=torch.float64
    )
    # In powers that underflow to 0 for small alpha, where u^(-1 / alpha) would overflow.
    power = u ** (1 / alpha)
    cosine = (2 * math.pi * v).cos()
    root = ((1 - power) / (power + (1 - power) * cosine**2)).sqrt()
    return ((1 + cosine * root) / 2).clamp(0, 1)
