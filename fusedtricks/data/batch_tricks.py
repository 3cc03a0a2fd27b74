"""What all tricks on batches share, and how they are combined."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Generator, Tensor

from fusedtricks._checks import check_number
from fusedtricks.data.applying import apply_plan
from fusedtricks.data.checks import check_images
from fusedtricks.data.drawing import device_of
from fusedtricks.data.plan import BatchPlan
from fusedtricks.targets import Targets

__all__ = ["BatchTrick", "Chain", "OneOf"]


class BatchTrick(ABC):
    """A random change of a batch during training: drawn as a plan, then carried out.

    Attributes:
        mixes: Whether it blends images, and therefore targets.
        cuts: Whether it cuts holes.
        fill: Value inside the holes.
    """

    mixes: bool = False
    cuts: bool = False
    fill: float = 0.0

    @abstractmethod
    def plan(
        self, n_images: int, height: int, width: int, *, generator: Generator | None = None
    ) -> BatchPlan:
        """Draw what happens to each image of a batch.

        Args:
            n_images: Number of images, at least 0.
            height: Their height in pixels.
            width: Their width in pixels.
            generator: Where the random numbers come from. Default None: torch's default
                generator of the CPU.

        Returns:
            A plan on the generator's device.
        """

    def __call__(
        self, images: Tensor, targets: Tensor | Targets, *, generator: Generator | None = None
    ) -> tuple[Tensor, Targets]:
        """Draw a plan and carry it out: see `plan` and `apply_plan`."""
        check_images(type(self).__name__, images)
        n_images, _, height, width = images.shape
        plan = self.plan(n_images, height, width, generator=generator)
        return apply_plan(images, targets, plan, fill=self.fill)


@dataclass(frozen=True)
class OneOf(BatchTrick):
    """One of several tricks, drawn anew for every batch.

    All of them draw their numbers every time and the choice is made on the generator's device:
    nothing waits for it, and the numbers that a batch takes from the generator do not depend on
    the choice. `MixUp(0)` stands for a batch that is left alone.

    Args:
        tricks: What to choose from.
        weights: How often each one is chosen, relative to the sum; at least 0. Default None: all
            equally often.

    Raises:
        ValueError: If there are no tricks, their number is not that of the weights, weights are
            negative or all 0, or holes would be filled with different values.
        TypeError: If something else is given.

    Example:
        >>> from fusedtricks.data import CutMix, MixUp
        >>> trick = OneOf([MixUp(0.2), CutMix(1.0)], weights=[3, 1])
        >>> images, targets = trick(torch.rand(5, 3, 8, 8), torch.arange(5))

    Source: the usual practice, for example `switch_prob` of timm's `Mixup`.
    """

    tricks: Sequence[BatchTrick]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, values in (("tricks", self.tricks), ("weights", self.weights)):
            if not isinstance(values, Iterable) and (name, values) != ("weights", None):
                raise TypeError(
                    f"OneOf: expected {name} to be a sequence, one for each trick, got {values!r}; "
                    "such as OneOf([MixUp(0.2), CutMix(1.0)], weights=[3, 1])"
                )
        tricks = tuple(self.tricks)
        if not tricks:
            raise ValueError("OneOf: expected at least one trick, got none; MixUp(0) does nothing")
        weights = (1.0,) * len(tricks) if self.weights is None else tuple(self.weights)
        for trick in tricks:
            _check_trick("OneOf", trick)
        for weight in weights:
            check_number("OneOf", "weights", weight, low=0)
        if len(weights) != len(tricks) or not sum(weights) > 0:
            raise ValueError(
                f"OneOf: expected a weight for each of the {len(tricks)} tricks and at least one "
                f"above 0, got {list(weights)}"
            )
        fills = {trick.fill for trick in tricks if trick.cuts}
        if len(fills) > 1:
            raise ValueError(f"OneOf: expected one fill for all holes, got {sorted(fills)}")
        object.__setattr__(self, "tricks", tricks)
        object.__setattr__(self, "weights", weights)

    @property
    def mixes(self) -> bool:
        """Whether any of the tricks blends images."""
        return any(trick.mixes for trick in self.tricks)

    @property
    def cuts(self) -> bool:
        """Whether any of the tricks cuts holes."""
        return any(trick.cuts for trick in self.tricks)

    @property
    def fill(self) -> float:
        """Value inside the holes of those that cut them."""
        return next((trick.fill for trick in self.tricks if trick.cuts), 0.0)

    def plan(
        self, n_images: int, height: int, width: int, *, generator: Generator | None = None
    ) -> BatchPlan:
        """Draw a plan of every trick, and which one it is to be; see `BatchTrick.plan`."""
        device = device_of(generator)
        drawn = torch.rand(1, generator=generator, device=device, dtype=torch.float64)
        partial_sums = list(accumulate(self.weights))
        chosen = torch.zeros(1, dtype=torch.int64, device=device)
        for partial_sum in partial_sums[:-1]:
            chosen = chosen + (drawn >= partial_sum / partial_sums[-1])
        plans = [trick.plan(n_images, height, width, generator=generator) for trick in self.tricks]

        def pick(tensors: list[Tensor]) -> Tensor:
            return torch.stack(tensors).index_select(0, chosen)[0]

        return BatchPlan(
            partner=pick([plan.partner for plan in plans]),
            own_share=pick([plan.own_share for plan in plans]),
            patch=pick([plan.patch for plan in plans]),
            hole=pick([plan.hole for plan in plans]),
            is_mixed=self.mixes,
            has_patches=any(plan.has_patches for plan in plans),
            has_holes=any(plan.has_holes for plan in plans),
        )


@dataclass(frozen=True)
class Chain(BatchTrick):
    """A trick that mixes, then one that cuts holes, in one plan and thus in one pass.

    Args:
        mix: A trick that cuts no holes, such as `MixUp`, `CutMix` or `OneOf` both.
        cut: A trick that mixes nothing, such as `Cutout`.

    Raises:
        ValueError: If the tricks do something else: a plan holds one blend and one hole, in this
            order. Others are called one after the other.
        TypeError: If something else is given.

    Example:
        >>> from fusedtricks.data import Cutout, MixUp
        >>> trick = Chain(MixUp(0.2), Cutout(4))
        >>> images, targets = trick(torch.rand(5, 3, 8, 8), torch.arange(5))
    """

    mix: BatchTrick
    cut: BatchTrick

    def __post_init__(self) -> None:
        _check_trick("Chain", self.mix)
        _check_trick("Chain", self.cut)
        if self.mix.cuts or self.cut.mixes:
            raise ValueError(
                f"Chain: expected a trick that cuts no holes, then one that mixes nothing, got "
                f"{self.mix} and {self.cut}; call them one after the other"
            )

    @property
    def mixes(self) -> bool:
        """Whether the first trick blends images."""
        return self.mix.mixes

    @property
    def cuts(self) -> bool:
        """Whether the second trick cuts holes."""
        return self.cut.cuts

    @property
    def fill(self) -> float:
        """Value inside the holes."""
        return self.cut.fill

    def plan(
        self, n_images: int, height: int, width: int, *, generator: Generator | None = None
    ) -> BatchPlan:
        """Draw the mix, then the holes; see `BatchTrick.plan`."""
        mixed = self.mix.plan(n_images, height, width, generator=generator)
        cut = self.cut.plan(n_images, height, width, generator=generator)
        return dataclasses.replace(mixed, hole=cut.hole, has_holes=cut.has_holes)


def _check_trick(what: str, trick: BatchTrick) -> None:
    if not isinstance(trick, BatchTrick):
        raise TypeError(f"{what}: expected a trick such as MixUp(0.2), got {trick!r}")
