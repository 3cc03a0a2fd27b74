"""A network for the tests of LSUV, and what they measure of it."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Registers its layers in another order than it runs them, and never runs one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(11, 5)
        self.unused = nn.Linear(3, 3)
        self.second = nn.Conv2d(7, 11, 3, bias=False)
        self.first = nn.Conv2d(3, 7, 3, padding=1)
        self.norm = nn.BatchNorm2d(11)
        self.dropout = nn.Dropout(0.3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.second(self.first(images).relu())
        hidden = self.dropout(self.norm(hidden).relu())
        return self.head(hidden.mean(dim=(2, 3)))


def measure(model: nn.Module, *inputs: Tensor) -> dict[str, float]:
    """Return the population standard deviation of every conv's and linear layer's output."""
    stds: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):

            def note(module: nn.Module, args: tuple, output: Tensor, name: str = name) -> None:
                values = output.double()
                stds.setdefault(name, (values - values.mean()).square().mean().sqrt().item())

            handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    return stds


def scramble(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(7).add_(0.3)
    return model
