"""The kinds of damaged input, by name.

A kind is a function `(rng, directory) -> None`. It writes one input into the empty `directory`, damaged as `rng`
decides, and uses it as a user would. It returns if the input was taken and lets an `OutriderError` pass if it was
refused; anything else that it raises is a failure, an `AssertionError` of its own included.
"""

KINDS: dict[str, str] = {
    "config": "benchmarks.fuzz.checkpoints:config",
    "directory": "benchmarks.fuzz.checkpoints:directory_of_other_files",
    "generation_config": "benchmarks.fuzz.checkpoints:generation_config",
    "gguf": "benchmarks.fuzz.gguf_files:gguf_file",
    "hf_config": "benchmarks.fuzz.checkpoints:hf_config",
    "index": "benchmarks.fuzz.checkpoints:index",
    "tokenizer": "benchmarks.fuzz.checkpoints:tokenizer",
    "tokenizer_config": "benchmarks.fuzz.checkpoints:tokenizer_config",
    "weights": "benchmarks.fuzz.checkpoints:weights",
    "bench_run": "benchmarks.fuzz.runs:bench_run",
    "profile": "benchmarks.fuzz.runs:profile",
    "server": "benchmarks.fuzz.servers:server",
    "draft_model": "benchmarks.fuzz.heads:draft_model",
    "eagle3": "benchmarks.fuzz.heads:eagle3",
    "medusa": "benchmarks.fuzz.heads:medusa",
    "mtp": "benchmarks.fuzz.heads:mtp",
    "prompts_file": "benchmarks.fuzz.training:prompts_file",
    "run_log": "benchmarks.fuzz.training:run_log",
    "shards": "benchmarks.fuzz.training:shards",
    "train_run": "benchmarks.fuzz.training:train_run",
}
