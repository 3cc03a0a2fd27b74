"""The host side of the update sweep."""

from array import array
from types import ModuleType

import torch
from torch import Tensor

from fusedtricks.snapshot import snapshot

from . import checks
from .launch import (
    DEVICE_TYPE,
    N_THREADS,
    bits_of,
    bits_of_limit,
    common_device,
    device_scope,
    on_device,
    options,
)
from .layouts import Copies
from .tables import Recent, is_capturing, keep_for_graphs, refuse_capture, stream_of
from .update_kernel import update_kernel
from .update_plan import ITEM, Plan, StepArgs, build_plan

__all__ = ["step"]

_plans: Recent[Plan] = Recent(512)


def step(op: str, r: StepArgs) -> None:
    """Run the op of an optimizer."""
    device = common_device(r.params)
    device_lr = [None if _is_host_value(lr) else _as_lr(lr, device) for lr in r.lr]
    tensors = [*r.params, *r.grads, *r.states, *r.model_params, *r.averages, *r.steps]
    tensors += [lr for lr in device_lr if lr is not None]
    layout, addresses = snapshot(tensors)
    lengths = tuple(len(values) for values in r[:10])
    lists = (r.group_sizes, r.variants, r.centralize, r.model_index, r.average_index)
    kinds = tuple(lr is None for lr in device_lr)
    shapes = tuple(lr.numel() for lr in r.lr), len(r.maximize)
    key = (op, layout, lengths, *map(tuple, lists), kinds, shapes)
    with device_scope(device):
        plan = _plans.get(key)
        if plan is None:
            refuse_capture(op, device)
            plan = _plans.put(key, build_plan(op, r, device_lr, device))
        _check_values(op, r, plan)
        if not r.params:
            return
        if not plan.staged:
            _launch(plan, r, addresses)
            return
        copies = Copies(tensors, plan.staged)
        _launch(plan, r, snapshot(copies.tensors)[1])
        copies.write_back()


def _check_values(op: str, r: StepArgs, plan: Plan) -> None:
    checks.check_counter(op, r.skipped_steps, plan.device)
    checks.check_row_means(op, r.row_means, plan.n_rows, plan.device)
    checks.check_one_element(f"{op}: coefficient", r.coefficient)
    checks.check_one_element(f"{op}: grad_scale", r.grad_scale)
    checks.check_one_element(f"{op}: found_inf", r.found_inf)


def _launch(plan: Plan, r: StepArgs, addresses: bytes) -> None:
    device = plan.device
    stream = stream_of(device)
    if is_capturing(device):
        keep_for_graphs(plan)
    update_kernel[(max(plan.n_items, 1),)](
        plan.addresses.get(addresses, stream),
        plan.tensors.get(stream),
        plan.items.get(stream),
        plan.groups.get(_group_values(plan.algorithm, r), stream),
        r.row_means if plan.n_rows else None,
        on_device(r.coefficient, device, torch.float64),
        on_device(r.grad_scale, device, torch.float32),
        bits_of_limit(r.clip_value),
        bits_of(r.average_weight) if r.averages else None,
        on_device(r.found_inf, device, torch.float32),
        r.skipped_steps,
        plan.ticket.get(stream),
        len(r.params),
        plan.n_items,
        PREPARE=plan.algorithm.prepare,
        UPDATE=plan.algorithm.update,
        N_CONSTANTS=plan.algorithm.N_CONSTANTS,
        BODIES=plan.bodies,
        STEP_DTYPES=plan.step_dtypes,
        ITEM=ITEM,
        **options(N_THREADS, plan.max_registers),
    )


def _is_host_value(lr: Tensor) -> bool:
    # A float lr arrives as float64 on the CPU, which in the interpreter is the device too.
    return lr.device.type == "cpu" and (DEVICE_TYPE != "cpu" or lr.dtype == torch.float64)


def _as_lr(lr: Tensor, device: torch.device) -> Tensor:
    dtype = torch.float64 if lr.dtype == torch.float64 else torch.float32
    return lr if lr.device == device and lr.dtype == dtype else lr.to(device, dtype)


def _group_values(algorithm: ModuleType, r: StepArgs) -> bytes:
    """Return the table of groups: a learning rate, a sign and the algorithm's constants."""
    values = array("d")
    n_hyper = algorithm.N_HYPER
    for group, lr in enumerate(r.lr):
        values.append(lr.item() if _is_host_value(lr) else 0.0)
        values.append(-1.0 if r.maximize[group] else 1.0)
        values.extend(algorithm.constants(r.hyper[group * n_hyper : (group + 1) * n_hyper]))
    return values.tobytes()
