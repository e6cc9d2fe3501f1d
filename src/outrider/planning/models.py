"""The shape of a model, without its weights.

    a directory or a config.json     as it stands
    qwen2.5-7b, ...                  ours in `recipes/models/`: sizes alone
    smollm2-135m                     the embedded target
    owner/name                       its `config.json` from the Hugging Face hub, nothing else

Example: `model_spec("qwen2.5-7b").num_layers == 28`.
"""

from pathlib import Path

from huggingface_hub import hf_hub_download

from outrider.env import data_directory
from outrider.errors import CheckpointError, ConfigError, nearest
from outrider.formats.locate import EMBEDDED, HUB_ID, HUB_TIMEOUT_S, locate
from outrider.models.spec import DecoderSpec

__all__ = ["model_spec"]


def model_spec(name: str) -> DecoderSpec:
    """Return the decoder that a name stands for.

    Raises:
        ConfigError: for a name of no such kind.
        CheckpointError: if its config cannot be read or fetched, or is of another family.
    """
    path = Path(name).expanduser()
    if name and path.exists():
        return DecoderSpec.from_config_file(path)
    known = {file.stem: file for file in sorted((data_directory("recipes") / "models").glob("*.json"))}
    if name in known:
        return DecoderSpec.from_config_file(known[name])
    if name in EMBEDDED:
        return DecoderSpec.from_config_file(locate(name))
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise ConfigError(f"no model directory, config.json or hub id {name!r}{nearest(name, [*known, *EMBEDDED])}")
    return DecoderSpec.from_config_file(_fetched(name))


def _fetched(hub_id: str) -> Path:
    try:
        return Path(hf_hub_download(hub_id, "config.json", etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # the hub client's transport has its own errors, and that library changes
        lines = str(error).splitlines() or [""]
        raise CheckpointError(
            f"the config.json of {hub_id} could not be fetched ({type(error).__name__}: {lines[0]:.80}); "
            "give a directory or a config.json"
        ) from error
