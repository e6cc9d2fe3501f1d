"""From finished training runs to `checkpoints/`: what a repository ships, within a limit of size.

    python dev/ship_heads.py runs/heads checkpoints/smollm2-135m

Every `final/` is copied as it is, but for what costs megabytes and brings little: EAGLE-3 and Medusa keep the columns
of the tokens that the target writes most often, and Medusa its first heads. What was cut is said in the card and under
the config's key `outrider`. Loading a head and serving it elsewhere need no more than what stays.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from outrider.formats.eagle3 import read_eagle3, write_native
from outrider.formats.medusa import read_medusa, write_medusa
from outrider.formats.token_ranking import FILE, drafted_ids
from outrider.models.medusa import LM_HEAD, TOKEN_MAP
from outrider.records.json_fields import read_json
from outrider.target import Target
from outrider.targets import load_target
from outrider.train.card import CARD

METHODS = ("eagle3", "medusa", "mtp", "pard", "draft")


@dataclass(frozen=True, kw_only=True)
class Ship:
    """Write the heads that the repository ships."""

    runs: tyro.conf.Positional[Path]
    output: tyro.conf.Positional[Path]
    target: str = "smollm2-135m"
    dtype: str = "bfloat16"
    eagle3_columns: int = 6144
    """Tokens that EAGLE-3 can draft."""
    medusa_columns: int = 4096
    """Tokens that Medusa can draft."""
    medusa_heads: int = 3
    limit: int = 64_000_000
    """Bytes of all heads together."""

    def run(self) -> None:
        target = load_target(self.target, dtype=self.dtype, device="cpu")
        for method in METHODS:
            source, place = self.runs / method / "final", self.output / method
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(source, place)
        cut = {
            "eagle3": cut_eagle3(self.output / "eagle3", target, self.eagle3_columns),
            "medusa": cut_medusa(self.output / "medusa", target, self.medusa_columns, self.medusa_heads),
        }
        for method, sentence in cut.items():
            (self.output / method / FILE).unlink()  # its columns are named in the weights
            with (self.output / method / CARD).open("a", encoding="utf-8") as card:
                card.write(f"\nThe figures above are of the whole head. To save space, {sentence}.\n")
        sizes = {method: sum(file.stat().st_size for file in (self.output / method).iterdir()) for method in METHODS}
        for method, size in sizes.items():
            print(f"{method:8}{size / 1e6:7.2f} MB")
        total = sum(sizes.values())
        print(f"{'all':8}{total / 1e6:7.2f} MB")
        if total > self.limit:
            raise SystemExit(f"{total:,} bytes are more than limit={self.limit:,}; keep fewer columns")


def cut_eagle3(place: Path, target: Target, num_columns: int) -> str:
    """Keep the columns of that many tokens; what was done, for the card."""
    head, kept_K = read_eagle3(place, target), drafted_ids(place, target, num_columns)
    assert kept_K is not None
    where_K = torch.isin(head.ids_K, kept_K)
    columns = head.tensors["lm_head.weight"][where_K]
    cut = replace(
        head,
        spec=replace(head.spec, draft_vocab_size=len(columns)),
        tensors={**head.tensors, "lm_head.weight": columns},
        ids_K=head.ids_K[where_K],
        provenance={**head.provenance, "cut_from": {"draft_vocab": len(head.ids_K)}},
    )
    write_native(place, cut, torch.bfloat16)
    return f"its {len(head.ids_K):,} columns were cut to the {len(columns):,} that the target writes most often"


def cut_medusa(place: Path, target: Target, num_columns: int, num_heads: int) -> str:
    """Keep the first heads, and the columns of that many tokens; what was done, for the card."""
    heads, kept_K = read_medusa(place, target), drafted_ids(place, target, num_columns)
    assert kept_K is not None
    where_K = torch.isin(heads.tensors[TOKEN_MAP], kept_K)
    shape = replace(heads.shape, num_heads=num_heads, num_columns=int(where_K.sum()))
    tensors = {name: heads.tensors[name] for name in shape.tensor_shapes()}
    for name in (LM_HEAD, TOKEN_MAP):
        tensors[name] = heads.tensors[name][where_K]
    facts = dict(read_json(place / "config.json")["outrider"])
    for name in ("rank_accuracies", "tree"):
        if name in facts:
            facts[name] = kept_of(facts[name], name, num_heads)
    facts["cut_from"] = {"num_heads": heads.shape.num_heads, "draft_vocab": heads.shape.num_columns}
    write_medusa(place, shape, tensors, heads.layout, facts)
    return (
        f"its {heads.shape.num_columns:,} columns were cut to the {shape.num_columns:,} that the target writes most "
        f"often, and its {heads.shape.num_heads} heads to {num_heads}"
    )


def kept_of(values: list[list[float]], name: str, num_heads: int) -> list[list[float]]:
    """Return the accuracies of the first heads, or the tree's paths that need no others."""
    return values[:num_heads] if name == "rank_accuracies" else [path for path in values if len(path) <= num_heads]


if __name__ == "__main__":
    tyro.cli(Ship).run()
