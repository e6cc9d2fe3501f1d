"""Train with `speculators` on a CPU; run in an environment of its own, with nothing of ours.

    python speculators_run.py DATA OUTPUT VERIFIER THREADS [options of `speculators train`]

Writes the Arrow data set that `speculators` reads beside the converted states, then hands over to its own `train`
command: its model, loss, optimiser, schedule and loop. Its trainer knows accelerators only; so `device_type` and
`local_rank`, where models and batches go, are held at "cpu", and `torch.accelerator.synchronize` does nothing.

Example: `speculators_run.py data/theirs runs/theirs ~/models/smollm2 2 --epochs 3 --draft-vocab-size 8192`.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(data: Path, output: Path, verifier: str, threads: int, options: list[str]) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    num_train, total = write_arrow(data)
    on_cpu()
    from speculators.train import trainer
    from speculators.train.cli import main as train
    from speculators.train.config import TrainConfig

    spent = clocked(trainer.Trainer)
    arguments = ["--speculator-type=eagle3", f"--verifier-name-or-path={verifier}", f"--data-path={data}"]
    # in the middle between two texts, so that rounding cannot move the border
    arguments += [f"--train-data-ratio={(num_train + 0.5) / total}", f"--save-path={output}", "--on-missing=raise"]
    arguments += ["--loss-implementation=eager", "--draft-attn-impl=eager", "--num-workers=0", *options]
    train(TrainConfig.resolve(arguments))
    print(json.dumps({**spent, "threads": threads}))


def write_arrow(data: Path) -> tuple[int, int]:
    """Write the data set and the token counts; return the number of training texts and of all."""
    import torch
    from datasets import Dataset

    kept = json.loads((data / "texts.json").read_text())
    rows = [{**row, "seq_len": len(row["input_ids"])} for row in kept["texts"]]
    if not (data / "state.json").exists():
        Dataset.from_list(rows).with_format("torch").save_to_disk(str(data))
    counts = json.loads((data / "token_freq.json").read_text())
    torch.save({int(token): count for token, count in counts.items()}, data / "token_freq.pt")
    return kept["num_train"], len(rows)


def on_cpu() -> None:
    import torch
    from speculators.train.trainer import Trainer

    torch.accelerator.synchronize = lambda device=None: None
    # its own assignments have no effect
    Trainer.device_type = Trainer.local_rank = property(lambda self: "cpu", lambda self, value: None)


def clocked(trainer: type) -> dict:
    """Let its trainer count the tokens and seconds of its steps; validation and checkpoints are left out."""
    spent, epoch = {"tokens": 0, "seconds": 0.0}, trainer.train_epoch

    def train_epoch(self, *args, **kwargs):
        start, forward = time.perf_counter(), self.model.forward

        def counted(*inputs, **named):
            # it drops the first token of each text, which has no state before it
            lengths = named["document_ids"][0]
            spent["tokens"] += int((lengths >= 0).sum()) + int(lengths.max()) + 1
            return forward(*inputs, **named)

        self.model.forward = counted
        try:
            return epoch(self, *args, **kwargs)
        finally:
            self.model.forward = forward
            spent["seconds"] += time.perf_counter() - start

    trainer.train_epoch = train_epoch
    return spent


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:])
