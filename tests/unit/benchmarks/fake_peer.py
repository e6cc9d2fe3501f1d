"""A peer that loads nothing: it answers n tokens at a known speed, or fails in the way its settings ask for.

Settings of a method: step_s (between tokens), fail ("open", "measure", "die" or "hang"), ends (an end-of-text token
after that many), silent (no arrivals).
"""

import os
import sys
import time
from pathlib import Path

from serve import Worker, serve


class FakePeer(Worker):
    def open(self, order: dict) -> dict:
        self.methods, self.eos = order["methods"], order["eos"]
        print("a library that prints to stdout")
        if any(settings.get("fail") == "open" for settings in self.methods.values()):
            raise OSError("no such model\nand a second line")
        self.calls = Path(order["home"]) / "calls.txt"
        return {"version": "1.0", "dtype": "float64", "notes": "a fake"}

    def measure(self, method: str, prompts: list[list[int]], max_new_tokens: int) -> list[dict]:
        settings = self.methods[method]
        with self.calls.open("a") as stream:
            stream.write(f"{method} {len(prompts)} {max_new_tokens}\n")
        if max_new_tokens > 12:
            misbehave(settings.get("fail"))
        return [self._answer(prompt, settings, max_new_tokens) for prompt in prompts]

    def _answer(self, prompt: list[int], settings: dict, max_new_tokens: int) -> dict:
        count = min(max_new_tokens, settings.get("ends", max_new_tokens))
        tokens = [prompt[0]] * count
        if "ends" in settings:
            tokens[-1] = self.eos[0]
        step_s = settings["step_s"]
        arrivals = [[0.5 + step_s * index, index + 1] for index in range(count)]
        return {"tokens": tokens, "arrivals": None if settings.get("silent") else arrivals}


def misbehave(how: str | None) -> None:
    if how == "measure":
        raise ValueError("out of luck")
    if how == "die":
        print("the last words", file=sys.stderr, flush=True)
        os._exit(7)
    if how == "hang":
        time.sleep(60)


if __name__ == "__main__":
    serve(FakePeer())
