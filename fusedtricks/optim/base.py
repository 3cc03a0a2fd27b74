"""What all fused optimizers share: options, state, and the two ways to take a step."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedtricks import backends, reference
from fusedtricks.optim import native
from fusedtricks.optim.averaging import Offer, averager_of
from fusedtricks.optim.checkpoint import CheckpointMixin, remember_initial_lr
from fusedtricks.optim.entry_checks import (
    check_entry,
    check_group,
    check_writable_grad,
    overlap,
)
from fusedtricks.optim.hooks import hook_step, plain_step
from fusedtricks.optim.state import StateMixin, StepRecord
from fusedtricks.optim.validation import check_extras
from fusedtricks.reference import Entry, GradOptions, Outcome

__all__ = ["Extras", "FusedOptimizer"]


class Extras(TypedDict, total=False):
    """The keyword-only options that every fusedtricks optimizer adds to torch's.

    Attributes:
        centralize_grad: Subtract from each gradient its mean over all dims but 0: True for every
            parameter with ndim > 1, "conv" for ndim > 3. A group may override it. Default False.
            Dim 0 of a ConvTranspose weight is its input channels.
        clip_grad_norm: Largest global L2 norm of the gradients over all groups, as
            `torch.nn.utils.clip_grad_norm_` has it. Default None (off).
        clip_grad_value: Largest absolute value of a gradient element. Default None (off).
        master_weights: Keep an fp32 copy of fp16 and bf16 parameters in the state under
            "master_param", and fp32 moments. Default False.
        decouple_lr: Decay by (lr / initial_lr) * weight_decay, as in the AdamW paper, instead of
            lr * weight_decay. Only with decoupled decay. Default False.
        skip_nonfinite: Leave parameters, state and step counts alone when any gradient is inf or
            NaN; `optimizer.skipped_steps` counts them. Default False.
        write_grads: Leave the unscaled, clipped and centralized gradients in `.grad`, as torch
            does, instead of what backward produced. Default False.
        backend: "auto", "cuda", "triton", "cpu" or "reference". Default "auto", the best that can
            take the tensors.
    """

    centralize_grad: bool | str
    clip_grad_norm: float | None
    clip_grad_value: float | None
    master_weights: bool
    decouple_lr: bool
    skip_nonfinite: bool
    write_grads: bool
    backend: str


_OF_THE_OPTIMIZER = Extras.__annotations__.keys() - {
    "centralize_grad",
    "master_weights",
    "decouple_lr",
}


class FusedOptimizer(StateMixin, CheckpointMixin, Optimizer):
    """Base of all fusedtricks optimizers; subclasses define an algorithm, not how it is run.

    One step does, in this order: unscale, check for non-finite values, clip by value, clip by
    norm, centralize, decay and update. Gradients are read, not written.
    """

    _step_supports_amp_scaling = True
    profile_hook_step = staticmethod(hook_step)

    algorithm: ClassVar[str]
    flag_names: ClassVar[tuple[str, ...]]
    has_step: ClassVar[bool] = True

    clip_grad_norm: float | None = None
    clip_grad_value: float | None = None
    skip_nonfinite: bool = False
    write_grads: bool = False
    backend: str = "auto"

    _plan = None
    _plan_layout: list[Any] | None = None
    _plan_offer: weakref.ref[Offer] | None = None
    _wants_flag = False

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        centralize_grad: bool | str = False,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        master_weights: bool = False,
        decouple_lr: bool = False,
        skip_nonfinite: bool = False,
        write_grads: bool = False,
        backend: str = "auto",
    ) -> None:
        check_extras(centralize_grad, clip_grad_norm, clip_grad_value)
        backends.check(backend)
        defaults |= {
            "centralize_grad": centralize_grad,
            "master_weights": master_weights,
            "decouple_lr": decouple_lr,
        }
        self.clip_grad_norm = clip_grad_norm
        self.clip_grad_value = clip_grad_value
        self.skip_nonfinite = skip_nonfinite
        self.write_grads = write_grads
        self.backend = backend
        self._record = StepRecord()
        super().__init__(params, defaults)

    # What an algorithm defines. ------------------------------------------------------------------

    def _flags(self, group: dict[str, Any]) -> tuple[bool, ...]:
        """Return the compile-time variant, in the order of `flag_names`."""
        raise NotImplementedError

    def _hyper(self, group: dict[str, Any]) -> Sequence[float]:
        """Return the functor's hyper-parameters in its order."""
        raise NotImplementedError

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Return the per-element states in the functor's order."""
        raise NotImplementedError

    def _initial_value(self, group: dict[str, Any]) -> float:
        """Return what new states are filled with."""
        return 0.0

    def _decoupled(self, group: dict[str, Any]) -> bool:
        """Return whether the decay scales the parameter instead of joining the gradient."""
        return False

    def _sparse_obstacle(self, group: dict[str, Any]) -> str:
        """Return the error for a sparse gradient, empty if the algorithm takes it."""
        return f"{type(self).__name__} does not support sparse gradients"

    def reference(
        self,
        param: Tensor,
        grad: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
        lr: float | Tensor,
        step: float | Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the updated parameter and states; the definition of the algorithm."""
        raise NotImplementedError

    # Groups. -------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with its own options where it names any."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for name in sorted(_OF_THE_OPTIMIZER & group.keys()):
                raise ValueError(
                    f"Invalid option {name} in a parameter group: it belongs to the whole "
                    f"optimizer; pass it to {type(self).__name__}(...)"
                )
            check_extras(group["centralize_grad"], None, None)
            if group["decouple_lr"] and not self._decoupled(group):
                raise ValueError(
                    f"Invalid decouple_lr value: True, {type(self).__name__} adds its decay to the "
                    "gradient; use AdamW or SGDW"
                )
        except ValueError:
            self.param_groups.pop()
            raise
        remember_initial_lr(group)

    def _weight_decay(self, group: dict[str, Any]) -> float:
        """Return what the learning rate is multiplied with to give the decay."""
        decay = group["weight_decay"]
        if not group["decouple_lr"] or decay == 0:
            return decay
        remember_initial_lr(group)
        initial_lr = float(group["initial_lr"])
        return decay / initial_lr if initial_lr != 0 else 0.0

    # The step. -----------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Args:
            closure: Reevaluates the model and returns the loss; called with gradients enabled.

        Returns:
            What `closure` returned, None without one.

        Raises:
            RuntimeError: If a gradient cannot be taken by the backend, or is sparse where the
                algorithm does not support it. Nothing has changed then.
            ValueError: If a state does not fit its parameter. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            outcome = self._take_step()
        record = self._record
        record.norm = outcome.norm
        record.nonfinite = outcome.nonfinite
        record.skipped_steps += outcome.skipped
        if not torch.compiler.is_compiling():
            record.n_steps += 1
        return loss

    def _take_step(self) -> Outcome:
        options = GradOptions(
            self.clip_grad_value,
            self.clip_grad_norm,
            self.skip_nonfinite or self._wants_flag,
            self._wants_flag,
            self._from_scaler("grad_scale"),
            self._from_scaler("found_inf"),
        )
        self._record.can_skip = options.skips_nonfinite or options.found_inf is not None
        traces = torch.compiler.is_compiling()
        averager = None if traces else averager_of(self)
        if averager is not None:
            averager.begin()
            averager.offer()  # raises, if it does, before anything is written
        if self._plan is not None and not self.write_grads and not traces:
            try:
                outcome = native.planned_step(self, options)
            except Exception:
                self._check(self._entries())  # names the culprit, if it is the caller's
                raise
            if outcome is not None:
                return outcome
        if not traces:
            self._plan = None
        entries = self._entries()
        if not entries:
            return Outcome(skipped=False)
        library = self._check(entries)
        if self.write_grads:
            return self._write_grads_and_step(entries, options, library)
        return self._run(entries, options, library)

    def _takes_plain_steps(self) -> bool:
        """Return whether no subclass or decorator does something of its own after a step."""
        return plain_step(type(self).step) is FusedOptimizer.step

    def _run(self, entries: list[Entry], options: GradOptions, library: str) -> Outcome:
        if not library:
            return reference.run(self, entries, options)
        return native.step(self, entries, options, library)

    def _from_scaler(self, name: str) -> Tensor | None:
        """Return what a GradScaler left in the attribute `name`, None for nothing."""
        value = getattr(self, name, None)
        # torch's scaler sets found_inf to the number 0 if no parameter has a gradient.
        if isinstance(value, (int, float)):
            value = torch.tensor(float(value))
        if value is None or (isinstance(value, Tensor) and value.numel() == 1):
            return value
        raise TypeError(
            f"{type(self).__name__}: expected {name} to be None or a one-element tensor, got "
            f"{value!r}; a GradScaler sets and deletes it"
        )

    def _write_grads_and_step(
        self, entries: list[Entry], options: GradOptions, library: str
    ) -> Outcome:
        if options.found_inf is not None and options.found_inf.item() != 0:
            return Outcome(skipped=True)
        for entry in entries:
            check_writable_grad(entry)
        grads, norm, nonfinite = reference.transform(entries, options)
        if options.skips_nonfinite and nonfinite.item() != 0:
            return Outcome(True, norm, nonfinite)
        for entry, grad in zip(entries, grads, strict=True):
            entry.grad.copy_(grad)
        modes = [group["centralize_grad"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                group["centralize_grad"] = False
            self._run(entries, GradOptions(), library)
        finally:
            for group, mode in zip(self.param_groups, modes, strict=True):
                group["centralize_grad"] = mode
        return Outcome(False, norm, nonfinite)

    def _entries(self) -> list[Entry]:
        return [
            Entry(param, param.grad, group, index, position)
            for index, group in enumerate(self.param_groups)
            for position, param in enumerate(group["params"])
            if param.grad is not None
        ]

    def _check(self, entries: list[Entry]) -> str:
        """Refuse what no backend takes; return the library of ops that takes everything.

        It is empty if only the reference backend does.
        """
        check_extras(False, self.clip_grad_norm, self.clip_grad_value)
        library = obstacle = ""
        is_wide = any(entry.grad.dtype == torch.float64 for entry in entries)
        self._record.norm_dtype = torch.float64 if is_wide else torch.float32
        traces = torch.compiler.is_compiling()
        for index in set() if traces else {entry.group_index for entry in entries}:
            check_group(self, index)
        for entry in entries:
            check_entry(self, entry)
            if not obstacle:
                found, obstacle = backends.find_library(
                    self.backend, entry.param, entry.grad, entry.group["differentiable"]
                )
                if library not in ("", found) and not obstacle:
                    obstacle = "parameters on devices that need different backends"
                library = found
        if not obstacle and not traces and overlap([entry.param for entry in entries]):
            # The reference backend updates one after the other, as torch does.
            obstacle = "parameters that share memory"
        if obstacle and self.backend not in ("auto", "reference"):
            raise RuntimeError(
                f"backend={self.backend!r} cannot take {obstacle}; use backend='auto'"
            )
        return "" if obstacle or self.backend == "reference" else library
