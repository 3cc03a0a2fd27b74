"""SGDW: SGD with decoupled weight decay."""

from typing import Any

from fusedtricks.optim.sgd import SGD

__all__ = ["SGDW"]


class SGDW(SGD):
    """SGDW: `SGD` whose weight_decay scales the parameter by 1 - lr * weight_decay.

    The signature is that of `SGD`. Algorithm 1 of the paper keeps the learning rate inside the
    momentum buffer, so that a change of lr acts with a lag; here it stays outside, as in
    torch.optim.SGD. `decouple_lr=True` gives the paper's decay, which follows the schedule alone.

    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 1.
    """

    def _decoupled(self, group: dict[str, Any]) -> bool:
        return True
