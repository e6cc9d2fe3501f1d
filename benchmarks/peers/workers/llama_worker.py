"""llama.cpp's server with one kind of speculation, asked over HTTP; its own timings separate prefill from decoding.

Requests do not stream, so that reading them costs the server nothing. The prompt cache is off, so that a repeat reads
its prompt again. The memory of past tokens is float16, its default. A server that ends is reported as crashed.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from socket import socket
from time import perf_counter, sleep

from serve import Worker, die_with_parent, serve

START_S, END_S = 120.0, 5.0


class LlamaWorker(Worker):
    def open(self, order: dict) -> dict:
        [(_, settings)] = order["methods"].items()
        binary = Path(order["home"]) / "build" / "bin" / "llama-server"
        with socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        threads, slots = str(order["threads"]), order["max_requests"]
        command = [str(binary), "-m", order["gguf"], "--host", "127.0.0.1", "--port", str(port)]
        command += ["-t", threads, "-tb", threads, "-np", str(slots), "-c", str(slots * order["max_len"])]
        command += ["--no-webui", "--no-context-shift", "-cram", "0"]
        if settings.get("spec-type") == "draft-simple":
            command += ["-md", order["draft_gguf"], "--spec-draft-threads", threads]
        for key, value in settings.items():
            command += [f"--{key}", str(value)]
        self.server = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr, preexec_fn=die_with_parent)
        self.address = f"http://127.0.0.1:{port}"
        self._wait()
        version = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False).stderr
        notes = f"cache float16, {Path(order['gguf']).name}"
        package = (Path(order["home"]) / "source" / "PKG-INFO").read_text().split("\nVersion: ")[1].splitlines()[0]
        build = version.splitlines()[0].strip() if version else "version unknown"
        version = f"sources of llama-cpp-python {package}"
        return {"version": version, "dtype": order["dtype"], "notes": f"{build}; {notes}"}

    def _wait(self) -> None:
        start = perf_counter()
        while perf_counter() - start < START_S:
            if self.server.poll() is not None:
                raise RuntimeError(f"crashed: llama-server ended with {self.server.returncode} while it started")
            try:
                with urllib.request.urlopen(self.address + "/health", timeout=1):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                sleep(0.1)
        raise RuntimeError(f"llama-server was not ready after {START_S:.0f} s")

    def measure(self, method: str, prompts: list[list[int]], max_new_tokens: int) -> list[dict]:
        start = perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self._ask(prompt, max_new_tokens, start), prompts))

    def _ask(self, prompt: list[int], max_new_tokens: int, start: float) -> dict:
        order = {
            "prompt": prompt,
            "n_predict": max_new_tokens,
            "temperature": 0,
            "samplers": ["temperature"],
            "cache_prompt": False,
            "return_tokens": True,
            "stream": False,
        }
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + "/completion", json.dumps(order).encode(), head)
        try:
            with urllib.request.urlopen(request) as reply:
                answer = json.load(reply)
        except (OSError, HTTPException):
            with suppress(subprocess.TimeoutExpired):
                status = self.server.wait(END_S)
                raise RuntimeError(f"crashed: llama-server ended with {status} while it answered") from None
            raise
        latency_s = perf_counter() - start
        count = answer["timings"]["predicted_n"]
        first_s = latency_s - answer["timings"]["predicted_ms"] / 1000
        return {"tokens": answer["tokens"], "arrivals": [[first_s, 1], [latency_s, count]] if count > 1 else None}


if __name__ == "__main__":
    serve(LlamaWorker())
