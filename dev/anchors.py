"""Explain why a head decodes with a lower tau than its training predicts: the same answers, counted in two ways.

    python dev/anchors.py [--category chat] [--num-prompts 8]

Training looks at every position of a text as the start of a draft. Decoding starts a draft where the last one ended,
which is where the head was just wrong, often a token that is hard to guess. Here an EAGLE-3 head decodes some prompts,
and its training objective then judges the very answers.
"""

from dataclasses import dataclass

import torch
import tyro

from outrider import Engine, load_proposer, load_target
from outrider.data.texts import Example
from outrider.data.workloads import load_category
from outrider.formats.eagle3 import read_eagle3
from outrider.formats.locate import locate
from outrider.metrics import PrefillRecord, StepRecord, summarize
from outrider.requests.text import encode
from outrider.sampling import SamplingParams
from outrider.train.batch import collate
from outrider.train.features import FeatureReader
from outrider.train.objective import Teacher
from outrider.train.objectives.eagle3 import Eagle3Objective, Eagle3ObjectiveConfig
from outrider.train.objectives.eagle3_network import Eagle3Network
from outrider.train.objectives.eagle3_start import TrainedHead


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """Decoded and predicted acceptance of an EAGLE-3 head on the same answers."""

    category: str = "chat"
    num_prompts: int = 8
    max_new_tokens: int = 96
    checkpoint: str = "smollm2-135m/eagle3"
    depth: int = 4

    def run(self) -> None:
        target = load_target("smollm2-135m", dtype="bfloat16", device="cpu")
        prompts = [encode(target.tokenizer, one.turns[0]) for one in load_category(self.category)[: self.num_prompts]]
        records: list[StepRecord | PrefillRecord] = []
        head = load_proposer("eagle3", target, checkpoint=self.checkpoint, num_nodes=self.depth)
        engine = Engine(target, head, max_len=2048, record=records.append)
        answers = engine.generate(prompts, SamplingParams(max_tokens=self.max_new_tokens))
        decoded = summarize([one for one in records if isinstance(one, StepRecord)])

        stored = read_eagle3(locate(self.checkpoint), target)
        network = Eagle3Network(stored.spec)
        network.load_state_dict({name: tensor.float() for name, tensor in stored.tensors.items()})
        config = Eagle3ObjectiveConfig(draft_vocab=len(stored.ids_K), num_depths=self.depth)
        objective = Eagle3Objective(TrainedHead(Teacher.of(target, "cpu"), config, network, stored.ids_K), config)
        reader = FeatureReader(target, objective.feature_layers, 2048, torch.float32)
        right_K, count = torch.zeros(self.depth), 0
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens_T = torch.tensor([*prompt, *answer.tokens])
            example = Example(tokens_T, torch.arange(len(tokens_T)) >= len(prompt), reader.read([tokens_T])[0])
            with torch.no_grad():
                outcome = objective(collate([[example]], len(tokens_T)), torch.Generator())
            whole_A = outcome.valid_KR.all(0)
            right_K += outcome.agreed_KR[:, whole_A].float().cumprod(0).sum(1)
            count += int(whole_A.sum())
        shares = (right_K / count).tolist()
        found = ", ".join(f"{share:.2f}" for share in decoded.acceptance_per_pos)
        print(f"{self.category}: decoded tau {decoded.tokens_per_target_forward:.2f} ({found})")
        print(f"every position: tau {1 + sum(shares):.2f} ({', '.join(f'{share:.2f}' for share in shares)})")


if __name__ == "__main__":
    tyro.cli(Anchors).run()
