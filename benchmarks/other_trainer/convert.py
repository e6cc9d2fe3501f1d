"""Our training data and cached features as the files that `speculators` 0.9 trains from.

    texts.json                            `input_ids`, `loss_mask` and `seq_len` of every text; held-out ones come last
    token_freq.json                       how often the target wrote each token in the training texts
    hidden_states/hs_{i}.safetensors      `token_ids` [T] and `hidden_states` [T, 4, E] of text i
    source.json                           what all of it was made from

Three of the four states are those before the layers that the head fuses, as our store has them. The fourth is the
target's final state *before* its last norm, where our store keeps the one behind it. With the norm's weight w,

    ours = w * x / rms(x)      so      rms_norm(ours / w) = x / rms(x)

Their norm divides by the root mean square again, so ours / w gives the same teacher as x, up to rounding. An element
whose weight is 0 says nothing to the head and stays 0.

Example: `convert(source, norm_E, Path("out"))` of 640 texts writes 640 files of states.

Shapes: T tokens of one text, E hidden size, F features.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outrider.data.texts import Data, Texts
from outrider.errors import RunError
from outrider.formats.weights import read_weights
from outrider.models.eagle3 import default_layer_ids
from outrider.records.files import write_tensors, write_text
from outrider.records.json_fields import read_json
from outrider.target import Target
from outrider.train.feature_store import FeatureStore, store_key
from outrider.train.features import FeatureReader

__all__ = ["SOURCE", "Source", "convert", "final_norm", "states_of"]

SOURCE = "source.json"
NORM = "model.norm.weight"


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Texts, the states of each, and what they were made from.

    states   returns [T, 4 * E] of a text: of the training texts by number, then of the held-out ones
    """

    data: Data
    states: Callable[[int], Tensor]
    identity: dict[str, Any]

    @property
    def parts(self) -> tuple[Texts, Texts]:
        return self.data.train, self.data.held_out

    @classmethod
    def of(cls, data: Data, target: Target, row_length: int, folder: Path) -> "Source":
        """Open the stores of features that a training run has cached in a folder.

        Raises:
            RunError: if there is none of these texts and layers, or one is not complete.
        """
        layers = (*default_layer_ids(target.spec.num_layers), target.spec.num_layers)
        reader = FeatureReader(target, layers, row_length)
        manifests = [(read_json(file, RunError).plain(), file.parent) for file in folder.glob("*/features.json")]
        stores: list[FeatureStore] = []
        for texts in (data.train, data.held_out):
            place = next((place for kept, place in manifests if kept == store_key(reader, texts)), None)
            if place is None or (store := FeatureStore(place, reader, texts)).missing:
                raise RunError(
                    f"{folder} has no cached states of rows of {row_length} tokens; "
                    f"run outrider train eagle3 --features cached --row-length {row_length} there first"
                )
            stores.append(store)

        def states(index: int) -> Tensor:
            part, at = (0, index) if index < len(data.train) else (1, index - len(data.train))
            return stores[part].features(at, stores[part].lengths[at])

        keys = {name: store_key(reader, texts) for name, texts in (("train", data.train), ("held_out", data.held_out))}
        return cls(data=data, states=states, identity=keys)


def final_norm(directory: Path) -> Tensor:
    """Return the weight [E] of the last norm of a target, from its directory."""
    return read_weights(directory)[NORM].float()


def states_of(features_TF: Tensor, norm_E: Tensor) -> Tensor:
    """Return states as `speculators` reads them [T, 4, E]: the last one as it enters the target's last norm."""
    states_TAE = features_TF.unflatten(-1, (-1, len(norm_E))).clone()
    final_TE = states_TAE[:, -1].float() / torch.where(norm_E == 0, 1, norm_E)
    states_TAE[:, -1] = torch.where(norm_E == 0, 0, final_TE).to(states_TAE.dtype)
    return states_TAE


def convert(
    source: Source,
    norm_E: Tensor,
    output: Path,
    listen: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the files; those that are there from an interrupted run stay.

    Args:
        listen: told how many texts of how many are written.

    Raises:
        RunError: if `output` holds files of another source.
    """
    _claim(output, source.identity)
    states = output / "hidden_states"
    states.mkdir(exist_ok=True)
    total = sum(len(part) for part in source.parts)
    rows, counts = [], dict[int, int]()
    for part, texts in enumerate(source.parts):
        for number in range(len(texts)):
            index = len(rows)
            features_TF = source.states(index)
            example = texts.example(number)
            tokens_T, learn_T = (one[: len(features_TF)] for one in (example.tokens_T.long(), example.learn_T))
            file = states / f"hs_{index}.safetensors"
            if not file.exists():
                write_tensors(file, {"token_ids": tokens_T, "hidden_states": states_of(features_TF, norm_E)})
            rows.append({"input_ids": tokens_T.tolist(), "loss_mask": learn_T.long().tolist()})
            if part == 0:
                for token in tokens_T[learn_T].tolist():
                    counts[token] = counts.get(token, 0) + 1
            listen(index + 1, total)
    write_text(output / "token_freq.json", json.dumps(counts))
    write_text(output / "texts.json", json.dumps({"num_train": len(source.data.train), "texts": rows}))


def _claim(output: Path, identity: dict[str, Any]) -> None:
    """Note in a directory what its files are made from; refuse another's."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / SOURCE
    if path.exists() and read_json(path, RunError).plain() != identity:
        raise RunError(f"{output} holds files of other texts or of another target; give another --output")
    write_text(path, json.dumps(identity, indent=2, sort_keys=True) + "\n")
