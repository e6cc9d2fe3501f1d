"""The PyPI package economize: plain decoding, prompt lookup, and a second draft model."""

import economize
import torch
import transformers
from economize.techniques.draft_model import DraftModelConfig
from economize.techniques.lookup import LookupConfig
from serve import Clock, Worker, serve


class EconomizeWorker(Worker):
    def open(self, order: dict) -> dict:
        torch.set_num_threads(order["threads"])
        self.eos, self.models, self.decoding = frozenset(order["eos"]), {}, {}
        for method, settings in order["methods"].items():
            base = transformers.AutoModelForCausalLM.from_pretrained(
                order["model"], dtype=torch.bfloat16, local_files_only=True, trust_remote_code=False
            ).eval()
            drafts = settings.get("draft", False)
            technique = DraftModelConfig(model=order["draft"]) if drafts else LookupConfig()
            cycle = settings["num_draft_tokens"] + 1 if drafts else settings.get("cycle_length", 1)
            self.models[method] = economize.apply(base, technique)
            self.decoding[method] = economize.DecodeConfig(cycle_length=cycle)
        notes = f"torch {torch.__version__}, transformers {transformers.__version__}"
        return {"version": economize.__version__, "dtype": "bfloat16", "notes": notes}

    def measure(self, method: str, prompts: list[list[int]], max_new_tokens: int) -> list[dict]:
        watches = [_Watch(len(prompt), self.eos) for prompt in prompts]
        with torch.inference_mode():
            results = self.models[method].decode_batch(
                [torch.tensor(prompt) for prompt in prompts],
                max_new_tokens,
                decoding=self.decoding[method],
                stops=watches,
            )
        pairs = zip(results, watches, strict=True)
        return [{"tokens": found.tokens.tolist(), "arrivals": watch.clock.arrivals} for found, watch in pairs]


class _Watch:
    """Stops at an end-of-text token, and looks at the clock at every token."""

    def __init__(self, num_prompt_tokens: int, eos: frozenset[int]) -> None:
        self.clock, self.eos = Clock(), eos
        self.num_prompt_tokens = num_prompt_tokens

    def __call__(self, text_S: torch.Tensor) -> bool:
        self.clock(len(text_S) - self.num_prompt_tokens)
        return int(text_S[-1]) in self.eos


if __name__ == "__main__":
    serve(EconomizeWorker())
