"""What is written on the command line, read."""

from pathlib import Path

import pytest

from outrider.errors import ConfigError
from outrider.planning.acceptance_profile import AcceptanceProfile
from outrider.planning.config import PlanRequest
from outrider.planning.request import acceptances_of, parse_acceptance, parse_nodes

CHAIN = AcceptanceProfile.chain


@pytest.mark.parametrize(
    ("text", "method", "acceptance"),
    [
        ("0.8", None, CHAIN([0.8])),
        ("0.8,0.6@0.4", None, CHAIN([0.8, 0.6], coverage=0.4)),
        ("m=0.8", "m", CHAIN([0.8])),
        ("m:num_nodes=2=0.8", "m:num_nodes=2", CHAIN([0.8])),
        ("0.7/0.1,0.6", None, AcceptanceProfile(ranks=((0.7, 0.1), (0.6,)))),
    ],
)
def test_acceptances(text: str, method: str | None, acceptance: AcceptanceProfile) -> None:
    assert parse_acceptance(text) == (method, acceptance)


@pytest.mark.parametrize("text", ["", "high", "0.8,", "0.8@", "m=", "0.8/0.1/x"])
def test_what_is_no_acceptance(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a list of shares; write 0\.8,0\.6"):
        parse_acceptance(text)


def test_who_gets_which_acceptance() -> None:
    found = acceptances_of(["0.5", "a=0.9"], ["a", "b", "c"], {"b": CHAIN([0.7]), "a": CHAIN([0.1])})
    assert found == {"a": CHAIN([0.9]), "b": CHAIN([0.7]), "c": CHAIN([0.5])}


def test_missing_and_stray_acceptances() -> None:
    with pytest.raises(ConfigError, match=r"no acceptance of 'b'; add b=0\.8"):
        acceptances_of(["a=0.9"], ["a", "b"], {})
    with pytest.raises(ConfigError, match="of 'lookup', which is not planned; did you mean 'lookups'"):
        acceptances_of(["lookup=0.9"], ["lookups"], {})


def test_nodes() -> None:
    assert parse_nodes(["0..3", "8", "2"]) == (0, 1, 2, 3, 8)
    assert parse_nodes(["5"]) == (5,)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["many"], "neither a number nor a range"),
        (["1..x"], "neither a number nor a range"),
        (["4..2"], "between 0 and 64"),
        (["-1"], "between 0 and 64"),
        (["65"], "between 0 and 64"),
        (["0"], "no nodes to plan for"),
        ([], "no nodes to plan for"),
    ],
)
def test_what_are_no_nodes(texts: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_nodes(texts)


def test_a_profile_knows_its_own_keys_and_values() -> None:
    with pytest.raises(ConfigError, match="measure it with outrider profile --kv-dtype int8"):
        PlanRequest(costs=Path("costs.json"), kv_dtype="int8")
