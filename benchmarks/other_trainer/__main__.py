"""An EAGLE-3 head by `speculators` beside ours: the same texts, the same cached states, the same number of tokens.

    python -m venv OTHER; OTHER/bin/pip install speculators==0.9.0 hs-connectors==0.9.0    # an environment of its own
    outrider train eagle3 --data DATA --features cached --row-length 512 ...               # ours; caches the states
    python -m benchmarks.other_trainer convert    --data DATA --work WORK
    python -m benchmarks.other_trainer train      --work WORK --python OTHER/bin/python --name theirs [-- OPTIONS]
    python -m benchmarks.other_trainer acceptance --data DATA --work WORK ours=RUN/final theirs=WORK/theirs/2
    python -m benchmarks.other_trainer time       --data DATA --work WORK --python OTHER/bin/python ours=... theirs=...
    python -m benchmarks.other_trainer table      --work WORK

Run from the root of a checkout. Each command keeps what it has finished in WORK and goes on there; only `time` needs a
quiet machine, for about four minutes. OPTIONS are those of `speculators train`; by default 1,024 tokens a step, three
epochs and 8,192 columns, as in the run of ours that the page describes. Validation on the held-out texts is its own.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.other_trainer.acceptance import held_out, num_weights
from benchmarks.other_trainer.convert import Source, convert, final_norm
from benchmarks.other_trainer.table import table
from benchmarks.other_trainer.timing import decode, steps_of_ours, steps_of_theirs, worker

from outrider.cli.terminal import progress
from outrider.data.shards import Dataset
from outrider.errors import OutriderError
from outrider.formats.eagle3 import read_eagle3
from outrider.formats.locate import locate
from outrider.records.files import sha256_of, write_text
from outrider.targets import load_target

OURS = ("--features", "cached", "--draft-vocab", "8192", "--num-depths", "3", "--row-length", "512", "--rows", "2")
UNMEASURED = ("--eval-every", "1000000", "--real-tau-every", "0", "--checkpoint-every", "1000000")
NUM_DEPTHS, ROW_LENGTH = 3, 512


def main() -> int:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        COMMANDS[options.command](options)
    except OutriderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.other_trainer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("heads", nargs="*", metavar="NAME=DIR", type=head, help="heads to measure")
    parser.add_argument("--data", type=Path, help="data set of `outrider synthesize`, with cached states")
    parser.add_argument("--work", type=Path, required=True, help="directory for all results")
    parser.add_argument("--python", type=Path, help="interpreter of the environment of speculators")
    parser.add_argument("--name", default="theirs", help="directory of the trained head, in WORK")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=16, help="held-out prompts that `time` decodes")
    parser.add_argument("--steps", type=int, default=16, help="training steps that `time` takes with each trainer")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_intermixed_args(words[:end])
    options.rest = words[end + 1 :]
    for name in NEEDS[options.command]:
        if getattr(options, name) is None:
            parser.error(f"{options.command} needs --{name}")
    return options


def head(text: str) -> tuple[str, Path]:
    name, equals, directory = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} must be NAME=DIR")
    return name, Path(directory)


def source_of(options: argparse.Namespace) -> tuple[Any, Source]:
    target = load_target(options.target)
    data = Dataset.open(options.data, target=target).split()
    return target, Source.of(data, target, ROW_LENGTH, options.data)


def run_convert(options: argparse.Namespace) -> None:
    _, source = source_of(options)
    norm_E = final_norm(locate(options.target))
    with progress() as bar:
        convert(source, norm_E, options.work / "converted", lambda done, total: bar.show(done, total, "texts"))


def run_train(options: argparse.Namespace) -> None:
    output, record = options.work / options.name, options.work / f"{options.name}.json"
    if record.exists():
        print(f"{output} is finished; give another --name to train again")
        return
    told = worker(
        options.python, options.work, output, locate(options.target), options.threads, ["--epochs=3", *options.rest]
    )
    write_text(record, json.dumps(told | {"options": options.rest}) + "\n")


def run_acceptance(options: argparse.Namespace) -> None:
    target, source = source_of(options)
    file = options.work / "acceptance.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    for name, directory in options.heads:
        digest = sha256_of(directory / "model.safetensors")
        if known.get(name, {}).get("digest") != digest:
            checkpoint = read_eagle3(directory, target)
            found = held_out(checkpoint, target, source, NUM_DEPTHS, ROW_LENGTH)
            known[name] = {
                "digest": digest,
                "weights": num_weights(checkpoint),
                "tau": found.tau,
                "conditional": found.conditional,
                "overlap": found.overlap,
                "sampled_tau": found.sampled_tau,
                "texts": found.num_texts,
                "anchors": found.num_anchors,
            }
            write_text(file, json.dumps(known, indent=1) + "\n")
        print(f"{name}: tau {known[name]['tau']:.3f}, {' '.join(f'{one:.3f}' for one in known[name]['conditional'])}")


def run_time(options: argparse.Namespace) -> None:
    heads = dict(options.heads)
    report = decode(heads, options.data, options.work, options.target, options.prompts)
    steps = {
        "ours": steps_of_ours(["--data", str(options.data), *OURS, *UNMEASURED], options.steps * 1024, options.threads),
        "theirs": steps_of_theirs(options.python, options.work, locate(options.target), options.steps, options.threads),
    }
    kept = {"heads": {name: str(place) for name, place in heads.items()}, "decode": report, "steps": steps}
    write_text(options.work / "time.json", json.dumps(kept) + "\n")
    run_table(options)


def run_table(options: argparse.Namespace) -> None:
    kept = [options.work / name for name in ("acceptance.json", "time.json")]
    acceptance, times = (json.loads(file.read_text()) if file.exists() else None for file in kept)
    print("\n".join(table(acceptance, times)))


COMMANDS = {
    "convert": run_convert,
    "train": run_train,
    "acceptance": run_acceptance,
    "time": run_time,
    "table": run_table,
}
NEEDS = {
    "convert": ("data",),
    "train": ("python",),
    "acceptance": ("data",),
    "time": ("data", "python"),
    "table": (),
}


if __name__ == "__main__":
    sys.exit(main())
