"""What `outrider export` writes for vLLM drafts there as it does here: every shipped head, on the same prompts.

Each test starts a vLLM server with one head, asks eight prompts greedily, and compares texts, acceptance by position
and single steps with our engine's (`agreement.py`). Two bugs that exports are known for are planted into written files,
and the same comparison must fail on them. `make test-vllm` runs this; see docs/guides/vllm.md.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agreement import Played, check_drafts, rates_of, shared_steps, wilson
from both_engines import (
    NUM_NODES,
    Parting,
    Serving,
    Ties,
    group_of_prompts,
    plain_answers,
    play_ours,
    play_vllm,
    prompts_of,
    shift_layer_ids,
    shift_vocabulary,
    write_normed_mtp,
)

from outrider.bench.cells import Group
from outrider.cli import main
from outrider.errors import ConfigError
from outrider.export.exported import Export, export_checkpoint
from outrider.formats.locate import locate
from outrider.target import Target
from outrider.targets import load_target
from outrider.vllm.environment import Vllm, find_vllm

ASKED = "OUTRIDER_TEST_VLLM"
pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not os.environ.get(ASKED), reason=f"starts vLLM servers, for minutes: make test-vllm ({ASKED}=1)"
    ),
]

METHODS = {"eagle3": "eagle3", "draft": "draft_model", "pard": "pard", "medusa": "medusa"}
SETTINGS: dict[str, dict[str, Any]] = {"medusa": {"width": 1}}
Plant = Callable[[Path, int], None]
BUGS: dict[str, Plant] = {"layer ids": shift_layer_ids, "vocabulary": shift_vocabulary}


@dataclass(frozen=True)
class Ours:
    """Our side: the target, the prompts, and plain decoding's answers."""

    target: Target
    group: Group
    plain: Sequence[tuple[int, ...]]
    ties: Ties

    def play(self, method: str, checkpoint: Path) -> Played:
        """Our engine with a head; its text must be plain decoding's."""
        settings = {"checkpoint": str(checkpoint), **SETTINGS.get(method, {})}
        played = play_ours(self.target, method, settings, self.group, [answer[0] for answer in self.plain])
        assert list(played.answers) == list(self.plain)
        return played

    def partings(self, theirs: Played) -> list[Parting | None]:
        """Where each of their answers leaves ours."""
        prompts = prompts_of(self.group, self.target)
        answers = zip(prompts, self.plain, theirs.answers, strict=True)
        return [self.ties.parting(prompt, want, got) for prompt, want, got in answers]


@pytest.fixture(scope="module")
def vllm() -> Vllm:
    try:
        return find_vllm()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def ours(vllm: Vllm, smollm2_dir: Path) -> Iterator[Ours]:
    """Drafters in the target's own dtype: that is what an export holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTRIDER_DRAFT_WEIGHTS", "target")
        target, group = load_target("smollm2-135m", device="cpu"), group_of_prompts()
        yield Ours(target, group, plain_answers(target, prompts_of(group, target)), Ties(target))


@pytest.fixture
def serving(vllm: Vllm, ours: Ours, tmp_path: Path) -> Serving:
    return Serving(vllm=vllm, target=ours.target, group=ours.group, directory=tmp_path / "served")


def exported(checkpoint: Path, directory: Path) -> Path:
    """By the command, as a user would."""
    assert main(["export", str(checkpoint), "--output", str(directory), "--num-nodes", str(NUM_NODES)]) == 0
    return directory


def places(partings: Sequence[Parting | None]) -> list[int | None]:
    return [None if parting is None else parting.position for parting in partings]


def tell(name: str, ours: Played, theirs: Played, partings: Sequence[Parting | None]) -> None:
    """What was seen, for whoever reads the output."""
    shared = shared_steps(ours, theirs, NUM_NODES, places(partings))
    margins = [
        f"{parting.margin:.2f} (noise {parting.noise:.2f})" for parting in partings if parting and parting.margin
    ]
    ends = [wilson(count, theirs.num_drafts) for count in theirs.num_accepted_per_pos]
    print(f"\n{name}")
    print(f"  texts equal       {partings.count(None)} of {len(partings)}, the others at margins {margins}")
    print(f"  acceptance here   {[f'{rate:.3f}' for rate in rates_of(ours)]} of {ours.num_drafts} drafts")
    print(f"  acceptance vLLM   {[f'{rate:.3f}' for rate in rates_of(theirs)]} of {theirs.num_drafts} drafts")
    print(f"  its intervals     {[f'{low:.3f} to {high:.3f}' for low, high in ends]}")
    print(f"  steps             {shared.num_equal} equal of {shared.num_common} common, of {shared.num_theirs}")


def check_texts(partings: Sequence[Parting | None]) -> None:
    wrong = {index: parting for index, parting in enumerate(partings) if parting is not None and not parting.is_tie}
    assert not wrong, f"texts differ beyond rounding: {wrong}"


@pytest.mark.parametrize("name", METHODS)
def test_a_head_drafts_on_vllm_what_it_drafts_here(name: str, ours: Ours, serving: Serving, tmp_path: Path) -> None:
    source = locate(f"smollm2-135m/{name}")
    own = ours.play(METHODS[name], source)
    theirs = play_vllm(serving, METHODS[name], exported(source, tmp_path / "head"))
    partings = ours.partings(theirs)
    tell(name, own, theirs, partings)
    check_texts(partings)
    check_drafts(own, theirs, NUM_NODES, places(partings))


def test_the_shipped_mtp_head_has_no_place_on_vllm(ours: Ours, tmp_path: Path) -> None:
    source, output = locate("smollm2-135m/mtp"), tmp_path / "head"
    output.mkdir()
    with pytest.raises(ConfigError, match="vLLM feeds the state after the final norm") as caught:
        export_checkpoint(
            Export(checkpoint=source, target=ours.target, output=output, engine="vllm", num_nodes=NUM_NODES)
        )
    pytest.skip(f"not served: {caught.value}")


def test_an_mtp_head_that_reads_normed_states_does(ours: Ours, serving: Serving, tmp_path: Path) -> None:
    source = tmp_path / "normed"
    write_normed_mtp(locate("smollm2-135m/mtp"), source, ours.target)
    own = ours.play("mtp", source)
    theirs = play_vllm(serving, "mtp", exported(source, tmp_path / "head"))
    partings = ours.partings(theirs)
    tell("mtp, made to read normed states", own, theirs, partings)
    check_texts(partings)
    check_drafts(own, theirs, NUM_NODES, places(partings))


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_leaves_the_text_and_not_the_acceptance(
    bug: str, ours: Ours, serving: Serving, tmp_path: Path
) -> None:
    source = locate("smollm2-135m/eagle3")
    head = exported(source, tmp_path / "head")
    BUGS[bug](head, ours.target.spec.num_layers)
    own = ours.play("eagle3", source)
    theirs = play_vllm(serving, "eagle3", head)
    partings = ours.partings(theirs)
    tell(f"eagle3 with a bug in its {bug}", own, theirs, partings)
    check_texts(partings)
    with pytest.raises(AssertionError, match="acceptance"):
        check_drafts(own, theirs, NUM_NODES, places(partings))
