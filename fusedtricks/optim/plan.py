"""The `Plan` of csrc/plan.h in plain Python, for installations without the compiled extension.

Interface and meaning are those of the C++ class. Python objects take the place of its pointers, and
loops over parameters run in builtins where they can.
"""

from array import array
from collections.abc import Sequence
from itertools import compress
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from fusedtricks._host import moved
from fusedtricks.optim.plan_parts import (
    Batch,
    Findings,
    GroupValues,
    KnownStates,
    PlanEntry,
    Selection,
    StepOptions,
    StepResult,
    are,
    versions_of,
)

__all__ = ["GroupValues", "Plan", "StepResult"]


def _to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    if tensor is None or tensor.device == device:
        return tensor
    return moved(tensor, device)


def _as_tensor(lr: Any) -> Tensor:
    if isinstance(lr, Tensor):
        return lr
    # The array refuses what is no number.
    (value,) = array("d", (lr,))
    return torch.scalar_tensor(value, dtype=torch.float64, device="cpu")


def _is_set(flag: Tensor | None) -> bool:
    return flag is not None and flag.item() != 0


class Plan:
    """The tensors of one optimizer, gathered once."""

    def __init__(self, library: str, op: str, n_groups: int, skips_on_device: bool) -> None:
        """Make an empty plan.

        Args:
            library: The namespace of the ops.
            op: The name of the op that updates.
            n_groups: The number of parameter groups.
            skips_on_device: Whether the ops get the flags that tell them to skip; nothing is read
                back then.
        """
        ops = getattr(torch.ops, library)
        self._op = getattr(ops, op).default
        self._statistics = ops.grad_statistics.default
        self._finalize = ops.finalize_statistics.default
        self._skips_on_device = skips_on_device
        self._groups: list[list[Tensor]] = [[] for _ in range(n_groups)]
        self._entries: list[PlanEntry] = []
        self._params: list[Tensor] = []
        self._states: list[tuple[itemgetter, list[dict[str, Any]], list[Any]]] = []
        self._known: KnownStates
        self._selection: Selection | None = None

    def add(self, param: Tensor, group: int) -> None:
        """Add the next parameter; those of a group come one after the other."""
        self._groups[group].append(param)
        (version,) = versions_of([param])
        self._entries.append(
            PlanEntry(param, group, param.dtype, param.device, param._cdata, version)
        )

    def bind(
        self,
        batch: int,
        master: Tensor | None,
        average: int,
        states: list[Tensor],
        step: Tensor | None,
        owner: dict[str, Any] | None,
        watched: Sequence[str],
    ) -> None:
        """Give the last parameter its tensors.

        Args:
            batch: The number of the op call that updates it.
            master: What takes the parameter's place in the update.
            average: The position, in the averages of each step, of the one that follows the
                parameter; -1 for none.
            states: The per-element states in the op's order.
            step: The step count.
            owner: The dict that holds them.
            watched: The keys of `owner` that must stay what they are.
        """
        entry = self._entries[-1]
        entry.batch, entry.master, entry.states, entry.step = batch, master, states, step
        entry.average = average
        entry.owner, entry.watched = owner, tuple(watched)

    def seal(self, state: dict[Any, Any]) -> None:
        """Take note of the optimizer's state, after the last parameter."""
        self._params = [entry.param for entry in self._entries]
        owned = [entry for entry in self._entries if entry.owner is not None]
        self._known = KnownStates(state, [entry.param for entry in owned])
        for name in sorted({name for entry in owned for name in entry.watched}):
            owners = [entry.owner for entry in owned if name in entry.watched]
            self._states.append((itemgetter(name), owners, [owner[name] for owner in owners]))

    def step(
        self,
        param_groups: list[dict[str, Any]],
        state: dict[Any, Any],
        values: GroupValues,
        sweeps_grads: bool,
        skips_nonfinite: bool,
        clip_value: float | None,
        max_norm: float | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        skipped_steps: Tensor | None,
        averages: list[Tensor],
        average_weight: float,
    ) -> StepResult:
        """Take a step, if the plan is not stale.

        `StepOptions` describes the arguments after `values`, which are those of the groups.
        """
        options = StepOptions(
            sweeps_grads,
            skips_nonfinite,
            clip_value,
            max_norm,
            grad_scale,
            found_inf,
            skipped_steps,
            averages,
            average_weight,
        )
        # As in C++, neither autograd nor a default device has a say.
        with torch._C.DisableTorchFunction(), torch.no_grad():
            gathered = self._gather(param_groups, state, averages)
            if gathered is None:
                return StepResult()
            selection, grads = gathered
            return self._run(selection, grads, values, options)

    def _gather(
        self, param_groups: list[dict[str, Any]], state: dict[Any, Any], averages: list[Tensor]
    ) -> tuple[Selection, list[Tensor]] | None:
        """Return what has a gradient, and the gradients; None if the plan is stale."""
        if not (self._has_params(param_groups) and self._has_states(state)):
            return None
        grads = [param.grad for param in self._params]
        mask = [grad is not None for grad in grads]
        selection = self._selection
        if selection is None or selection.mask != mask:
            if any(entry.batch < 0 for entry in compress(self._entries, mask)):
                return None
            if selection is not None:
                selection.give_back_versions()
            selection = self._selection = Selection(self._entries, mask, len(self._groups))
        if not all(mask):
            grads = list(compress(grads, mask))
        return (selection, grads) if selection.fits(grads, averages) else None

    def _has_params(self, param_groups: list[dict[str, Any]]) -> bool:
        if len(param_groups) != len(self._groups):
            return False
        for group, expected in zip(param_groups, self._groups, strict=True):
            params = group.get("params")
            if not isinstance(params, (list, tuple)) or len(params) != len(expected):
                return False
            if not are(params, expected):
                return False
        return True

    def _has_states(self, state: dict[Any, Any]) -> bool:
        try:
            return self._known.are_in(state) and all(
                are(map(get, owners), expected) for get, owners, expected in self._states
            )
        except KeyError:
            return False

    def _run(
        self, selection: Selection, grads: list[Tensor], values: GroupValues, options: StepOptions
    ) -> StepResult:
        lr = list(map(_as_tensor, values.lr))
        calls = list(zip(selection.batches, selection.split(grads), strict=True))
        findings = Findings([None] * len(calls))
        if options.sweeps_grads and calls:
            self._sweep_grads(calls, values, options, findings)
        nonfinite = findings.nonfinite if options.skips_nonfinite else None
        result = StepResult(True, False, findings.norm, findings.nonfinite)
        if self._skips_on_device:
            findings.found_inf = options.found_inf
            if nonfinite is not None:
                found_inf = _to(options.found_inf, nonfinite.device)
                findings.found_inf = nonfinite if found_inf is None else nonfinite + found_inf
        elif _is_set(options.found_inf) or _is_set(nonfinite):
            result.skipped = True
            return result
        self._update(calls, lr, values, options, findings)
        selection.note_versions()
        return result

    def _sweep_grads(
        self,
        calls: list[tuple[Batch, list[Tensor]]],
        values: GroupValues,
        options: StepOptions,
        findings: Findings,
    ) -> None:
        totals: list[Tensor] = []
        for number, (batch, grads) in enumerate(calls):
            findings.row_means[number], total = self._statistics(
                grads,
                batch.group_sizes,
                values.centralize,
                _to(options.grad_scale, batch.device),
                options.clip_value,
            )
            totals.append(_to(total, totals[0].device) if totals else total)
        norm, coefficient, nonfinite = self._finalize(totals, options.max_norm)
        findings.norm, findings.nonfinite = norm, nonfinite
        if options.max_norm is not None:
            findings.coefficient = coefficient

    def _update(
        self,
        calls: list[tuple[Batch, list[Tensor]]],
        lr: list[Tensor],
        values: GroupValues,
        options: StepOptions,
        findings: Findings,
    ) -> None:
        skipped_steps = options.skipped_steps
        hyper = values.hyper.tolist()
        for (batch, grads), row_means in zip(calls, findings.row_means, strict=True):
            device, counter = batch.device, None
            averages = [options.averages[position] for position in batch.averages]
            # One of the calls counts for all.
            if skipped_steps is not None and skipped_steps.device == device:
                skipped_steps, counter = None, skipped_steps
            self._op(
                batch.params,
                grads,
                batch.states,
                batch.models,
                batch.model_index,
                averages,
                batch.average_index,
                batch.steps,
                lr,
                hyper,
                values.variants,
                batch.group_sizes,
                values.maximize,
                values.centralize,
                row_means,
                _to(findings.coefficient, device),
                _to(options.grad_scale, device),
                options.clip_value,
                options.average_weight,
                _to(findings.found_inf, device),
                counter,
            )
            torch.autograd.graph.increment_version(batch.written + averages)
