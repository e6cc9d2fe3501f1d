"""Retired words appear in no source file, no test and no page: one word per idea, and it is the field's."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from prose import ROOT

NOT_OURS = re.compile(r"docs/results/|checkpoints/|workloads/|dev/LOG\.md|CHANGELOG\.md|house/test_words\.py")
"""Filed runs, fetched texts and history keep their words."""


class Retired(NamedTuple):
    """A word that is no longer used, the one that is, lines that may hold it, and files to which it applies."""

    pattern: str
    instead: str
    allowed: str = "(?!)"
    files: str = ""


NAME = r"(?=[\](:,=.\[])"
ALGORITHM = r"outrider/((engine|batch|verify|proposer|draft|metrics)\.py|(costs|loop)/)"
WORDS = [
    Retired(r"\b(num_|NUM_|_)?(taps?|TAPS|Taps?|tapped)\b", "feature layers", '"taps"'),
    Retired(r"\b(Room|ROOMS?|rooms)\b", "limits, DraftLimit", r"\bRoom for\b"),
    Retired(r"\b(Ask|asks)\b(?=[\](:,=]|\.\w)", "slot states, SlotState", "asks?:|Ask (a|for)"),
    Retired(r"\bnum_behind\b|\b[Bb]acklogs?\b", "num_pending, pending tokens", "backlog="),
    Retired(r"\b(payers?|Payer|num_payers|purse|gifts?|income|Accounts)\b", "owner, burst, allowance, refill"),
    Retired(r"\b(Terms|choices_of|load_choice)\b|\bclass Choice\b", "Constraints, method_specs, Selection"),
    Retired(r"\bLearntDraftCosts\b|\b(add_late|late_s|num_late|late_where)\b", "OnlineDraftCost, pending_s"),
    Retired(r"\b(turned_keys|turns_keys|TURNED)\b|\b[Kk]eys (are )?(stored |lie )?turned\b", "transposed keys"),
    Retired(r"\bexact_rows\b", "batch_invariant"),
    Retired(r"\blends?\b|\blent\b", "reuse_logits, shared buffer"),
    Retired(r"\b(HALF|BYTE, FULL)\b", "FP32, BF16, INT8"),
    Retired(r"\bhosting\b", "decoding_threads"),
    Retired(rf"\b(Programs|Body|Tape|Recordings?|CudaRecording)\b{NAME}", "the Graph family", files=r"\.py$"),
    Retired(r"\bclass Link\b|\bimport .*\bLink\b", "DraftStep"),
    Retired(rf"\b(Verification|Accepted)\b{NAME}(?!\.( |$))", "VerifyInput, AcceptedPath", files=r"\.py$"),
    Retired(r"\bverdict\b", "accepted path", files=ALGORITHM),
    Retired(r"\b[Ss]ieves?\b", "filter, PromptFilter"),
    Retired(r"\b(leaks?|_leak\w*|find_overlap|recorded_overlap)\b", "contamination"),
    Retired(r"\b(Openings?|OPENINGS|openings)\b", "seed phrases, SeedPhrase", '"openings"'),
    Retired(r"\b[A-Z]\w*Author\b|\bword_author\b|\ban author\b", "generator, TextGenerator"),
    Retired(rf"\bTalks?\b{NAME}", "GrowingConversation, ConversationWriter"),
    Retired(r"\b([Gg]uests?|[Ss]eats|[Ww]eightless\w*)\b", "custom drafter, RowTracker, SpecOnlyTarget"),
    Retired(r"\b([Ll]ineup|line_up|_run_cast)\b|\bfor cast in\b", "contenders"),
    Retired(r"\b[Ww]ish\b|\bclass Question\b", "request, PlanRequest", "test_trust"),
]


def files() -> list[Path]:
    kinds = ["*.py", "*.md", "*.toml", "*.sh", "*.ipynb", "Makefile"]
    listed = subprocess.run(["git", "ls-files", *kinds], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines() if not NOT_OURS.search(name) and (ROOT / name).is_file()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.instead)
def test_a_retired_word_is_gone(word: Retired) -> None:
    pattern, allowed = re.compile(word.pattern), re.compile(word.allowed)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files()
        if re.search(word.files, path.as_posix())
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line) and not allowed.search(line)
    ]
    assert not found, f"now it is {word.instead}"


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("target.taps = ()", "feature layers"),
        ("for room in rooms:", "limits, DraftLimit"),
        ("the backlog of a slot", "num_pending, pending tokens"),
        ("a purse for each payer", "owner, burst, allowance, refill"),
        ("class Link:", "DraftStep"),
        ("a guest in vLLM", "custom drafter, RowTracker, SpecOnlyTarget"),
    ],
)
def test_a_retired_word_is_found(line: str, instead: str) -> None:
    assert [word.instead for word in WORDS if re.search(word.pattern, line)] == [instead]
