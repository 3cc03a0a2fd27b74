"""Two processes that train with all tricks, each on its own part of the data."""

import torch
from torch.nn.parallel import DistributedDataParallel

from fusedtricks import data, losses, nn, optim


def digest(model):
    """Return every parameter's sum and sum of squares, exactly."""
    return [[p.double().sum().item(), p.double().square().sum().item()] for p in model.parameters()]


def train_with_all_tricks(rank):
    """Train for a few steps; return what this process ends with."""
    # Other weights in each process, which DistributedDataParallel makes equal.
    torch.manual_seed(rank)
    model = nn.ResNet(
        "basic", (1, 1), widths=(6, 8), variant="C", stem="small", in_channels=1, n_classes=3
    )
    model.layer1[0].bn2 = torch.nn.Sequential(model.layer1[0].bn2, nn.ShakeDrop(0.6))
    model = DistributedDataParallel(nn.apply_blurpool(model, filt_size=4, verbose=False))
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.7, clip_grad_norm=3.0)
    nn.OrthogonalDecay(optimizer, model, strength=0.01)
    ema = nn.ModelEMA(model, decay=0.6, buffers="copy")
    loss_fn, flooding = losses.CrossEntropyLoss(label_smoothing=0.03), losses.Flooding(0.9)
    generator = torch.Generator().manual_seed(100 + rank)
    tricks = data.Chain(data.MixUp(0.4), data.Cutout(3))
    levels = []
    for _ in range(6):
        images = torch.rand(5, 1, 9, 7, generator=generator)
        labels = torch.randint(3, (5,), generator=generator)
        images, targets = tricks(images, labels, generator=generator)
        optimizer.zero_grad()
        flooding(loss_fn(model(images), targets)).backward()
        optimizer.step()
        ema.update_parameters(model)
        levels.append(flooding.loss.item())
    return {
        "model": digest(model),
        "ema": digest(ema),
        "levels": levels,
        "images": images.sum().item(),
    }
