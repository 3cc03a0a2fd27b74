"""Anti-aliasing of models that exist already."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from fusedtricks._checks import check_bool, check_module, check_whole
from fusedtricks.nn.blur_pool import BlurPool, MaxBlurPool
from fusedtricks.nn.resnet_blocks import find_residual_blocks, is_a

__all__ = ["apply_blurpool"]

_KNOWN_MODELS = (
    "fusedtricks.nn.resnets.ResNet",
    "torchvision.models.resnet.ResNet",
    "timm.models.resnet.ResNet",
)

# Name of a strided layer -> what to do about it.
_Plan = dict[str, Callable[[], None]]


class BlurredConv2d(nn.Conv2d):
    """A convolution whose input is blurred and subsampled first; `apply_blurpool` makes them."""

    blur: BlurPool

    def forward(self, features: Tensor) -> Tensor:
        """Return conv(blur(features))."""
        return super().forward(self.blur(features))


def apply_blurpool(
    model: nn.Module, *, filt_size: int = 3, stem_conv: bool = False, verbose: bool = True
) -> nn.Module:
    """Anti-alias the strided layers of a ResNet, trained or not, in place.

    Every layer that drops pixels is computed at all of them, then blurred, then subsampled:

    - max pooling: max at stride 1, blur;
    - a convolution inside a block: convolution at stride 1, norm, relu, blur. The blur sits in
      the convolution that comes next;
    - a 1x1 convolution on a shortcut: blur, then the convolution, which is the same as the other
      way round and a quarter of the work;
    - average pooling on a shortcut (variant D): blur.

    Shapes, parameters and the names in the state dict stay as they are: checkpoints load in both
    directions, and an optimizer made before goes on. What the layers compute changes, so that a
    trained model needs some more training, and its batch statistics too. Call it before
    `torch.compile` and DistributedDataParallel.

    The pooling and the average become other modules: hooks on them are lost, those on all other
    layers stay. torchvision's quantizable ResNets cannot `fuse_model()` afterwards.

    Known are the ResNets of fusedtricks, torchvision and timm, by their classes and subclasses,
    also inside another model. Strided layers that do not fit the list stay and are printed: the
    stem's convolution, unless asked for; convolutions of other classes than `nn.Conv2d` (say, with
    parametrizations); 3x3 ones on shortcuts; max pooling with a dilation, indices or `ceil_mode`;
    layers outside of residual blocks.

    Args:
        model: Holds at least one strided layer that fits.
        filt_size: Size of the blurs' filters, at least 2. The default of 3 is centred where the
            strided layer was, which trained weights expect; see `BlurPool`. Default 3.
        stem_conv: Whether to anti-alias the first convolution as well, at 4 times its cost, which
            is at full resolution; timm's `resnetblur50` does not. Default False.
        verbose: Print what was replaced and what is left. Default True.

    Returns:
        The model, with one `BlurPool` for each layer that was replaced.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If `filt_size` is below 2, the model has no ResNet, or nothing is left to
            replace, as after a first call; the model is as before then.

    Example:
        >>> from fusedtricks.nn import resnet
        >>> net = apply_blurpool(resnet(18, variant="B"), verbose=False)
        >>> sum(isinstance(module, BlurPool) for module in net.modules())
        7

    timm's `aa_layer` leaves the shortcuts' convolutions and averages as they are; the paper does
    not. MosaicML's composer blurs before the convolution, where it is a part of it.

    Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", section 3, figure 2.
    """
    check_module("apply_blurpool", "model", model)
    check_whole("apply_blurpool", "filt_size", filt_size, 2)
    check_bool("apply_blurpool", "stem_conv", stem_conv)
    check_bool("apply_blurpool", "verbose", verbose)
    plan: _Plan = {}
    resnets = {
        name: module
        for name, module in model.named_modules()
        if any(is_a(module, known) for known in _KNOWN_MODELS)
    }
    for name, resnet in resnets.items():
        _plan_stem(plan, name, resnet, filt_size, stem_conv)
    blocks = find_residual_blocks(model)
    for name, block in blocks.items():
        _plan_block(plan, name, block, filt_size)
    if not plan:
        raise ValueError(_why_nothing(model, found_any=bool(resnets or blocks)))
    for replace in plan.values():
        replace()
    if verbose:
        left = _strided_layers(model)
        n_all = len(plan) + len(left)
        print(f"apply_blurpool: {len(plan)} of {n_all} strided layers blur now: {', '.join(plan)}")
        print(f"left as they were: {', '.join(left) or 'none'}")
    return model


def _plan_stem(plan: _Plan, name: str, resnet: nn.Module, filt_size: int, stem_conv: bool) -> None:
    convolutions = [m for m in resnet.conv1.modules() if isinstance(m, nn.Conv2d)]
    if not convolutions:
        return
    first, last, pool = convolutions[0], convolutions[-1], resnet.maxpool

    def blur_pool() -> None:
        resnet.maxpool = MaxBlurPool(
            last.out_channels,
            pool.kernel_size,
            stride=_stride(pool),
            padding=pool.padding,
            filt_size=filt_size,
        )
        _like(resnet.maxpool, last)

    def blur_before_pool() -> None:
        blur = BlurPool(first.out_channels, filt_size=filt_size, stride=_stride(first))
        first.stride = (1, 1)
        resnet.maxpool = nn.Sequential(_like(blur, first), resnet.maxpool)

    if type(pool) is nn.MaxPool2d and _stride(pool) > 1 and _is_plain(pool):
        plan[_join(name, "maxpool")] = blur_pool
    if stem_conv and type(first) is nn.Conv2d and _stride(first) > 1:
        if len(convolutions) == 1:
            plan[_join(name, "conv1")] = blur_before_pool
        elif type(convolutions[1]) is nn.Conv2d:
            plan[_join(name, "conv1.0")] = partial(_move_stride, first, convolutions[1], filt_size)


def _plan_block(plan: _Plan, name: str, block: nn.Module, filt_size: int) -> None:
    names = [n for n in ("conv1", "conv2", "conv3") if hasattr(block, n)]
    for this, following in pairwise(names):
        strided, receiver = getattr(block, this), getattr(block, following)
        if type(strided) is type(receiver) is nn.Conv2d and _stride(strided) > 1:
            plan[_join(name, this)] = partial(_move_stride, strided, receiver, filt_size)
    shortcut = list((block.downsample or nn.Identity()).children())
    if len(shortcut) < 2 or _stride(shortcut[0]) == 1:
        return
    first, second, *_ = shortcut
    if type(first) is nn.Conv2d and first.kernel_size == (1, 1):
        plan[_join(name, "downsample.0")] = partial(_move_stride, first, first, filt_size)
    elif type(first) is nn.AvgPool2d and type(second) is nn.Conv2d:

        def blur_average() -> None:
            blur = BlurPool(second.in_channels, filt_size=filt_size, stride=_stride(first))
            block.downsample[0] = _like(blur, second)

        plan[_join(name, "downsample.0")] = blur_average


def _stride(layer: nn.Module) -> int:
    """Return the stride of a layer that drops pixels; 1 if both sides have their own."""
    strides = set(_strides(layer))
    return strides.pop() if len(strides) == 1 else 1


def _strides(layer: nn.Module) -> tuple[int, ...]:
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return (1,)
    return layer.stride if isinstance(layer.stride, tuple) else (layer.stride,)


def _is_plain(pool: nn.MaxPool2d) -> bool:
    """Tell whether a pooling has no options that `MaxBlurPool` lacks."""
    return pool.dilation in (1, (1, 1)) and not pool.ceil_mode and not pool.return_indices


def _move_stride(strided: nn.Conv2d, receiver: nn.Conv2d, filt_size: int) -> None:
    """Take the stride from one convolution and give it, with a blur, to the input of another."""
    blur = BlurPool(receiver.in_channels, filt_size=filt_size, stride=_stride(strided))
    strided.stride = (1, 1)
    receiver.blur = _like(blur, receiver)
    # Not a new module: hooks, and who holds a reference, stay with it.
    receiver.__class__ = BlurredConv2d


def _like(blur: nn.Module, layer: nn.Conv2d) -> nn.Module:
    """Return a blur on the device, in the dtype and in the mode of a layer."""
    return blur.to(layer.weight.device, layer.weight.dtype).train(layer.training)


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _strided_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that drop pixels without a blur."""
    return [name for name, module in model.named_modules() if max(_strides(module)) > 1]


def _why_nothing(model: nn.Module, *, found_any: bool) -> str:
    if not found_any:
        return (
            "apply_blurpool: expected a ResNet of fusedtricks, torchvision or timm, found none in "
            f"{type(model).__name__}; build other models with MaxBlurPool and ConvBlurPool"
        )
    left = ", ".join(_strided_layers(model)) or "none"
    return (
        "apply_blurpool: found nothing to replace, every pooling and block that fits blurs already "
        f"or has no stride; strided layers: {left}"
    )
