"""The directory that `outrider synthesize` fills: one process at a time, and only ever with one kind of text.

A run that was interrupted goes on behind the last finished shard. It must have the same settings and target, or the
texts would no longer be what the manifest says; only how many texts are wanted may change, so that a data set can grow.

Each shard's header says where in its source the next one starts and what was dropped on the way. The totals in the
manifest are sums over these headers.

Example: after `directory.write(shard)`, `directory.position` is the source's place to go on from.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

from outrider.data.shards import (
    DELETE,
    MANIFEST,
    SCHEMA,
    Text,
    check_shard,
    read_header,
    read_manifest,
    shard_paths,
    write_shard,
)
from outrider.errors import RunError, on_one_line
from outrider.records.files import lock_directory, write_text, writing
from outrider.records.json_fields import Fields, parse_json

__all__ = ["DataDirectory", "Shard", "Totals"]


COUNTS = ("num_prompts", "num_texts", "num_tokens", "num_learnt_tokens", "num_cut_answers")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The content of one shard.

    texts      token ids and loss masks to train on
    records    one JSON object per conversation
    position   place in the source at which the next shard starts
    dropped    numbers of prompts that were left out, by reason
    num_cut    answers that ended at the limit
    """

    texts: Sequence[Text]
    records: Sequence[Mapping[str, Any]]
    position: int
    dropped: Mapping[str, int]
    num_cut: int

    @property
    def counts(self) -> dict[str, int]:
        return {
            "num_prompts": len(self.records),
            "num_texts": len(self.texts),
            "num_tokens": sum(len(text.tokens) for text in self.texts),
            "num_learnt_tokens": sum(sum(text.learn) for text in self.texts),
            "num_cut_answers": self.num_cut,
        }


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over all finished shards."""

    num_shards: int
    num_prompts: int
    num_texts: int
    num_tokens: int
    num_learnt_tokens: int
    num_cut_answers: int
    position: int
    dropped: Mapping[str, int]


@final
class DataDirectory:
    """A data set that grows, locked for this process until `close`.

    Args:
        manifest: target, settings and provenance of the run.

    Raises:
        RunError: if another process works there, it holds something else, or it cannot be written.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory = directory
        with writing(directory):
            self._lock = lock_directory(directory, "writing into", "another --output")
        try:
            self.manifest = self._adopt({"schema": SCHEMA, **manifest})
            self._headers = [_header(path, self.manifest) for path in shard_paths(directory)]
            if self._headers and self.manifest.get("totals") != self._plain_totals():
                self._write_manifest()  # a process that was killed wrote a shard and not the sum
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes work here."""
        self._lock.release()

    @property
    def totals(self) -> Totals:
        counts: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for header in self._headers:
            counts.update({name: header["counts"][name] for name in COUNTS})
            dropped.update(header["dropped"])
        return Totals(
            num_shards=len(self._headers),
            num_prompts=counts["num_prompts"],
            num_texts=counts["num_texts"],
            num_tokens=counts["num_tokens"],
            num_learnt_tokens=counts["num_learnt_tokens"],
            num_cut_answers=counts["num_cut_answers"],
            position=self._headers[-1]["position"] if self._headers else 0,
            dropped=dict(sorted(dropped.items())),
        )

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the conversations of all finished shards, in order.

        Raises:
            RunError: if a list of conversations is missing or does not fit its shard.
        """
        for number, header in enumerate(self._headers):
            path = self._path(number, "jsonl")
            try:
                lines = path.read_bytes().split(b"\n")
            except OSError as error:
                raise RunError(f"{path} cannot be read ({error.strerror}); {DELETE}") from error
            found = [_record(line, f"{path}, line {at}") for at, line in enumerate(lines, start=1) if line.strip()]
            if len(found) != header["counts"]["num_prompts"]:
                raise RunError(f"{path} does not fit its shard; {DELETE}")
            yield from found

    def write(self, shard: Shard) -> None:
        """Keep a finished shard.

        Raises:
            RunError: if the disk is full.
        """
        header = {
            "target_fingerprint": self.manifest["target"]["fingerprint"],
            "position": shard.position,
            "dropped": dict(sorted(shard.dropped.items())),
            "counts": shard.counts,
        }
        lines = [json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in shard.records]
        # the tensors come last: a shard counts as finished once they exist
        write_text(self._path(len(self._headers), "jsonl"), "".join(lines))
        path = self._path(len(self._headers), "safetensors")
        write_shard(path, shard.texts, header)
        self._headers.append(read_header(path))
        self._write_manifest()

    def _path(self, number: int, suffix: str) -> Path:
        return self.directory / f"shard-{number:05}.{suffix}"

    def _write_manifest(self) -> None:
        self.manifest["totals"] = self._plain_totals()
        content = json.dumps(self.manifest, indent=2, sort_keys=True, ensure_ascii=False)
        write_text(self.directory / MANIFEST, content + "\n")

    def _plain_totals(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self.totals).items() if key != "position"}

    def _adopt(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        if (self.directory / MANIFEST).exists():
            started = read_manifest(self.directory)
            self._refuse_others(started, manifest)
            return started
        strangers = sorted(entry.name for entry in self.directory.iterdir() if not entry.name.startswith("."))
        if strangers:
            raise RunError(f"{self.directory} holds '{strangers[0]}' but no data set; give an empty or new --output")
        write_text(self.directory / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return dict(manifest)

    def _refuse_others(self, started: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        # through JSON, for tuples are lists in the manifest
        plain = json.loads(json.dumps({key: now[key] for key in ("target", "settings")}))
        # older data sets name no kind of weights: all targets were widened
        started, plain = (
            {**facts, "target": {"weights": "bfloat16", **facts["target"]}} for facts in (dict(started), plain)
        )
        for part, wanted in plain.items():
            for key in sorted(wanted.keys() | started[part].keys()):
                if started[part].get(key) != wanted.get(key):
                    kept = on_one_line(f"{key}={started[part].get(key)}, not {key}={wanted.get(key)}")
                    raise RunError(
                        f"{self.directory} was started with {kept}; use the same settings or give another --output"
                    )


def _header(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header of a shard, once the shard is known to match it.

    Raises:
        RunError: if it was damaged or changed, or another target wrote it.
    """
    header = Fields(read_header(path), f"{path}, its header", RunError, DELETE)
    counts, dropped = header.section("counts"), header.section("dropped")
    header.integer("position", low=0)
    for name in COUNTS:
        counts.integer(name, low=0)
    for name in dropped:
        dropped.integer(name, low=0)
    if header["target_fingerprint"] != manifest["target"]["fingerprint"]:
        raise RunError(f"{path} was written by another target than the manifest beside it says; {DELETE}")
    check_shard(path, header)
    return header.plain()


def _record(line: bytes, where: str) -> dict[str, Any]:
    """Return one conversation, once it is known to hold messages of the user."""
    record = parse_json(line, where, RunError, DELETE)
    roles = [message.text("role") for message in record.sections("messages") if message.text("content") is not None]
    if "user" not in roles:
        record.refuse("messages", "a list with a message of the user")
    return record.plain()
