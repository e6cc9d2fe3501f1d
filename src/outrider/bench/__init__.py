"""The benchmark: contenders, interleaved and paired on the same prompts."""
