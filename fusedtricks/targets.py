"""What a batch should be classified as: classes with weights, and what made them so."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fusedtricks._checks import check_bool, check_number, check_tensor
from fusedtricks._host import extremes

__all__ = ["Targets", "as_targets", "check_labels", "check_smoothing"]


@dataclass(frozen=True, eq=False)
class Targets:
    """Target distributions of a batch, and the tricks that they already went through.

    The probability of class k for sample i is the sum of `weights[i, m]` over all m with
    `classes[i, m] == k`, or `weights[i, k]` itself where `classes` is None. Tricks that change
    targets return new ones; losses take them instead of labels, and refuse what contradicts.

    Args:
        weights: Shape (N, M), or (N, K) without `classes`; floating point, rows sum to 1. Other
            sums are for binary cross-entropies alone.
        classes: Shape (N, M), int64, 0 to K - 1: what the weights belong to. Default None: all
            classes in order.
        smoothing: Label smoothing that the weights already contain, in [0, 1]. Default 0.
        is_mixed: Whether the samples are blends of several images. Default False.

    Raises:
        ValueError: If shapes do not fit, or smoothing is out of range.
        TypeError: If a dtype does not fit, or something is of another type.

    Example:
        >>> targets = as_targets(torch.tensor([2, 0]))
        >>> targets.mix(torch.tensor([1, 0]), torch.tensor([0.75, 1.0])).probabilities(3)
        tensor([[0.2500, 0.0000, 0.7500],
                [1.0000, 0.0000, 0.0000]])
    """

    weights: Tensor
    classes: Tensor | None = None
    smoothing: float = 0.0
    is_mixed: bool = False

    def __post_init__(self) -> None:
        check_tensor("Targets", "weights", self.weights)
        if self.weights.ndim != 2:
            raise ValueError(
                f"Targets: expected weights of shape (N, M), got {list(self.weights.shape)}"
            )
        if not self.weights.is_floating_point():
            raise TypeError(
                f"Targets: expected weights of a floating point dtype, got {self.weights.dtype}"
            )
        if self.classes is not None:
            check_tensor("Targets", "classes", self.classes)
            if self.classes.shape != self.weights.shape:
                raise ValueError(
                    f"Targets: expected classes of the weights' shape "
                    f"{list(self.weights.shape)}, got {list(self.classes.shape)}"
                )
            if self.classes.dtype != torch.int64:
                raise TypeError(f"Targets: expected classes of int64, got {self.classes.dtype}")
        check_smoothing("Targets", self.smoothing)
        check_bool("Targets", "is_mixed", self.is_mixed)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.weights.shape[0]

    def __getitem__(self, index: Tensor | slice) -> "Targets":
        """Return the targets of some samples: a slice, a mask or indices, shape (L,)."""
        classes = None if self.classes is None else self.classes[index]
        return dataclasses.replace(self, weights=self.weights[index], classes=classes)

    @property
    def labels(self) -> Tensor:
        """The most probable class, shape (N,), int64; the first one of equally probable ones."""
        if self.classes is None:
            return self.weights.argmax(dim=1)
        # A class may come up several times.
        is_same = self.classes[:, :, None] == self.classes[:, None, :]
        probabilities = (is_same * self.weights[:, None, :]).sum(dim=2)
        return self.classes.gather(1, probabilities.argmax(dim=1, keepdim=True))[:, 0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Targets":
        """Return the targets on a device."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Targets":
        """Return the targets in page-locked memory; torch's `DataLoader` calls it."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def probabilities(self, n_classes: int) -> Tensor:
        """Return the distributions, shape (N, n_classes), in the dtype of the weights.

        Raises:
            ValueError: If the weights are of another number of classes, or a class is out of
                range, on the CPU (a GPU traps).
        """
        if self.classes is None:
            if self.weights.shape[1] != n_classes:
                raise ValueError(
                    f"expected targets of {n_classes} classes, got probabilities of shape "
                    f"{list(self.weights.shape)}"
                )
            return self.weights
        check_labels("probabilities", self.classes, n_classes)
        zeros = self.weights.new_zeros(len(self), n_classes)
        return zeros.scatter_add(1, self.classes, self.weights)

    def smooth(self, label_smoothing: float, n_classes: int) -> "Targets":
        """Return (1 - label_smoothing) q + label_smoothing / K, marked as smoothed.

        Losses that smooth do the same without the (N, K) tensor; this is for losses of others.

        Args:
            label_smoothing: Share of the probability given to all classes alike, in [0, 1].
            n_classes: K.

        Raises:
            ValueError: If the targets are smoothed already, or an argument is out of range.

        Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
        """
        check_smoothing("smooth", label_smoothing)
        self.refuse_second_smoothing("smooth", label_smoothing)
        probabilities = self.probabilities(n_classes)
        smoothed = (1 - label_smoothing) * probabilities + label_smoothing / n_classes
        return Targets(smoothed, None, self.smoothing or label_smoothing, self.is_mixed)

    def mix(self, partner: Tensor, own_share: Tensor) -> "Targets":
        """Return own_share[i] * q[i] + (1 - own_share[i]) * q[partner[i]], marked as mixed.

        Args:
            partner: Shape (N,), int64, 0 to N - 1: the sample that each one is blended with.
            own_share: Shape (N,) or (), floating point, in [0, 1].

        Raises:
            ValueError: If shapes do not fit, or, on the CPU, a partner or a share is out of range.
            TypeError: If a dtype does not fit, or one is no tensor.
        """
        self._check_mix(partner, own_share)
        share = own_share.to(self.weights.dtype).expand(len(self))[:, None]
        own, other = self.weights, self.weights[partner]
        if self.classes is None:
            weights = share * own + (1 - share) * other
            return dataclasses.replace(self, weights=weights, is_mixed=True)
        weights = torch.cat([share * own, (1 - share) * other], dim=1)
        classes = torch.cat([self.classes, self.classes[partner]], dim=1)
        return dataclasses.replace(self, weights=weights, classes=classes, is_mixed=True)

    def refuse_second_smoothing(self, what: str, label_smoothing: float) -> None:
        """Raise if these targets are smoothed and are about to be smoothed again.

        Raises:
            ValueError: If both are above 0.
        """
        if self.smoothing > 0 and label_smoothing > 0:
            raise ValueError(
                f"{what}: the targets contain label smoothing of {self.smoothing} already, and "
                f"label_smoothing={label_smoothing} would be applied on top; use one of the two"
            )

    def _check_mix(self, partner: Tensor, own_share: Tensor) -> None:
        check_tensor("mix", "partner", partner)
        if partner.shape != (len(self),):
            raise ValueError(
                f"mix: expected partner of shape [{len(self)}], got {list(partner.shape)}"
            )
        if partner.dtype != torch.int64:
            raise TypeError(f"mix: expected partner of int64, got {partner.dtype}")
        for index in extremes(partner) or ():
            if not 0 <= index < len(self):
                raise ValueError(
                    f"mix: expected partner to be samples from 0 to {len(self) - 1}, got {index}"
                )
        if not (isinstance(own_share, Tensor) and own_share.is_floating_point()):
            got = getattr(own_share, "dtype", type(own_share).__name__)
            raise TypeError(
                f"mix: expected own_share to be a floating point tensor, got {got}; use "
                "torch.tensor(0.5) for one share of all samples"
            )
        if own_share.shape not in ((), (len(self),)):
            raise ValueError(
                f"mix: expected own_share of shape [] or [{len(self)}], got {list(own_share.shape)}"
            )
        for share in extremes(own_share) or ():
            if not 0 <= share <= 1:
                raise ValueError(f"mix: expected own_share in [0, 1], got {share}")

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Targets":
        classes = None if self.classes is None else move(self.classes)
        return dataclasses.replace(self, weights=move(self.weights), classes=classes)


def as_targets(targets: Tensor | Targets) -> Targets:
    """Return targets of any form as `Targets`.

    Args:
        targets: Labels, shape (N,), of an integer dtype; or class probabilities, shape (N, K),
            floating point, rows sum to 1, not smoothed; or `Targets`, returned as they are.

    Raises:
        ValueError: If the shape fits neither.
        TypeError: If it is something else.
    """
    if isinstance(targets, Targets):
        return targets
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"expected targets to be labels or class probabilities in a Tensor, or Targets, got "
            f"{type(targets).__name__}; use torch.tensor(...)"
        )
    if targets.is_floating_point():
        if targets.ndim != 2:
            raise ValueError(
                f"expected class probabilities of shape (N, K), got {list(targets.shape)}; labels "
                "must be integers"
            )
        return Targets(targets)
    if targets.ndim != 1 or targets.dtype == torch.bool or targets.is_complex():
        raise ValueError(
            f"expected labels of shape (N,) and an integer dtype, got {list(targets.shape)} and "
            f"{targets.dtype}; class probabilities must be floating point"
        )
    ones = torch.ones(len(targets), 1, device=targets.device)
    return Targets(ones, targets.to(torch.int64)[:, None])


def check_labels(what: str, labels: Tensor, n_classes: int) -> None:
    """Refuse labels outside 0 to n_classes - 1, on the CPU; elsewhere, their use traps them.

    Raises:
        ValueError: If one is outside.
    """
    for label in extremes(labels) or ():
        if not 0 <= label < n_classes:
            raise ValueError(
                f"{what}: expected labels from 0 to {n_classes - 1}, got {label}; samples to be "
                "ignored must be left out of the batch"
            )


def check_smoothing(what: str, label_smoothing: float) -> None:
    """Refuse label smoothing outside [0, 1].

    Raises:
        ValueError: If it is outside.
        TypeError: If it is no number.
    """
    check_number(what, "label_smoothing", label_smoothing, low=0, high=1)
