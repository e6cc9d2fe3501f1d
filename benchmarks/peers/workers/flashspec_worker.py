"""The PyPI package flashspec: prompt lookup alone, and its default, lookup with a draft model behind it.

It has no plain decoding of its own, and its lookup takes one request at a time. The seconds of each step are its own
record; the first step holds the prefill.
"""

from time import perf_counter

import flashspec
import torch
import transformers
from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
from flashspec.engine import HuggingFaceDrafter, NgramDrafter, TargetModel
from serve import Worker, serve


class FlashspecWorker(Worker):
    def open(self, order: dict) -> dict:
        torch.set_num_threads(order["threads"])
        self.eos, self.engines = order["eos"], {}
        device, dtype = torch.device("cpu"), torch.bfloat16
        model = load(order["model"])
        for method, settings in order["methods"].items():
            target = TargetModel(order["model"], device, dtype, model=model)
            config = FlashSpecConfig(
                device="cpu",
                drafter_strategy=settings["strategy"],
                bandit=BanditConfig(n_arms=1),
                sampling=SamplingConfig(temperature=0.0, gamma=settings.get("gamma", 4)),
            )
            if settings.get("draft"):
                drafter = HuggingFaceDrafter(order["draft"], device, dtype, model=load(order["draft"]))
            else:
                drafter = NgramDrafter()
            self.engines[method] = SpeculativeEngine(config, [drafter], target)
        notes = f"torch {torch.__version__}, transformers {transformers.__version__}"
        return {"version": flashspec.__version__, "dtype": "bfloat16", "notes": notes}

    def measure(self, method: str, prompts: list[list[int]], max_new_tokens: int) -> list[dict]:
        start = perf_counter()
        with torch.inference_mode():
            result = self.engines[method].generate(
                torch.tensor(prompts), max_new_tokens=max_new_tokens, eos_token_ids=self.eos
            )
        latency_s = perf_counter() - start
        tokens = [token for token in result.output_ids[0].tolist() if token >= 0]
        now_s, count, arrivals = latency_s - sum(step.seconds for step in result.arm_steps), 0, []
        for step in result.arm_steps:
            now_s, count = now_s + step.seconds, min(count + step.emitted, len(tokens))
            arrivals.append([now_s, count])
        return [{"tokens": tokens, "arrivals": arrivals}]


def load(directory: str) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, local_files_only=True, trust_remote_code=False
    ).eval()


if __name__ == "__main__":
    serve(FlashspecWorker())
