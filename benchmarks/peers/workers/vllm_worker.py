"""vLLM in this process, one speculative configuration per process, its steps driven one by one to see arrivals.

Prefix caching is off, so that a repeat reads its prompt again, and the suffix cache keeps no earlier answers.
"""

import os
from time import perf_counter

import torch
import vllm
from serve import Clock, Worker, serve


class VllmWorker(Worker):
    def open(self, order: dict) -> dict:
        [(_, settings)] = order["methods"].items()
        torch.set_num_threads(order["threads"])
        self.eos, self.num_requests = order["eos"], 0
        spec = dict(settings)
        if spec.get("method") == "draft_model":
            spec["model"] = order["draft"]
        self.llm = vllm.LLM(
            model=order["model"],
            dtype="bfloat16",
            max_model_len=order["max_len"],
            max_num_seqs=order["max_requests"],
            enable_prefix_caching=False,
            generation_config="vllm",
            speculative_config=spec or None,
        )
        notes = f"torch {torch.__version__}, compiled, OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"
        return {"version": vllm.__version__, "dtype": "bfloat16", "notes": notes}

    def measure(self, method: str, prompts: list[list[int]], max_new_tokens: int) -> list[dict]:
        engine = self.llm.llm_engine
        rules = vllm.SamplingParams(temperature=0, max_tokens=max_new_tokens, stop_token_ids=self.eos)
        start, names = perf_counter(), []
        for prompt in prompts:
            self.num_requests += 1
            names.append(str(self.num_requests))
            engine.add_request(names[-1], {"prompt_token_ids": prompt}, rules)
        clocks = {name: Clock() for name in names}
        tokens: dict[str, list[int]] = {}
        for clock in clocks.values():
            clock.start = start
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens[output.request_id] = list(output.outputs[0].token_ids)
                clocks[output.request_id](len(tokens[output.request_id]))
        return [{"tokens": tokens[name], "arrivals": clocks[name].arrivals} for name in names]


if __name__ == "__main__":
    serve(VllmWorker())
