"""Checks of numbers, flags and text from a caller; a wrong value is refused in one sentence.

NumPy and PyTorch scalars count as the numbers they hold. A bool is not a number, a fraction is not a whole number, and
NaN is not a number at all. Example: `whole("max_batch", np.int64(4), ConfigError)` is 4; 4.0, True and "4" are refused.
"""

import math
import operator
from numbers import Real
from typing import Any

import numpy as np
import torch

from outrider.errors import OutriderError, RequestError
from outrider.records.display import shown

__all__ = ["check_text", "flag", "native", "real", "whole"]


def native(value: Any) -> Any:
    """Return a tensor, array or NumPy scalar as Python numbers and lists; other values unchanged."""
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray | np.generic) else value


def whole(name: str, value: Any, error: type[OutriderError]) -> int:
    """Return the argument `name` as an int; raise `error` unless it is a whole number."""
    number = native(value)
    if not isinstance(number, bool):
        try:
            return operator.index(number)
        except TypeError:
            pass
    raise error(f"{name}={shown(value)} must be a whole number")


def real(name: str, value: Any, error: type[OutriderError]) -> float:
    """Return the argument `name` as a float, possibly infinite; raise `error` unless it is a number."""
    number = native(value)
    if isinstance(number, Real) and not isinstance(number, bool):
        try:
            if not math.isnan(number):
                return float(number)
        except OverflowError:
            pass
    raise error(f"{name}={shown(value)} must be a number that a float can hold")


def flag(name: str, value: Any, error: type[OutriderError]) -> bool:
    """Return the argument `name` as a bool; raise `error` unless it is one."""
    known = native(value)
    if isinstance(known, bool):
        return known
    raise error(f"{name}={shown(value)} must be True or False")


def check_text(text: str, name: str) -> None:
    """Refuse text with a lone surrogate, which no tokenizer reads.

    Raises:
        RequestError: naming the place.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        if 0xDC80 <= half <= 0xDCFF:  # surrogateescape: a byte of an argument or file name that is not UTF-8
            raise RequestError(
                f"{name} holds the byte 0x{half - 0xDC00:02X} at character {error.start}, which is not UTF-8; give text"
                " in UTF-8"
            ) from error
        raise RequestError(
            f"{name} holds half of a surrogate pair, U+{half:04X}, at character {error.start}, which"
            " is no text; remove it, or read the text as UTF-8"
        ) from error
