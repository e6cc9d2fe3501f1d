"""Facts about a target that decide which drafters fit: names, files and sizes, without weights and without a network.

    a loaded target        its spec
    a directory            its config.json
    a .gguf file           its metadata
    smollm2-135m           its name alone
    owner/name             the config.json of its copy in the hub's cache, if there is one

Example: `facts_of("Qwen/Qwen3-8B").directory` is None on a machine that never fetched it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from huggingface_hub import try_to_load_from_cache

from outrider.catalogue.published import base_name
from outrider.errors import CheckpointError, ConfigError, nearest
from outrider.formats.gguf.config import config_of_gguf
from outrider.formats.gguf.file import open_gguf
from outrider.formats.locate import CONFIG, EMBEDDED, HUB_ID, fetched_file
from outrider.records.display import shown_json
from outrider.records.json_fields import read_json
from outrider.target import Target

__all__ = ["TargetFacts", "cached_snapshot", "facts_of"]

CACHED: Final = "models--"
"""Start of a repository's directory in the hub's cache: `models--owner--name/snapshots/REVISION`."""


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    """A target, as far as its files or its name tell.

    name        the name that the user gave
    names       base names under which the catalogue may know it
    directory   directory of its Hugging Face files; None for other files, or none
    has_files   its files are on this machine
    config      content of its config.json, or the same from a GGUF file; empty if unknown
    loaded      the target itself, where it is loaded
    """

    name: str
    names: frozenset[str]
    directory: Path | None = None
    has_files: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    loaded: Target | None = None

    def size(self, key: str) -> int | None:
        """Return a size such as `vocab_size`; None if unknown."""
        text = self.config.get("text_config")
        value = (text if isinstance(text, Mapping) else self.config).get(key)
        return value if type(value) is int else None


def facts_of(target: str | Path | Target) -> TargetFacts:
    """Return the facts about a target, loaded or not.

    Raises:
        ConfigError: for a name that is no path, no hub id and not the embedded target.
        CheckpointError: if its config or its metadata cannot be read.
    """
    if isinstance(target, Target):
        return _of_loaded(target)
    name, path = str(target), Path(target).expanduser()
    if name in EMBEDDED:
        file = fetched_file(name)
        return TargetFacts(name=name, names=_names(name)) if file is None else _of_gguf(name, file)
    if name and path.is_dir():
        return _of_directory(name, path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; pass a .gguf file")
        return _of_gguf(name, path)
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise ConfigError(f"no model directory, .gguf file or hub id {shown_json(name, 200)}{nearest(name, EMBEDDED)}")
    directory = cached_snapshot(name)
    return TargetFacts(name=name, names=_names(name)) if directory is None else _of_directory(name, directory)


def cached_snapshot(hub_id: str) -> Path | None:
    """Return the directory of a repository in the hub's cache; None if its config.json is not there."""
    try:
        found = try_to_load_from_cache(hub_id, CONFIG)
    except (OSError, ValueError):  # a damaged reference in the cache, or a name that the hub does not allow
        return None
    return Path(found).parent if isinstance(found, str) else None


def _of_directory(name: str, path: Path) -> TargetFacts:
    return TargetFacts(name=name, names=_names(name), directory=path, has_files=True, config=read_json(path / CONFIG))


def _of_gguf(name: str, file: Path) -> TargetFacts:
    return TargetFacts(name=name, names=_names(name), has_files=True, config=config_of_gguf(open_gguf(file)))


def _of_loaded(target: Target) -> TargetFacts:
    spec = target.spec
    source = None if spec.source is None else Path(spec.source)
    directory = source if source is not None and source.is_dir() else None
    known = {} if directory is None else dict(read_json(directory / CONFIG))
    config = {
        **{key: value for key, value in known.items() if key != "text_config"},
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
    }
    names = _names(spec.name) | (_names(str(source)) if source is not None else set())
    return TargetFacts(
        name=spec.name,
        names=frozenset(names),
        directory=directory,
        has_files=source is not None,
        config=config,
        loaded=target,
    )


def _names(name: str) -> frozenset[str]:
    """Return the base names of a name or a path, a snapshot's repository included.

    >>> sorted(_names("/hub/models--Qwen--Qwen3-8B/snapshots/abc"))
    ['abc', 'qwen3-8b']
    """
    found = {base_name(name)}
    found |= {base_name(part.replace("--", "/")) for part in Path(name).parts if part.startswith(CACHED)}
    found |= {base_name(EMBEDDED[name].hub_id)} if name in EMBEDDED else set()
    return frozenset(found)
