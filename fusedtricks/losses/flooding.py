"""Flooding: a training loss that does not fall below a level."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

from fusedtricks._checks import check_number, check_tensor
from fusedtricks._host import moved

__all__ = ["Flooding"]


class Flooding(nn.Module):
    """Descend while the mean loss is above a level, and ascend while it is below.

    flooded = |L - level| + level, with L the mean loss of an optimizer update: over all processes,
    and all accumulated micro-batches. Flooding every part by itself is something else: for losses
    (0.02, 0.04, 0.30, 0.02) and level 0.08, the mean of the flooded losses is 0.175, and three of
    four ascend, while the flooded mean is 0.095 and all descend.

    One batch per update: `flooding(loss)` in place of the loss. With s = sign(L - level), every
    process returns s * (its loss - level) + level. DistributedDataParallel averages the gradients,
    and so makes them those of the flooded mean.

    Accumulation: `flooding.add(loss)` for every micro-batch, then `flooding.flip_(parameters)`
    before the step. The sign is known only at the end, when it multiplies the gradients. All of a
    gradient must come from losses that were added. Scaled gradients may stay scaled. An update that
    is given up halfway needs `flooding.reset()`.

    At L == level the gradient is 0, as that of torch.abs. A NaN anywhere makes all NaN. The host
    never waits for a GPU. In evaluation mode, a loss comes back as it is. `loss` is what to log,
    before flooding.

    Args:
        level: The level b, in units of the loss, at least 0; 0 changes no cross-entropy. It has
            to be searched for.
        smallest_loss: What the loss cannot fall below, so that a level which would never act
            raises. With soft targets it is their entropy:
            `smallest_cross_entropy(label_smoothing, n_classes)`. Default 0.
        process_group: Processes that train together. Default None: all, if torch.distributed is
            initialized. One that is given cannot be pickled.

    Attributes:
        loss: L of the last update, a detached scalar; NaN before the first.

    Raises:
        ValueError: If an option is out of range, or `level` is not above a positive
            `smallest_loss`.
        TypeError: If one is no number.

    Example:
        >>> flooding = Flooding(0.08)
        >>> flooding(torch.tensor(0.05))
        tensor(0.1100)
        >>> weight = torch.ones(1, requires_grad=True)
        >>> for micro_batch in (0.02, 0.04, 0.03, 0.02):
        ...     flooding.add((weight * micro_batch).sum() / 4).backward()
        >>> flooding.flip_([weight])
        >>> weight.grad, flooding.loss
        (tensor([-0.0275]), tensor(0.0275))

    Source: Ishida et al. 2020, "Do We Need Zero Training Loss After Achieving Zero Training
        Error?", section 3. There, mini-batches are flooded one by one, which bounds the flooded
        loss of all data from above; an update is a mini-batch here, however it is computed.
    """

    def __init__(
        self,
        level: float,
        *,
        smallest_loss: float = 0.0,
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        check_number("Flooding", "level", level, low=0)
        check_number("Flooding", "smallest_loss", smallest_loss, low=0)
        if smallest_loss > 0 and level <= smallest_loss:
            raise ValueError(
                f"Flooding: expected level above smallest_loss={smallest_loss}, got {level}; the "
                "loss cannot fall below it, so that flooding would never act"
            )
        super().__init__()
        self.level = float(level)
        self.smallest_loss = float(smallest_loss)
        self.process_group = process_group
        self.loss = torch.tensor(torch.nan)
        self._added: Tensor | None = None

    def forward(self, loss: Tensor) -> Tensor:
        """Return the flooded loss of an update that is one batch, a scalar.

        In evaluation mode, return the loss itself, remember nothing and ask no other process.

        Args:
            loss: Mean loss of this process, a floating point scalar.

        Raises:
            RuntimeError: If losses were added, and neither flipped nor forgotten.
            ValueError: If it is no scalar.
            TypeError: If it is no tensor.
        """
        _check_scalar(loss)
        # Before any exchange: a validation may be that of one process alone.
        if not self.training:
            return loss
        if self._added is not None:
            raise RuntimeError(
                "Flooding: the update of the losses that were added is not over; call "
                "flip_(parameters) before its step, or reset() if there is none"
            )
        self.loss = self._global_mean(loss.detach())
        return self._sign() * (loss - self.level) + self.level

    def add(self, loss: Tensor) -> Tensor:
        """Return the loss of a micro-batch unchanged, and remember it until `flip_`.

        Args:
            loss: Mean loss of the micro-batch on this process, divided by the number of
                micro-batches, and not scaled by a GradScaler; a floating point scalar.

        Raises:
            ValueError: If it is no scalar.
            TypeError: If it is no tensor.
        """
        _check_scalar(loss)
        added = _wide(loss.detach())
        self._added = added if self._added is None else self._added + added
        return loss

    def reset(self) -> None:
        """Forget what was added since the last `flip_`: of an update that takes no step."""
        self._added = None

    @torch.no_grad()
    def flip_(self, parameters: Tensor | Iterable[Tensor]) -> None:
        """Multiply the gradients by the sign of what was added, less the level; forget the sum.

        To be called after the last backward of an update, in all processes, before clipping and
        before the step.

        Args:
            parameters: Those that the optimizer updates; ones without gradients are left out, and
                ones that come up twice are flipped once.

        Raises:
            RuntimeError: If nothing was added since the last call.
            ValueError: If no parameter has a gradient; the sum is kept.
            TypeError: If one is no tensor; the sum is kept.
        """
        if self._added is None:
            raise RuntimeError(
                "Flooding: flip_ without a loss; call add(loss) for every micro-batch, or "
                "flooding(loss) if an update is one batch"
            )
        grads = _gradients(parameters)
        added, self._added = self._added, None
        self.loss = self._global_mean(added)
        sign = self._sign()
        by_device: dict[torch.device, list[Tensor]] = {}
        for grad in grads:
            by_device.setdefault(grad.device, []).append(grad)
        for device, of_device in by_device.items():
            torch._foreach_mul_(of_device, moved(sign, device))

    def extra_repr(self) -> str:
        """Return the options."""
        return f"level={self.level}, smallest_loss={self.smallest_loss}"

    def _global_mean(self, loss: Tensor) -> Tensor:
        if not (distributed.is_available() and distributed.is_initialized()):
            return _wide(loss)
        # Sum and division, because gloo has no mean.
        mean = _wide(loss)
        distributed.all_reduce(mean, group=self.process_group)
        return mean / distributed.get_world_size(self.process_group)

    def _sign(self) -> Tensor:
        # torch.sign(NaN) is 0, which would hide the NaN of another process.
        difference = self.loss - self.level
        return torch.where(difference.isnan(), difference, difference.sign())


def _check_scalar(loss: Tensor) -> None:
    check_tensor("Flooding", "loss", loss)
    if loss.ndim != 0:
        raise ValueError(
            f"Flooding: expected the mean loss, a scalar, got shape {list(loss.shape)}; use "
            'reduction="mean"'
        )


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            raise TypeError(
                f"Flooding: expected parameters to be tensors, got {type(parameter).__name__}; use "
                "model.parameters()"
            )
    grads = [parameter.grad for parameter in dict.fromkeys(parameters)]
    grads = [grad for grad in grads if grad is not None]
    if not grads:
        raise ValueError(
            f"Flooding: none of the {len(parameters)} parameters has a gradient to flip; call "
            "flip_ after backward, with a list or a fresh model.parameters()"
        )
    return grads


def _wide(loss: Tensor) -> Tensor:
    # 16 bits would round the mean, and with it the sign. A copy, because the caller may go on to
    # scale the loss in place.
    return loss.to(torch.promote_types(loss.dtype, torch.float32), copy=True)
