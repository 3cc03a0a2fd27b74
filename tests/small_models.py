"""Small models with the structures on which grouping by name goes wrong."""

import torch
from torch import nn


class Bottleneck(nn.Module):
    """A residual block whose shortcut holds a normalisation called `downsample.1`."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.downsample = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))


class TinyResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Bottleneck(4), Bottleneck(4))
        self.layer2 = nn.Sequential(Bottleneck(4))
        self.fc = nn.Linear(4, 10)


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, add_bias_kv=True)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


class Encoder(nn.Module):
    """Holds the stack one level below the model, as torchvision's and HF's models do."""

    def __init__(self, width: int):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.zeros(1, 5, width))
        self.blocks = nn.ModuleList([Block(width), Block(width), Block(width)])
        self.ln = nn.LayerNorm(width)


class TinyTransformer(nn.Module):
    """A language model with tied input and output embeddings."""

    def __init__(self, tied: bool = True):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.gain = nn.Parameter(torch.ones(()))
        self.tokens = nn.Embedding(11, 8)
        self.segments = nn.Embedding(2, 8)
        self.encoder = Encoder(8)
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
