"""Numbers and flags of a caller: every form that means the same is taken, and nothing else."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from outrider.errors import ConfigError
from outrider.records.display import shown
from outrider.records.values import flag, native, real, whole


@pytest.mark.parametrize("given", [7, np.int64(7), np.uint8(7), np.array(7), torch.tensor(7)])
def test_whole_numbers(given: object) -> None:
    found = whole("n", given, ConfigError)
    assert found == 7
    assert type(found) is int


@pytest.mark.parametrize(
    "given", [True, np.bool_(True), torch.tensor(True), 7.0, math.nan, "7", None, [7], torch.tensor([7]), 1j]
)
def test_what_is_no_whole_number(given: object) -> None:
    with pytest.raises(ConfigError, match=r"^n=.* must be a whole number$"):
        whole("n", given, ConfigError)


@pytest.mark.parametrize("given", [0.5, np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_numbers(given: object) -> None:
    found = real("x", given, ConfigError)
    assert found == 0.5
    assert type(found) is float


def test_a_number_may_be_infinite_or_whole() -> None:
    assert real("x", math.inf, ConfigError) == math.inf
    assert real("x", 3, ConfigError) == 3.0


@pytest.mark.parametrize("given", [math.nan, torch.tensor(math.nan), True, "0.5", None, 10**400, 1j, [0.5]])
def test_what_is_no_number(given: object) -> None:
    with pytest.raises(ConfigError, match=r"^x=.* must be a number that a float can hold$"):
        real("x", given, ConfigError)


def test_flags() -> None:
    assert flag("f", True, ConfigError) is True
    assert flag("f", np.bool_(False), ConfigError) is False
    for given in ("false", 0, None):
        with pytest.raises(ConfigError, match="must be True or False"):
            flag("f", given, ConfigError)


def test_native_leaves_other_things_alone() -> None:
    assert native(torch.tensor([[1, 2]])) == [[1, 2]]
    assert native("a") == "a"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError


def test_shown_is_short_and_never_fails() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert shown(10**5000) == "2**16609"
    assert shown(-(2**200)) == "-2**200"
    assert shown(Broken()).startswith("<Broken instance")
    assert shown([10**5000]) == "a list"
    assert len(shown(torch.zeros(4000))) <= 80
    assert len(shown({str(n): "x" * 50 for n in range(100)})) <= 80
