"""Triton's interpreter, which runs the kernels on the CPU in Python, made fit for a test run."""

import os
from typing import Any


def prepare() -> None:
    """Switch the interpreter on; neither Triton nor fusedtricks may be imported yet."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    interpreter._patch_lang = _patch_once(interpreter)
    interpreter.InterpreterBuilder.cast_impl = _rounding_cast(interpreter)


def _patch_once(interpreter: Any) -> Any:
    """Return what makes the builtins of the language callable, in a faster form.

    Every call of a jitted function from a kernel does it once more, which takes longer than what
    the function computes.
    """
    import triton.language as tl

    patch = interpreter._patch_lang
    original = tl.load

    def patch_once(function: Any) -> Any:
        languages = [v for v in function.__globals__.values() if v is tl or v is tl.core]
        if languages and all(language.load is not original for language in languages):
            return interpreter._LangPatchScope()
        scope = patch(function)
        # Triton 3.6 and NumPy 2.4: int() no longer takes an array of one element.
        tl.tensor.__index__ = lambda self: int(self.handle.data.squeeze())
        # A GPU would stop at an address that is not what the hint promises.
        tl.multiple_of = _checked_multiple_of
        return scope

    return patch_once


def _checked_multiple_of(values: Any, divisors: Any) -> Any:
    """Raise where a hint is wrong; the interpreter itself ignores hints."""
    divisor = divisors[0] if isinstance(divisors, (tuple, list)) else divisors
    remainders = values.handle.data % getattr(divisor, "value", divisor)
    if remainders.any():
        raise ValueError(f"multiple_of({divisor}) is wrong for {values.handle.data}")
    return values


def _rounding_cast(interpreter: Any) -> Any:
    """Return the conversion between types; bfloat16 is rounded as GPUs do, not truncated."""
    import torch
    import triton.language as tl

    cast = interpreter.InterpreterBuilder.cast_impl
    floats = (tl.float32, tl.float64)

    def rounding_cast(self: Any, value: Any, target: Any) -> Any:
        source, result = value.dtype.scalar, target.scalar
        if source in floats and result == tl.bfloat16:
            rounded = torch.from_numpy(value.data.copy()).bfloat16()
            data = rounded.view(torch.uint16).numpy()
        elif source == tl.bfloat16 and result in floats:
            wide = torch.from_numpy(value.data.copy()).view(torch.bfloat16)
            data = (wide.double() if result == tl.float64 else wide.float()).numpy()
        else:
            return cast(self, value, target)
        return interpreter.TensorHandle(data, result)

    return rounding_cast
