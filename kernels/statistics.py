"""The host side of the statistics sweep."""

import torch
import triton
from torch import Tensor

from fusedtricks.snapshot import snapshot

from . import checks
from .combine_kernel import finalize_kernel
from .launch import (
    N_THREADS,
    bits_of,
    bits_of_limit,
    common_device,
    device_scope,
    on_device,
    options,
)
from .layouts import Copies
from .statistics_kernel import statistics_kernel
from .statistics_plan import PIECE, TILE, Plan, build_plan
from .tables import Recent, is_capturing, keep_for_graphs, refuse_capture, stream_of

__all__ = ["finalize_statistics", "grad_statistics"]

_plans: Recent[Plan] = Recent(512)


def grad_statistics(
    grads: list[Tensor],
    group_sizes: list[int],
    centralize: list[int],
    grad_scale: Tensor | None,
    clip_value: float | None,
) -> tuple[Tensor, Tensor]:
    """Run the op: the means of rows to centralize; the sum of squares and a flag, float64."""
    device = common_device(grads)
    layout, addresses = snapshot(grads)
    key = (layout, tuple(group_sizes), tuple(centralize))
    with device_scope(device):
        plan = _plans.get(key)
        if plan is None:
            refuse_capture("grad_statistics", device)
            plan = _plans.put(key, build_plan(grads, group_sizes, centralize, device))
        checks.check_one_element("grad_statistics: grad_scale", grad_scale)
        if not plan.staged:
            return _launch(plan, addresses, grad_scale, clip_value)
        copies = Copies(grads, plan.staged)
        return _launch(plan, snapshot(copies.tensors)[1], grad_scale, clip_value)


def _launch(
    plan: Plan, addresses: bytes, grad_scale: Tensor | None, clip_value: float | None
) -> tuple[Tensor, Tensor]:
    device = plan.device
    stream = stream_of(device)
    if is_capturing(device):
        keep_for_graphs(plan)
    means = torch.empty(plan.n_rows, dtype=plan.means_dtype, device=device)
    totals = torch.empty(2, dtype=torch.float64, device=device)
    statistics_kernel[(max(plan.n_items, 1),)](
        plan.addresses.get(addresses, stream),
        plan.tensors.get(stream),
        plan.items.get(stream),
        plan.long_rows.get(stream),
        on_device(grad_scale, device, torch.float32),
        bits_of_limit(clip_value),
        means,
        torch.empty((plan.n_pieces, 2), dtype=torch.float64, device=device),
        torch.empty((plan.n_items, 3), dtype=torch.float64, device=device),
        totals,
        plan.ticket.get(stream),
        plan.n_items,
        plan.n_long_rows,
        BODIES=plan.bodies,
        TILE=TILE,
        PIECE=PIECE,
        **options(N_THREADS, plan.max_registers),
    )
    return means, totals


def finalize_statistics(
    totals: list[Tensor], max_norm: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the op: norm, coefficient of clipping by it, float64; number of flags, float32."""
    device = common_device(totals)
    checks.check_totals(totals, device)
    with device_scope(device):
        all_totals = totals[0] if len(totals) == 1 else torch.cat(totals)
        norm = torch.empty((), dtype=torch.float64, device=device)
        coefficient = torch.empty_like(norm)
        nonfinite = torch.empty((), dtype=torch.float32, device=device)
        finalize_kernel[(1,)](
            all_totals,
            norm,
            coefficient,
            nonfinite,
            None if max_norm is None else bits_of(max_norm),
            len(totals),
            BLOCK=triton.next_power_of_2(len(totals)),
            **options(32, 255),
        )
    return norm, coefficient, nonfinite
