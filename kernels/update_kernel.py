"""The update sweep: reads gradient, parameter and states once, writes all but the gradient once.

Note [Bodies]
Triton compiles a kernel for given dtypes. One launch serves parameters of any dtypes and flags all
the same: the kernel holds one body for each combination in the call, and each program branches
once, to the body of its tensor. The usual call has one or two.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from .arithmetic import double_from_bits
from .choices import Choices, choice, n_choices, size_of
from .memory import inverse_scale, read, unscale_and_clamp, write


# Triton compares global constexprs at every launch, which costs more than a function here.
@triton.constexpr_function
def column(name):
    """Return the column of the table of tensors; the last four are indices of addresses."""
    names = "numel row_length first_row group body first_item step_bytes step model average lr"
    return names.split().index(name)


@triton.constexpr_function
def n_columns():
    """Return the number of columns of the table of tensors."""
    return 11


@triton.constexpr_function
def group_column(name):
    """Return the column of the table of groups; the constants of the algorithm come last."""
    return ["lr", "sign", "constants"].index(name)


@triton.constexpr_function
def bits_of_half():
    """Return the bits of the float64 0.5, as `launch.bits_of` does."""
    return 0x3FE0000000000000


@dataclass(frozen=True)
class Body:
    """What is compiled for a tensor: flags of the algorithm, and dtypes (None: has none).

    `block` is the number of elements that a program loads at a time.
    """

    flags: int
    block: int
    compute: Any
    is_centralized: bool
    grad: Any
    param: Any
    model: Any
    average: Any
    states: Choices
    step: Any
    lr: Any


@triton.jit
def _row_means(means_ptr, first_row, row_length, at, offsets, mask, COMPUTE: tl.constexpr, BLOCK):
    """The mean of the row of each element of a block that begins at element `at`."""
    row = at // row_length
    # All that depends on the element fits in 32 bits, however long the tensor and its rows are: a
    # row that is longer than a block ends at most once in it.
    left_in_row = tl.minimum((row + 1) * row_length - at, BLOCK).to(tl.int32)
    step = tl.minimum(row_length, BLOCK).to(tl.int32)
    beyond = offsets - left_in_row
    row_of_element = tl.where(beyond < 0, 0, 1 + beyond // step)
    return tl.load(means_ptr + first_row + row + row_of_element, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def _update_block(
    addresses, at, numel, row_length, first_row, means_ptr, gradient, prepared, average_weight,
    UPDATE: tl.constexpr, BODY: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Update the elements from `at` on, a full block of aligned memory if FULL."""
    BLOCK: tl.constexpr = BODY.block
    offsets = tl.arange(0, BLOCK)
    mask = offsets < tl.minimum(numel - at, BLOCK).to(tl.int32)
    param_at, grad_at, model_at, average_at, states_at = addresses
    inv_scale, limit, coefficient = gradient
    N_STATES: tl.constexpr = n_choices(BODY.states)
    COMPUTE: tl.constexpr = BODY.compute
    grad_at += at * size_of(BODY.grad)
    param_at += at * size_of(BODY.param)
    grad = read(grad_at, offsets, mask, BODY.grad, COMPUTE, FULL)
    param = read(param_at, offsets, mask, BODY.param, COMPUTE, FULL)
    states = ()
    for k in tl.static_range(N_STATES):
        state_at = states_at[k] + at * size_of(choice(BODY.states, k))
        states = states + (read(state_at, offsets, mask, choice(BODY.states, k), COMPUTE, FULL),)
    if BODY.average is not None:
        average_at += at * size_of(BODY.average)
        average = read(average_at, offsets, mask, BODY.average, COMPUTE, FULL)
    grad = unscale_and_clamp(grad, inv_scale, limit)
    if BODY.is_centralized:
        grad = grad - _row_means(
            means_ptr, first_row, row_length, at, offsets, mask, COMPUTE, BLOCK
        )
    param, states = UPDATE(prepared, grad * coefficient, param, states, BODY.flags)
    write(param_at, offsets, mask, param, BODY.param, FULL)
    for k in tl.static_range(N_STATES):
        state_at = states_at[k] + at * size_of(choice(BODY.states, k))
        write(state_at, offsets, mask, states[k], choice(BODY.states, k), FULL)
    if BODY.average is not None:
        weight, is_small = average_weight
        way = param - average
        average = tl.where(is_small, average + weight * way, param - (1.0 - weight) * way)
        write(average_at, offsets, mask, average, BODY.average, FULL)
    if BODY.model is not None:
        model_at += at * size_of(BODY.model)
        write(model_at, offsets, mask, param, BODY.model, FULL)


@triton.jit
def _addresses(addresses_ptr, record_ptr, tensor, n_tensors, BODY: tl.constexpr):
    """Where the parameter, its gradient, 16-bit copy, average and states begin."""
    N_STATES: tl.constexpr = n_choices(BODY.states)
    states_at = ()
    for k in tl.static_range(N_STATES):
        states_at = states_at + (tl.load(addresses_ptr + 2 * n_tensors + tensor * N_STATES + k),)
    param_at = tl.load(addresses_ptr + tensor)
    grad_at = tl.load(addresses_ptr + n_tensors + tensor)
    # Not used without one.
    model_at = param_at
    average_at = param_at
    if BODY.model is not None:
        model_at = tl.load(addresses_ptr + tl.load(record_ptr + column("model")))
    if BODY.average is not None:
        average_at = tl.load(addresses_ptr + tl.load(record_ptr + column("average")))
    return param_at, grad_at, model_at, average_at, states_at


@triton.jit
def _prepare(
    addresses_ptr, record_ptr, groups_ptr,
    PREPARE: tl.constexpr, N_CONSTANTS: tl.constexpr, BODY: tl.constexpr,
):  # fmt: skip
    """The constants of the update, and the sign of the gradient."""
    COMPUTE: tl.constexpr = BODY.compute
    group_ptr = groups_ptr + tl.load(record_ptr + column("group")) * (
        group_column("constants") + N_CONSTANTS
    )
    if BODY.lr is None:
        lr = tl.load(group_ptr + group_column("lr")).to(COMPUTE)
    else:
        lr_at = tl.load(addresses_ptr + tl.load(record_ptr + column("lr")))
        lr = tl.load(lr_at.to(tl.pointer_type(BODY.lr))).to(COMPUTE)
    if BODY.step is None:
        step = tl.full((), 1.0, COMPUTE)
    else:
        step_at = tl.load(addresses_ptr + tl.load(record_ptr + column("step")))
        step = tl.load(step_at.to(tl.pointer_type(BODY.step))).to(COMPUTE) + 1.0
    constants = ()
    for k in tl.static_range(N_CONSTANTS):
        constants = constants + (tl.load(group_ptr + group_column("constants") + k).to(COMPUTE),)
    return PREPARE(constants, lr, step), tl.load(group_ptr + group_column("sign")).to(COMPUTE)


@triton.jit
def _update_item(
    addresses_ptr, record_ptr, groups_ptr, tensor, n_tensors, begin,
    means_ptr, coefficient_ptr, scale_ptr, limit, average_weight_bits,
    PREPARE: tl.constexpr, UPDATE: tl.constexpr, N_CONSTANTS: tl.constexpr, BODY: tl.constexpr,
    ITEM: tl.constexpr,
):  # fmt: skip
    """Update the elements of a work item, which begins at element `begin` of its tensor."""
    addresses = _addresses(addresses_ptr, record_ptr, tensor, n_tensors, BODY)
    prepared, coefficient = _prepare(
        addresses_ptr, record_ptr, groups_ptr, PREPARE, N_CONSTANTS, BODY
    )
    if coefficient_ptr is not None:
        coefficient *= tl.load(coefficient_ptr).to(BODY.compute)
    gradient = (inverse_scale(scale_ptr, BODY.compute), limit.to(BODY.compute), coefficient)
    average_weight = (limit, False)  # not used without an average
    if BODY.average is not None:
        # Averages move from the end that is nearer, as torch.lerp has it. Which one it is shows in
        # the bits, which have the order of the numbers: floats would be compared in float64.
        average_weight = (
            double_from_bits(average_weight_bits).to(BODY.compute),
            average_weight_bits < bits_of_half(),
        )
    numel = tl.load(record_ptr + column("numel"))
    row_length = tl.load(record_ptr + column("row_length"))
    first_row = tl.load(record_ptr + column("first_row"))
    bits = addresses[0] | addresses[1] | addresses[2] | addresses[3]
    for k in tl.static_range(n_choices(BODY.states)):
        bits = bits | addresses[4][k]
    is_aligned = bits % 16 == 0
    for at in range(begin, tl.minimum(begin + ITEM, numel), BODY.block):
        if is_aligned & (at + BODY.block <= numel):
            _update_block(
                addresses, at, numel, row_length, first_row, means_ptr, gradient, prepared,
                average_weight, UPDATE, BODY, True,
            )  # fmt: skip
        else:
            _update_block(
                addresses, at, numel, row_length, first_row, means_ptr, gradient, prepared,
                average_weight, UPDATE, BODY, False,
            )  # fmt: skip


@triton.jit
def _advance_steps(
    addresses_ptr, tensors_ptr, n_tensors, STEP_DTYPES: tl.constexpr, STEPS_AT_ONCE: tl.constexpr
):
    """Add 1 to the step counts of all tensors."""
    for first in range(0, n_tensors, STEPS_AT_ONCE):
        tensors = first + tl.arange(0, STEPS_AT_ONCE)
        mask = tensors < n_tensors
        record_ptr = tensors_ptr + tensors * n_columns()
        step_at = tl.load(
            addresses_ptr + tl.load(record_ptr + column("step"), mask=mask), mask=mask
        )
        step_bytes = tl.load(record_ptr + column("step_bytes"), mask=mask)
        for k in tl.static_range(n_choices(STEP_DTYPES)):
            pointers = step_at.to(tl.pointer_type(choice(STEP_DTYPES, k)))
            chosen = mask & (step_bytes == size_of(choice(STEP_DTYPES, k)))
            tl.store(pointers, tl.load(pointers, mask=chosen) + 1.0, mask=chosen)


@triton.jit(
    do_not_specialize=["limit_bits", "average_weight_bits", "n_tensors", "n_items"],
    do_not_specialize_on_alignment=[
        "means_ptr", "coefficient_ptr", "scale_ptr", "found_inf_ptr", "skipped_ptr",
    ],
)  # fmt: skip
def update_kernel(
    addresses_ptr,  # int64: parameters, gradients, states, 16-bit copies, averages, steps, rates
    tensors_ptr,  # [n_tensors, n_columns()] int64
    items_ptr,  # [n_items] int32: the tensor of each work item
    groups_ptr,  # [n_groups, 2 + N_CONSTANTS] float64
    means_ptr,  # [rows] float32 or float64, None if no gradient is centralized
    coefficient_ptr,  # float64 or None
    scale_ptr,  # float32 or None
    limit_bits,  # of the float64 that clips by value
    average_weight_bits,  # of a float64, None without averages
    found_inf_ptr,  # float32 or None
    skipped_ptr,  # int64 or None
    ticket_ptr,  # int32, zero between launches
    n_tensors,
    n_items,
    PREPARE: tl.constexpr,
    UPDATE: tl.constexpr,
    N_CONSTANTS: tl.constexpr,
    BODIES: tl.constexpr,
    STEP_DTYPES: tl.constexpr,
    ITEM: tl.constexpr,
):
    """Update all tensors of a call, one program per work item."""
    program = tl.program_id(0)
    if found_inf_ptr is not None:
        if tl.load(found_inf_ptr) != 0:
            if skipped_ptr is not None:
                if program == 0:
                    tl.store(skipped_ptr, tl.load(skipped_ptr) + 1)
            return
    # Backwards, because the end of the gradients is in the cache if they were swept before.
    item = n_items - 1 - program
    if item >= 0:
        tensor = tl.load(items_ptr + item).to(tl.int64)
        record_ptr = tensors_ptr + tensor * n_columns()
        begin = (item - tl.load(record_ptr + column("first_item"))) * ITEM
        body = tl.load(record_ptr + column("body"))
        limit = double_from_bits(limit_bits)
        for k in tl.static_range(n_choices(BODIES)):
            if body == k:
                _update_item(
                    addresses_ptr, record_ptr, groups_ptr, tensor, n_tensors, begin,
                    means_ptr, coefficient_ptr, scale_ptr, limit, average_weight_bits,
                    PREPARE, UPDATE, N_CONSTANTS, choice(BODIES, k), ITEM,
                )  # fmt: skip
    if n_choices(STEP_DTYPES) > 0:
        # The program that finishes last advances the counts that all have read. The barrier
        # orders the reads of all threads before the ticket.
        tl.debug_barrier()
        if tl.atomic_add(ticket_ptr, 1) == tl.num_programs(0) - 1:
            tl.store(ticket_ptr, 0)
            _advance_steps(addresses_ptr, tensors_ptr, n_tensors, STEP_DTYPES, 1024)
