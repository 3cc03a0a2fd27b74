"""Residual networks written out from the papers, as functions of a state dict."""

import math

import torch
from torch import nn
from torch.nn import functional

EPS = 1e-5  # Of batch normalisation, in all of them.


def randomize(model):
    """Return a model in float64 whose normalisations are those of no fresh one."""
    model = model.double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model


def subsample(features, stride):
    """Keep the first of every `stride` pixels."""
    return features[:, :, ::stride, ::stride]


def blurrer(filt_size):
    """Return what anti-aliasing puts in the place of `subsample`."""
    row = [math.comb(filt_size - 1, k) for k in range(filt_size)]
    row = torch.tensor(row, dtype=torch.float64) / 2 ** (filt_size - 1)
    pads = [(filt_size - 1) // 2, filt_size // 2] * 2

    def blur(features, stride):
        if stride == 1:
            return features
        padded = functional.pad(features, pads, mode="reflect")
        planes = padded.flatten(0, 1)[:, None]
        blurred = functional.conv2d(planes, (row[:, None] * row)[None, None])
        return subsample(blurred.view(*features.shape), stride)

    return blur


def residual_network(
    state, images, variant, stem, *, training, down=subsample, stem_down=subsample
):
    """Compute all strided layers densely, and leave pixels out with `down` where they are used.

    `stem_down` is for the first convolution. Without a blur, variant D averages 2x2 pixels, fewer
    at the end of an odd side. Then, the statistics of a batch would be others: not for `training`.
    """

    def conv(name, features):
        weight = state[f"{name}.weight"]
        return functional.conv2d(features, weight, padding=weight.shape[-1] // 2)

    def norm(name, features):
        if training:
            mean = features.mean((0, 2, 3), keepdim=True)
            variance = features.var((0, 2, 3), correction=0, keepdim=True)
        else:
            mean = state[f"{name}.running_mean"][:, None, None]
            variance = state[f"{name}.running_var"][:, None, None]
        weight, bias = (state[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return (features - mean) / (variance + EPS).sqrt() * weight + bias

    def average(features):
        sums = functional.pad(features, (0, 1, 0, 1))
        counts = functional.pad(torch.ones_like(features), (0, 1, 0, 1))
        sums, counts = (
            sum(
                t[:, :, i : t.shape[2] - 1 + i, j : t.shape[3] - 1 + j]
                for i in (0, 1)
                for j in (0, 1)
            )
            for t in (sums, counts)
        )
        return subsample(sums / counts, 2)

    def shortcut(name, features, stride):
        if variant == "D" and f"{name}.1.weight" in state:
            if stride == 2:
                features = average(features) if down is subsample else down(features, 2)
            return norm(f"{name}.2", conv(f"{name}.1", features))
        if f"{name}.0.weight" in state:
            return norm(f"{name}.1", conv(f"{name}.0", down(features, stride)))
        return features

    def block(name, features, stride):
        has_three = f"{name}.conv3.weight" in state
        strided = 2 if has_three and variant != "A" else 1
        residual = features
        for index in range(1, 4 if has_three else 3):
            residual = norm(f"{name}.bn{index}", conv(f"{name}.conv{index}", residual))
            if index < (3 if has_three else 2):
                residual = down(residual.relu(), stride if index == strided else 1)
        return (residual + shortcut(f"{name}.downsample", features, stride)).relu()

    stride = 1 if stem == "small" else 2
    if "conv1.0.weight" in state:
        features = stem_down(norm("conv1.1", conv("conv1.0", images)).relu(), stride)
        features = norm("conv1.4", conv("conv1.3", features)).relu()
        features = norm("bn1", conv("conv1.6", features)).relu()
    else:
        features = stem_down(norm("bn1", conv("conv1", images)).relu(), stride)
    if stem != "small":
        padded = functional.pad(features, (1, 1, 1, 1), value=-math.inf)
        windows = padded.unfold(2, 3, 1).unfold(3, 3, 1)
        features = down(windows.amax((-2, -1)), 2)
    blocks = sorted({tuple(key.split(".")[:2]) for key in state if key.startswith("layer")})
    for stage, index in blocks:
        stride = 2 if stage != "layer1" and index == "0" else 1
        features = block(f"{stage}.{index}", features, stride)
    return functional.linear(features.mean((2, 3)), state["fc.weight"], state["fc.bias"])
