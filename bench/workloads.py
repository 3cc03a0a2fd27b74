"""The parameter shapes that the benchmarks step over, written out from the architectures."""

import math
from collections.abc import Callable

Shape = tuple[int, ...]


def resnet50() -> list[Shape]:
    """Return the shapes of ResNet-50: 161 tensors, 25,557,032 parameters.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", table 1.
    """

    def convolution(c_in: int, c_out: int, kernel: int) -> list[Shape]:
        # The two vectors are the normalisation that follows.
        return [(c_out, c_in, kernel, kernel), (c_out,), (c_out,)]

    shapes = convolution(3, 64, 7)
    c_in = 64
    for width, n_blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        c_out = 4 * width
        for block in range(n_blocks):
            shapes += convolution(c_in, width, 1)
            shapes += convolution(width, width, 3)
            shapes += convolution(width, c_out, 1)
            if block == 0:
                shapes += convolution(c_in, c_out, 1)
            c_in = c_out
    return [*shapes, (1000, c_in), (1000,)]


def _linear(n_in: int, n_out: int) -> list[Shape]:
    return [(n_out, n_in), (n_out,)]


def vit_b_16() -> list[Shape]:
    """Return the shapes of ViT-B/16 at 224 pixels: 152 tensors, 86,567,656 parameters.

    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", table 1.
    """
    width, n_tokens = 768, 14 * 14 + 1
    norm: list[Shape] = [(width,), (width,)]
    shapes: list[Shape] = [(1, 1, width), (width, 3, 16, 16), (width,), (1, n_tokens, width)]
    for _ in range(12):
        shapes += norm + _linear(width, 3 * width) + _linear(width, width)
        shapes += norm + _linear(width, 4 * width) + _linear(4 * width, width)
    return shapes + norm + _linear(width, 1000)


def gpt2_small() -> list[Shape]:
    """Return the shapes of GPT-2 small, tied head: 148 tensors, 124,439,808 parameters.

    Weights are (in, out), as in the published checkpoint.
    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2.
    """
    width = 768
    norm: list[Shape] = [(width,), (width,)]
    shapes: list[Shape] = [(50257, width), (1024, width)]
    for _ in range(12):
        shapes += [*norm, (width, 3 * width), (3 * width,), (width, width), (width,)]
        shapes += [*norm, (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return shapes + norm


def small_2000() -> list[Shape]:
    """Return 2,000 vectors of 256 elements: the cost of many tensors."""
    return [(256,)] * 2000


def one_64m() -> list[Shape]:
    """Return one matrix of 64 Mi elements: nothing but memory traffic."""
    return [(8192, 8192)]


def tiny() -> list[Shape]:
    """Return a few small tensors, to try the scripts in a second."""
    return [(8, 3, 3, 3), (8,), (10, 8), (10,), ()]


WORKLOADS: dict[str, Callable[[], list[Shape]]] = {
    "resnet50": resnet50,
    "vit_b_16": vit_b_16,
    "gpt2_small": gpt2_small,
    "small_2000": small_2000,
    "one_64m": one_64m,
    "tiny": tiny,
}


def n_parameters(shapes: list[Shape]) -> int:
    """Return the number of elements of all shapes."""
    return sum(math.prod(shape) for shape in shapes)
