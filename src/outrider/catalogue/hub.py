"""Configs from the Hugging Face hub: enough to see whether a drafter exists and fits, before its weights are fetched.

Example: `fetch_configs(["a/b"])` is `{"a/b": "the hub has no such repository, ..."}` where there is none; a config that
was fetched lies in the hub's cache.
"""

from collections.abc import Iterable

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from outrider.errors import RunError, on_one_line
from outrider.formats.locate import CONFIG, HUB_ID, HUB_TIMEOUT_S

__all__ = ["fetch_configs"]


def fetch_configs(names: Iterable[str]) -> dict[str, str]:
    """Fetch the config of each hub id, and return the faults by id; names of other kinds are passed over.

    Raises:
        RunError: if the hub cannot be reached.
    """
    faults = {}
    for name in names:
        if HUB_ID.fullmatch(name) is None or name.startswith("."):
            continue
        try:
            hf_hub_download(name, CONFIG, etag_timeout=HUB_TIMEOUT_S)
        except GatedRepoError:
            faults[name] = "it is gated; accept its licence on the hub and run `hf auth login`"
        except RepositoryNotFoundError:
            faults[name] = "the hub has no such repository, or it is private"
        except LocalEntryNotFoundError as error:
            raise _unreachable(error) from error
        except EntryNotFoundError:
            faults[name] = f"its repository has no {CONFIG}"
        except Exception as error:  # the hub client's transport has its own errors, and that library changes
            raise _unreachable(error) from error
    return faults


def _unreachable(error: Exception) -> RunError:
    reason = on_one_line((str(error).splitlines() or [type(error).__name__])[0], 120)
    return RunError(f"the hub cannot be reached ({reason}); leave out --online to list what is known here")
