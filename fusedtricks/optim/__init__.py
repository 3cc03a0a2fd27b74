"""Drop-in replacements of torch.optim classes with fused steps."""

from fusedtricks.optim.adagrad import Adagrad
from fusedtricks.optim.adam import Adam
from fusedtricks.optim.adamw import AdamW
from fusedtricks.optim.base import Extras, FusedOptimizer
from fusedtricks.optim.grouping import format_table, param_groups
from fusedtricks.optim.rmsprop import RMSprop
from fusedtricks.optim.sgd import SGD
from fusedtricks.optim.sgdw import SGDW

RMSProp = RMSprop

__all__ = [
    "SGD",
    "SGDW",
    "Adagrad",
    "Adam",
    "AdamW",
    "Extras",
    "FusedOptimizer",
    "RMSProp",
    "RMSprop",
    "format_table",
    "param_groups",
]
