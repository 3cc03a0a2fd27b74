"""Layers, architectures, initialisations and regularisation of weights."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.optim import Optimizer

from bench.tricks.arm import Arm
from bench.tricks.training import (
    LR,
    MOMENTUM,
    N_CLASSES,
    N_UPDATES,
    WEIGHT_DECAY,
    Problem,
    Update,
    fit,
    plain_loss,
    sgd,
)
from fusedtricks import optim
from fusedtricks.lr_scheduler import Piecewise
from fusedtricks.nn import (
    DropoutSchedule,
    FixupResNet,
    OrthogonalDecay,
    ResNet,
    ShakeDrop,
    ShakeShake,
    ShakeShakeResNet,
    apply_blurpool,
    fixup_param_groups,
    linear_keep_probabilities,
    lsuv_,
    orthogonal_penalty,
    zero_gamma_,
)

__all__ = ["ARMS"]

_Layer = Callable[[nn.Module], nn.Module]


def _changed(name: str, settings: str, change: Callable[[nn.Module], object]) -> Arm:
    """Return the arm whose network is changed in place before training."""
    return Arm(name, settings, partial(fit, prepare=lambda model, _: change(model)))


def _swapped(name: str, settings: str, kind: type[nn.Module], layer: _Layer) -> Arm:
    """Return the arm whose layers of a kind are others."""
    return _changed(name, settings, partial(_swap, kind=kind, layer=layer))


def _swap(model: nn.Module, kind: type[nn.Module], layer: _Layer) -> None:
    for owner in list(model.modules()):
        for name, child in owner.named_children():
            if isinstance(child, kind):
                setattr(owner, name, layer(child))


def _initialised(name: str, settings: str, initialise: Callable[[nn.Module], object]) -> Arm:
    def change(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                initialise(module)

    return _changed(name, settings, change)


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [model.layer1[0], model.layer2[0], model.layer3[0]]


def _add_dropout(model: nn.Module) -> None:
    model.fc = nn.Sequential(nn.Dropout(0.5), model.fc)


def _early_dropout(problem: Problem) -> nn.Module:
    schedules = []

    def prepare(model: nn.Module, _: Tensor) -> None:
        _add_dropout(model)
        schedules.append(DropoutSchedule(model, Piecewise((N_UPDATES // 2,), (1.0, 0.0))))

    return fit(problem, prepare=prepare, after_step=lambda _: schedules[0].step())


def _add_shake_drop(model: nn.Module) -> None:
    blocks = _blocks(model)
    keep = linear_keep_probabilities(len(blocks), 0.5)
    for block, probability in zip(blocks, keep, strict=True):
        block.bn2 = nn.Sequential(block.bn2, ShakeDrop(probability))


def _coupled(update: Update) -> Tensor:
    return plain_loss(update) + 1e-3 * orthogonal_penalty(update.model)


def _decoupled(model: nn.Module) -> Optimizer:
    optimizer = sgd(model)
    # What momentum would make of the coupled strength in the long run.
    OrthogonalDecay(optimizer, model, 1e-3 / (1 - MOMENTUM))
    return optimizer


def _fixup(model: nn.Module) -> Optimizer:
    groups = fixup_param_groups(model, lr=LR, weight_decay=WEIGHT_DECAY)
    return optim.SGD(groups, lr=LR, momentum=MOMENTUM)


def _resnet_d() -> nn.Module:
    return ResNet(
        "basic",
        (1, 1, 1),
        widths=(16, 32, 64),
        variant="D",
        stem="small",
        in_channels=1,
        n_classes=N_CLASSES,
    )


def _two_branches(forward: str, backward: str) -> Callable[[Problem], nn.Module]:
    def model() -> nn.Module:
        shake = ShakeShake(forward=forward, backward=backward, per="image")
        return ShakeShakeResNet(1, N_CLASSES, width=16, blocks=(1, 1, 1), shake=shake)

    return partial(fit, model=model)


ARMS = [
    _swapped("leaky_relu", "slope 0.1", nn.ReLU, lambda _: nn.LeakyReLU(0.1)),
    _swapped("tanh", "instead of ReLU", nn.ReLU, lambda _: nn.Tanh()),
    _swapped("sigmoid", "instead of ReLU", nn.ReLU, lambda _: nn.Sigmoid()),
    _swapped(
        "group_norm",
        "4 groups, instead of batch norm",
        nn.BatchNorm2d,
        lambda norm: nn.GroupNorm(4, norm.num_features),
    ),
    _swapped(
        "layer_norm",
        "over all maps of a sample",
        nn.BatchNorm2d,
        lambda norm: nn.GroupNorm(1, norm.num_features),
    ),
    _swapped(
        "instance_norm",
        "affine",
        nn.BatchNorm2d,
        lambda norm: nn.InstanceNorm2d(norm.num_features, affine=True),
    ),
    _swapped("no_norm", "none, otherwise the same", nn.BatchNorm2d, lambda _: nn.Identity()),
    _initialised("xavier", "uniform", lambda conv: nn.init.xavier_uniform_(conv.weight)),
    _initialised("torch_default_init", "that of nn.Conv2d", lambda conv: conv.reset_parameters()),
    _changed("dropout", "p=0.5 before the classifier", _add_dropout),
    Arm("early_dropout", "p=0.5 in the first half", _early_dropout),
    Arm("resnet_d", "shortcuts that average", partial(fit, model=_resnet_d)),
    _changed("zero_gamma", "in all blocks", zero_gamma_),
    _changed(
        "blurpool",
        "apply_blurpool, filt_size=3",
        lambda model: apply_blurpool(model, filt_size=3, verbose=False),
    ),
    Arm("lsuv", "on 100 images", partial(fit, prepare=lsuv_)),
    Arm("orthogonal", "1e-3 * orthogonal_penalty", partial(fit, loss=_coupled)),
    Arm("orthogonal_decoupled", "OrthogonalDecay, 1e-2", partial(fit, optimizer=_decoupled)),
    _changed("shake_drop", "keep 1 - l / (2 L)", _add_shake_drop),
    Arm(
        "fixup",
        "FixupResNet, without normalisation",
        partial(
            fit,
            model=lambda: FixupResNet((1, 1, 1), n_classes=N_CLASSES, in_channels=1),
            optimizer=_fixup,
        ),
    ),
    Arm("two_branches", "ShakeShakeResNet, alpha = beta = 0.5", _two_branches("even", "even")),
    Arm(
        "shake_shake",
        "forward and backward, per image",
        _two_branches("shake", "shake"),
        "two_branches",
    ),
]
