"""One sweep from a batch of bytes to blended, normalised images: reads once, writes once.

x' = (other + share * (own - other) - 255 mean) * 1 / (255 std) in float32, each operation rounded,
for own and other in [0, 255]: exact where nothing is blended, up to the last two operations.

Note [Segments]
The output is cut into segments, within which rows follow each other: images in channels_last, the
planes of their channels otherwise. A program makes a part of one segment, so that all its elements
share a blend, a patch and a hole: it branches once, reads the partner only where something of it
shows, and looks at boxes only in blocks whose rows they touch.

Programs are numbered so that those of equal parts of all segments run at about the same time: the
bytes of an image, read for itself and as a partner, come from memory once and from the cache then.

Note [Groups]
Elements are taken in groups of GROUP neighbours, which make up a store of 16 bytes. What depends on
the position is computed once for a group where it can be: all but the place within the group, which
is known when the kernel is compiled. A thread loads the bytes of the groups that it stores, so that
threads exchange nothing.
"""

import triton
import triton.language as tl


@triton.jit
def _of_channel(values, channel):
    """The value of a channel."""
    chosen = values[0]
    for c in tl.static_range(1, len(values)):
        chosen = tl.where(channel == c, values[c], chosen)
    return chosen


@triton.jit
def _of_elements(values, first, nth):
    """The value of each element's channel, which is the `nth` one after channel `first`.

    All but the choice by `first` is known when the kernel is compiled.
    """
    chosen = _of_channel(values, nth % len(values))
    for k in tl.static_range(1, len(values)):
        chosen = tl.where(first == k, _of_channel(values, (nth + k) % len(values)), chosen)
    return chosen


@triton.jit
def _edge(edge_ptr, limit):
    """An edge of a box, moved into the image; before it is cut to 32 bits."""
    return tl.minimum(tl.maximum(tl.load(edge_ptr), 0), limit).to(tl.int32)


@triton.jit
def _box(boxes_ptr, image, height, width):
    """Top, bottom, left and right of an image's box, cut to the image; bottom 0 if it is empty."""
    box_ptr = boxes_ptr + 4 * image
    top, bottom = _edge(box_ptr, height), _edge(box_ptr + 1, height)
    left, right = _edge(box_ptr + 2, width), _edge(box_ptr + 3, width)
    return top, tl.where(left < right, bottom, 0), left, right


@triton.jit
def _touches(box, begin, row_length, BLOCK: tl.constexpr):
    """Whether the rows of a box touch the block that begins at element `begin`."""
    top, bottom, _, _ = box
    return (begin < bottom * row_length) & (top * row_length < begin + BLOCK)


@triton.jit
def _inside(box, group, nth, row_length, CHANNELS: tl.constexpr, WHOLE_GROUPS: tl.constexpr):
    """Which elements of a segment are inside a box."""
    top, bottom, left, right = box
    dividend = group if WHOLE_GROUPS else group + nth
    row = (dividend.to(tl.uint32) // row_length.to(tl.uint32)).to(tl.int32)
    column = group + nth - row * row_length
    is_in_rows = (row >= top) & (row < bottom)
    return is_in_rows & (column >= left * CHANNELS) & (column < right * CHANNELS)


@triton.jit(
    do_not_specialize=[
        "n_images", "image_stride", "channel_stride", "pixel_stride", "height", "width", "numel",
    ],
    do_not_specialize_on_alignment=[
        "images_ptr", "partner_ptr", "share_ptr", "patch_ptr", "hole_ptr",
    ],
)  # fmt: skip
def batch_kernel(
    images_ptr,  # uint8; the pixels of a channel at equal distances
    out_ptr,  # segments one after the other
    partner_ptr,  # [n_images] int64, None if nothing is mixed
    share_ptr,  # [n_images] float32
    patch_ptr,  # [n_images, 4] int64, None without patches
    hole_ptr,  # [n_images, 4] int64, None without holes
    shifts,  # 255 mean, of each channel
    scales,  # 1 / (255 std)
    fill,
    n_images,
    image_stride,
    channel_stride,
    pixel_stride,
    height,
    width,
    numel,  # of a segment
    SEGMENTS: tl.constexpr,  # of an image
    CHANNELS: tl.constexpr,  # of a segment
    FLAT: tl.constexpr,  # whether a segment lies in the input as in the output
    ALIGNED: tl.constexpr,  # whether groups begin at multiples of GROUP elements in both
    WHOLE_GROUPS: tl.constexpr,  # whether no group has elements of two rows
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    ITEM: tl.constexpr,
):
    """Make ITEM elements of a segment, see Note [Segments]."""
    segment = tl.program_id(0)
    image, plane = segment // SEGMENTS, segment % SEGMENTS
    images_ptr += plane.to(tl.int64) * channel_stride
    own_ptr = images_ptr + image.to(tl.int64) * image_stride
    other_ptr = own_ptr
    if partner_ptr is not None:
        # Whatever the plan says, nothing outside of the batch is read.
        partner = tl.minimum(tl.maximum(tl.load(partner_ptr + image), 0), n_images - 1)
        other_ptr = images_ptr + partner * image_stride
        share = tl.load(share_ptr + image)
    if patch_ptr is not None:
        patch = _box(patch_ptr, image, height, width)
    if hole_ptr is not None:
        hole = _box(hole_ptr, image, height, width)
    out_ptr += segment.to(tl.int64) * numel
    if ALIGNED:
        out_ptr = tl.multiple_of(out_ptr, 16)
        # Triton ignores the same hint for an argument.
        numel = numel // GROUP * GROUP
        if FLAT:
            own_ptr, other_ptr = tl.multiple_of(own_ptr, GROUP), tl.multiple_of(other_ptr, GROUP)
    nth = tl.arange(0, GROUP)[None, :]
    row_length = width * CHANNELS
    begin = tl.program_id(1) * ITEM
    for start in range(begin, tl.minimum(begin + ITEM, numel), BLOCK):
        group = start + GROUP * tl.arange(0, BLOCK // GROUP)[:, None]
        mask = group + nth < numel
        first = group % CHANNELS
        if FLAT:
            place = group + nth
        else:
            channel, pixel = (first + nth) % CHANNELS, group // CHANNELS + (first + nth) // CHANNELS
            place = channel * channel_stride + pixel * pixel_stride
        value = tl.load(own_ptr + place, mask=mask, other=0).to(tl.float32)
        if partner_ptr is not None:
            needs_other = share != 1.0
            if patch_ptr is not None:
                has_patch = _touches(patch, start, row_length, BLOCK)
                needs_other = needs_other | has_patch
            if needs_other:
                other = tl.load(other_ptr + place, mask=mask, other=0).to(tl.float32)
                value = other + share * (value - other)
                if patch_ptr is not None:
                    if has_patch:
                        in_patch = _inside(patch, group, nth, row_length, CHANNELS, WHOLE_GROUPS)
                        value = tl.where(in_patch, other, value)
        if CHANNELS == 1:
            value = (value - _of_channel(shifts, plane)) * _of_channel(scales, plane)
        else:
            value = (value - _of_elements(shifts, first, nth)) * _of_elements(scales, first, nth)
        if hole_ptr is not None:
            if _touches(hole, start, row_length, BLOCK):
                in_hole = _inside(hole, group, nth, row_length, CHANNELS, WHOLE_GROUPS)
                value = tl.where(in_hole, fill, value)
        tl.store(out_ptr + (group + nth), value.to(out_ptr.dtype.element_ty), mask=mask)
