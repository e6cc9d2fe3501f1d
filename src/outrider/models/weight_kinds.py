"""Kinds of weights: what a user may ask for, who computes with them, and the bytes that a weight takes in each.

    "stored"          as the file holds them: a GGUF file's types, a published checkpoint's codes, else plain numbers
    "bf16"            widened to plain numbers of the target's dtype
    "int8", "int4"    a directory in floating point, quantised while loading

A model's kinds are one line, those with the most numbers first: "Q4_1, Q8_0".

Example: `BYTES_PER_WEIGHT["Q4_1"]` is 0.625: 16 bytes of codes, a scale and a minimum in fp16 for 32 weights.
"""

from collections.abc import Mapping
from typing import Final, Literal, get_args

from outrider.errors import ConfigError, nearest

__all__ = [
    "BACKENDS",
    "BYTES_PER_WEIGHT",
    "KV_DTYPES",
    "MADE_KINDS",
    "WEIGHTS",
    "Backend",
    "KvDtype",
    "WeightsChoice",
    "checked_kinds",
    "is_quantised",
]

WeightsChoice = Literal["stored", "bf16", "int8", "int4"]
WEIGHTS: Final[tuple[str, ...]] = get_args(WeightsChoice)
Backend = Literal["auto", "native", "hf", "llama_cpp"]
BACKENDS: Final[tuple[str, ...]] = get_args(Backend)
"""Our decoder, `transformers`, or llama.cpp; "auto" is our decoder where it supports the model, else `transformers`."""
KvDtype = Literal["auto", "int8"]
KV_DTYPES: Final[tuple[str, ...]] = get_args(KvDtype)
"""Keys and values in the target's dtype, or in codes of 8 bits with a scale for each head of a position."""

MADE_KINDS: Final[Mapping[str, str]] = {"int8": "int8", "int4": "int4, int8"}
"""Kinds of a model that is quantised while loading: its embedding and output head have 8 bits."""
PLAIN_BYTES: Final[Mapping[str, float]] = {
    "bf16": 2,
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "BF16": 2,
    "F16": 2,
    "F32": 4,
}
BYTES_PER_WEIGHT: Final[Mapping[str, float]] = {
    **PLAIN_BYTES,
    "int8": 34 / 32,
    "int4": 18 / 32,
    "Q8_0": 34 / 32,
    "Q4_0": 18 / 32,
    "Q4_1": 20 / 32,
    "Q5_0": 22 / 32,
    "Q5_1": 24 / 32,
    "IQ4_NL": 18 / 32,
    "MXFP4": 17 / 32,
    "Q2_K": 84 / 256,
    "Q3_K": 110 / 256,
    "Q4_K": 144 / 256,
    "Q5_K": 176 / 256,
    "Q6_K": 210 / 256,
    "IQ4_XS": 136 / 256,
}
"""Bytes of a weight in a file, its share of scales and minima included."""


def is_quantised(kind: str) -> bool:
    """Return whether weights of this kind are codes, multiplied as integers."""
    return kind not in PLAIN_BYTES


def checked_kinds(kinds: str) -> tuple[str, ...]:
    """Return the kinds that a line names.

    >>> checked_kinds("Q4_1, Q8_0")
    ('Q4_1', 'Q8_0')

    Raises:
        ConfigError: for an unknown kind.
    """
    found = tuple(kind.strip() for kind in kinds.split(","))
    for kind in found:
        if kind not in BYTES_PER_WEIGHT:
            raise ConfigError(f"unknown kind of weights {kind!a}{nearest(kind, BYTES_PER_WEIGHT)}")
    return found
