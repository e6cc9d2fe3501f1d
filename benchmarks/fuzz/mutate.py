"""Damage: of JSON values, by what people and tools get wrong, and of bytes, by what disks and networks do."""

import json
import random
from copy import deepcopy
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, -(2**63), 10**30, 10**400),
    *(0.0, -0.5, 0.5, 1.5, 1e-30, 1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "0",
        "64",
        "true",
        "None",
        "nan",
        "../x",
        "/etc/passwd",
        "\u0000",
        "\u001b[31mred",
        "\ud800",
        "a" * 5000,
        "é" * 40,
    ),
    *([], {}, [None], ["x", 1], [[[]]], {"a": {"b": []}}, [-1], [10**20], {"": None}, {"type": "yarn"}),
)
"""Values that do not belong where they are put."""
ODD_KEYS = ("", "x", "vocab_size", "type", "\u001b[2J", "\ud800", "__class__", "k" * 3000, "é")


def mutate_json(value: Any, rng: random.Random, changes: int | None = None) -> Any:
    """Return a copy of a JSON value with one to four changes, each somewhere in it."""
    copy = json.loads(json.dumps(value))
    for _ in range(changes or rng.choice((1, 1, 1, 2, 3, 4))):
        places = list(_places(copy))
        if not places:
            return _odd(rng)
        holder, key = rng.choice(places)
        _change(holder, key, places, rng)
    return copy


def json_text(value: Any, rng: random.Random) -> bytes:
    """Return a JSON value as a file; one in eight is damaged as text too."""
    data = json.dumps(value, indent=rng.choice((None, 2)), ensure_ascii=rng.random() < 0.7)
    encoded = data.encode("utf-8", "surrogatepass")
    return encoded if rng.random() < 7 / 8 else mutate_text(encoded, rng)


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """Return a text file in one of the states in which such files arrive."""
    match rng.randrange(10):
        case 0:
            return b""
        case 1:
            return data[: rng.randrange(len(data) + 1)]
        case 2:
            return b"\xef\xbb\xbf" + data
        case 3:
            return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-16-le", "utf-32")))
        case 4:
            return b"[" * 100_000 + data
        case 5:
            return b"<!DOCTYPE html><html><body>404: Not Found</body></html>"
        case 6:
            return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
        case 7:
            return data + data
        case 8:
            return b"[" + data + b"]"
        case _:
            return mutate_bytes(data, rng)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with flipped, lost, repeated or random parts."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        size = len(damaged)
        start = rng.randrange(size + 1)
        length = min(size - start, rng.choice((1, 1, 2, 4, 8, 64, size)))
        match rng.randrange(6):
            case 0 if length:
                damaged[start] ^= 1 << rng.randrange(8)
            case 1:
                damaged[start : start + length] = rng.randbytes(length)
            case 2:
                del damaged[start : start + length]
            case 3:
                damaged[start:start] = damaged[start : start + length]
            case 4:
                damaged[start : start + length] = bytes([rng.choice((0, 255))]) * length
            case _:
                damaged[start:start] = rng.randbytes(rng.choice((1, 8, 64)))
    return bytes(damaged)


def _odd(rng: random.Random) -> Any:
    return deepcopy(rng.choice(ODD_VALUES))  # further changes go into it


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _change(holder: Any, key: Any, places: list[Any], rng: random.Random) -> None:
    found = holder[key]
    match rng.randrange(9):
        case 0 | 1 | 2:
            holder[key] = _odd(rng)
        case 3:
            del holder[key]
        case 4:
            other, place = rng.choice(places)
            holder[key] = json.loads(json.dumps(other.get(place) if isinstance(other, dict) else other))
        case 5 if isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 1e300:
            holder[key] = rng.choice((str(found), -found, found + 1, found * 2, found / 2, float(found), [found]))
        case 6 if isinstance(found, str):
            holder[key] = rng.choice((found[:-1], found + "x", found.upper(), found * 2, [found], found[::-1]))
        case 7 if isinstance(holder, dict):
            holder[rng.choice(ODD_KEYS)] = holder.pop(key)
        case 8 if isinstance(holder, dict):
            holder[rng.choice(ODD_KEYS)] = _odd(rng)
        case _:
            holder[key] = [found, found] if rng.random() < 0.5 else {str(key)[:20]: found}
