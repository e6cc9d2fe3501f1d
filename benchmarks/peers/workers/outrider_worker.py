"""Outrider itself, asked like every other peer; caches that learn are emptied before each measurement."""

from time import perf_counter

import torch
from serve import Clock, Worker, serve

import outrider
from outrider.env import PACKAGE
from outrider.kernels.cpu import isa
from outrider.proposers.method_spec import load_method, method_specs
from outrider.records.provenance import git_state
from outrider.sampling import SamplingParams


class OutriderWorker(Worker):
    def open(self, order: dict) -> dict:
        torch.set_num_threads(order["threads"])
        self.target = outrider.load_target(order["target"], weights=order["weights"])
        self.max_len = order["max_len"]
        self.proposers = {}
        for name, settings in order["methods"].items():
            choice = method_specs([settings.get("method", "none")])[0]
            self.proposers[name] = load_method(choice, self.target)
        self.engines: dict[tuple[str, int], outrider.Engine] = {}
        dtype = str(self.target.spec.dtype).removeprefix("torch.")
        commit = (git_state(PACKAGE).commit or "unknown")[:7]
        notes = f"commit {commit}, integer kernels {isa.chosen()}, cache {dtype}, torch {torch.__version__}"
        return {"version": outrider.__version__, "dtype": order["dtype"], "notes": notes}

    def engine(self, method: str, num_requests: int) -> outrider.Engine:
        key = method, num_requests
        if key not in self.engines:
            proposer = self.proposers[method]
            self.engines[key] = outrider.Engine(self.target, proposer, max_batch=num_requests, max_len=self.max_len)
        return self.engines[key]

    def measure(self, method: str, prompts: list[list[int]], max_new_tokens: int) -> list[dict]:
        engine = self.engine(method, len(prompts))
        engine.reset()
        clocks, tokens = {}, {}
        start = perf_counter()
        for prompt in prompts:
            request = engine.add(prompt, SamplingParams(max_tokens=max_new_tokens))
            clocks[request], tokens[request] = Clock(), []
            clocks[request].start = start
        for event in engine.run():
            tokens[event.request] += event.tokens
            clocks[event.request](len(tokens[event.request]))
        return [{"tokens": tokens[request], "arrivals": clocks[request].arrivals} for request in tokens]


if __name__ == "__main__":
    serve(OutriderWorker())
