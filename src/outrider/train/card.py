"""The model card of a trained drafter, and the curve of its training.

When a run ends, `best/` and `final/` get two more files:

    README.md        the card: what it is and how to run it, data, budget, settings, command, commit, held-out figures
    training.json    the same as data, with tau after every evaluation: {"curve": [{"tokens": .., "tau": ..}, ..]}

Everything in them was recorded by the run; nothing is measured here.

Example: `write_card(Path("runs/train-eagle3-DATE"), "best")` writes `runs/train-eagle3-DATE/best/README.md`.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outrider.errors import RunError, as_error
from outrider.formats.store import TRAINING
from outrider.records.display import markdown_code, markdown_text, visible_line
from outrider.records.files import size, write_text
from outrider.records.json_fields import read_json
from outrider.train.record import read_record
from outrider.train.run_log import evaluations

__all__ = ["CARD", "story", "write_card"]

CARD = "README.md"
SCHEMA = "outrider.training/1"


def write_card(run: Path, name: str) -> None:
    """Write both files beside the weights `run/name`, of a run that has its `summary.json`."""
    with as_error(RunError, f"the record of the run in {run} is damaged", "restore config.json, or start a new run"):
        told = story(run, name)
        text = card(told)
    write_text(run / name / TRAINING, json.dumps(told, indent=1) + "\n")
    write_text(run / name / CARD, text)


def story(run: Path, name: str) -> dict[str, Any]:
    """Return the content of the card as data; `held_out` has the figures of these weights, the best or the last."""
    record, summary, curve = (
        read_record(run),
        read_json(run / "summary.json", RunError, "resume the run to write it again"),
        evaluations(run),
    )
    if not curve:
        held_out = None
    elif name == "best":
        held_out = max(curve, key=lambda line: line["tau"])
    else:
        held_out = curve[-1]
    found = record["provenance"]
    return {
        "schema": SCHEMA,
        "method": record["method"],
        "proposer": summary["proposer"],
        "target": {"name": summary["target"], **record["target"], "template_hash": found.get("template_hash")},
        "data": summary["data"] | {"hash": record["data"]["train"]},
        "settings": record["settings"],
        "train": record["train"],
        "budget": {key: summary[key] for key in ("steps", "tokens", "seconds")},
        "command": found["command"],
        "commit": found["commit"],
        "dirty": found["dirty"],
        "hardware": found["hardware"],
        "versions": found["versions"],
        "held_out": held_out,
        "decoded": summary["decoded"] if name == "final" else None,
        "overlap": summary.get("overlap"),
        "curve": [{key: line[key] for key in ("step", "tokens", "tau", "conditional", "loss")} for line in curve],
    }


def card(told: Mapping[str, Any]) -> str:
    """Return the Markdown of a story."""
    target, data, budget = told["target"], told["data"], told["budget"]
    return "\n".join(
        [
            f"# {told['method']} for {markdown_text(target['name'])}",
            "",
            f"A drafter for speculative decoding of {markdown_text(target['name'])} in {target['dtype']}, trained with "
            "Outrider. The text that is written with it is the target's own; it changes the speed alone.",
            "",
            f'    outrider generate --method {told["proposer"]}:checkpoint=DIRECTORY "Why is the sky blue?"',
            "",
            "| | |",
            "|---|---|",
            *_lines(
                {
                    "Data": f"{data['texts']:,} texts of {data['tokens']:,} tokens, {data['learnt_tokens']:,} of them "
                    f"written by the target; {data['held_out_texts']:,} texts held out",
                    "Data hash": markdown_code(data["hash"]),
                    **_contamination(told.get("overlap")),
                    "Budget": f"{budget['tokens']:,} tokens in {budget['steps']:,} steps and "
                    f"{budget['seconds'] / 60:.0f} minutes",
                    "Machine": markdown_text(_machine(told["hardware"])),
                    "Settings": _settings(told["settings"]),
                    "Loop": _settings(told["train"]),
                    "Commit": markdown_code(str(told["commit"])[:12]) + (" with changes" if told["dirty"] else ""),
                    "Target's fingerprint": markdown_code(target["fingerprint"]),
                }
            ),
            "",
            "Trained with",
            "",
            f"    {_command(told['command'])}",
            "",
            *_figures(told["held_out"]),
        ]
    )


def _lines(rows: Mapping[str, str]) -> list[str]:
    return [f"| {name} | {text} |" for name, text in rows.items()]


def _contamination(overlap: Mapping[str, Any] | None) -> dict[str, str]:
    if overlap is None:
        return {}
    count, of = len(overlap["prompts"]), overlap["num_prompts"]
    return {"Benchmark's prompts in it": f"{count} of {of}, by a run of {overlap['words']} words"}


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(markdown_code(f"{name}={value}") for name, value in values.items() if value is not None)


def _command(words: Sequence[str]) -> str:
    return visible_line(shlex.join([Path(words[0]).name, *words[1:]]))


def _machine(found: Mapping[str, Any]) -> str:
    if found["gpus"]:
        return ", ".join(found["gpus"])
    return f"{found['cpu']}, {found['num_usable_cores']} cores, {size(found['memory_bytes'])}"


def _figures(held_out: Mapping[str, Any] | None) -> list[str]:
    if held_out is None:
        return ["No texts were held out."]
    depths = range(1, 1 + len(held_out["conditional"]))
    return [
        f"On {held_out['num_texts']} held-out texts, {held_out['num_anchors']:,} places: tau "
        f"**{held_out['tau']:.3f}** tokens per target forward, predicted from how often the guess at each depth is the "
        "target's own, given that all before it were:",
        "",
        "| depth | " + " | ".join(map(str, depths)) + " |",
        "|---|" + "---|" * len(depths),
        "| accepted | " + " | ".join(f"{share:.3f}" for share in held_out["conditional"]) + " |",
        "",
    ]
