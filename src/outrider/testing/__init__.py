"""Tools for tests, ours and yours: tiny targets, proposers whose acceptance is known, and the contract.

A third-party method runs the same checks as ours:

    from outrider.testing import check_contract

    def test_my_method() -> None:
        print(check_contract(MyProposer))
"""

from outrider.testing.checked import ContractError
from outrider.testing.contract import ContractReport, assert_lossless, check_contract
from outrider.testing.play import Case, draw_case
from outrider.testing.restless import Metronome, Restless
from outrider.testing.scripted import Adversary, Oracle, RandomTrees, Scripted
from outrider.testing.simulation import Simulation, TableCosts
from outrider.testing.tiny import tiny_experts, tiny_gemma3, tiny_llama4, tiny_spec, tiny_target, tiny_weights

__all__ = [
    "Adversary",
    "Case",
    "ContractError",
    "ContractReport",
    "Metronome",
    "Oracle",
    "RandomTrees",
    "Restless",
    "Scripted",
    "Simulation",
    "TableCosts",
    "assert_lossless",
    "check_contract",
    "draw_case",
    "tiny_experts",
    "tiny_gemma3",
    "tiny_llama4",
    "tiny_spec",
    "tiny_target",
    "tiny_weights",
]
