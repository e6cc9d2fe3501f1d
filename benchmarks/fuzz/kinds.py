"""The kinds of damaged input, by name.

A kind is a function `(rng, directory) -> None`. It writes one input into the empty `directory`, damaged as `rng`
decides, and uses it as a user would. It returns if the input was taken and lets an `OutriderError` pass if it was
refused; anything else that it raises is a failure, an `AssertionError` of its own included.
"""

KINDS: dict[str, str] = {
    "config": "benchmarks.fuzz.checkpoints:config",
    "bench_run": "benchmarks.fuzz.runs:bench_run",
    "profile": "benchmarks.fuzz.runs:profile",
    "server": "benchmarks.fuzz.servers:server",
}
