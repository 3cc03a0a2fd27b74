"""The only place that imports optional packages, and says how to get one that is missing."""

import importlib
from types import ModuleType

__all__ = ["MissingExtraError", "require"]

# Import name -> (name on PyPI, extra of fusedtricks that installs it).
_PACKAGES = {
    "sklearn": ("scikit-learn", "demo"),
    "scipy": ("scipy", "demo"),  # comes with scikit-learn
    "matplotlib": ("matplotlib", "demo"),
    "rich": ("rich", "demo"),
    "torchvision": ("torchvision", "vision"),
    "timm": ("timm", "vision"),
    "optuna": ("optuna", "search"),
}


class MissingExtraError(ImportError):
    """An optional package is needed and not installed."""


def require(module: str) -> ModuleType:
    """Import an optional package, or a module inside one.

    Args:
        module: Dotted import name, such as "sklearn.datasets".

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the package cannot be imported; the text names the extra and the
            command that installs it.

    Example:
        >>> require("rich.console").Console().print("hello")
        hello
    """
    package, extra = _PACKAGES[module.partition(".")[0]]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{package} is needed here and cannot be imported ({error}); install it with the extra "
            f"{extra!r}: pip install 'fusedtricks[{extra}]'"
        ) from error
