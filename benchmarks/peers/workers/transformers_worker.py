"""`generate` of Hugging Face transformers: plain, prompt lookup, assisted by a small model.

Several prompts are padded on the left and go through `generate` as a batch; lookup and assistance take one at a time.
"""

import torch
import transformers
from serve import Clock, Worker, serve


class _Watch(transformers.StoppingCriteria):
    """Never stops; looks at the clock after each step."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self.clock = Clock()
        self.num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self.clock(input_ids.shape[1] - self.num_prompt_tokens)
        return torch.zeros(len(input_ids), dtype=torch.bool)


class TransformersWorker(Worker):
    def open(self, order: dict) -> dict:
        torch.set_num_threads(order["threads"])
        transformers.logging.set_verbosity_error()
        self.eos, self.methods = order["eos"], order["methods"]
        self.model = load(order["model"])
        self.assistant = load(order["draft"])
        return {
            "version": transformers.__version__,
            "dtype": "bfloat16",
            "notes": f"torch {torch.__version__}, attention {self.model.config._attn_implementation}",
        }

    def measure(self, method: str, prompts: list[list[int]], max_new_tokens: int) -> list[dict]:
        length = max(map(len, prompts))
        pad = self.eos[0]
        padded = [[pad] * (length - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        settings = dict(self.methods[method])
        if settings.pop("draft", False):
            settings["assistant_model"] = self.assistant
        watch = _Watch(length)
        with torch.inference_mode():
            text_BS = self.model.generate(
                torch.tensor(padded),
                attention_mask=torch.tensor(mask),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=self.eos,
                pad_token_id=pad,
                stopping_criteria=transformers.StoppingCriteriaList([watch]),
                **settings,
            )
        return [self._answer(row, watch.clock.arrivals) for row in text_BS[:, length:].tolist()]

    def _answer(self, tokens: list[int], arrivals: list[list[float]]) -> dict:
        """Return a row of the batch, without the padding after its end."""
        end = next((index + 1 for index, token in enumerate(tokens) if token in self.eos), len(tokens))
        kept = [[time_s, min(count, end)] for time_s, count in arrivals]
        last = next((index for index, (_, count) in enumerate(kept) if count >= end), len(kept) - 1)
        return {"tokens": tokens[:end], "arrivals": kept[: last + 1]}


def load(directory: str) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, local_files_only=True, trust_remote_code=False
    ).eval()


if __name__ == "__main__":
    serve(TransformersWorker())
