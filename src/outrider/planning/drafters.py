"""Costs of each method: measured tables by label, or sizes by name.

A method is written as on the command line of the benchmark. With sizes, `name:model=NAME` puts another draft model in
the place of the one that `recipes/drafters/published.toml` describes.

Example: `sized("a_method:model=qwen2.5-7b", read_drafters("published"))` drafts with a model of that shape.
"""

from collections.abc import Mapping

from outrider.costs.tables import DraftCosts
from outrider.errors import ConfigError, nearest
from outrider.planning.models import model_spec
from outrider.planning.shapes import DrafterSizes
from outrider.proposers.method_spec import spelled, split_settings
from outrider.records.presets import preset_file, read_record, read_toml

__all__ = ["WARM", "measured", "read_drafters", "sized"]

WARM = " (warm)"
"""Ends the label of a method that had learnt before it was measured; it costs the same."""


def read_drafters(name: str) -> dict[str, DrafterSizes]:
    """Return every drafter of a TOML file: ours is `published`.

    Raises:
        ConfigError: if it cannot be read, or names an unknown size.
    """
    path = preset_file("drafters", name, "file of drafters")
    tables = read_toml(path)
    for method, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path} has '{method}' outside a table; give one table per method")
    return {method: read_record(DrafterSizes, table, f"{path}, {method}") for method, table in tables.items()}


def sized(text: str, known: Mapping[str, DrafterSizes]) -> DrafterSizes:
    """Return the sizes of a method.

    Raises:
        ConfigError: for an unknown method or setting.
        CheckpointError: if its model cannot be read.
    """
    name, settings = split_settings(spelled(text))
    if name not in known:
        raise ConfigError(f"no sizes of method '{name}'{nearest(name, known)}")
    for key in settings:
        if key != "model":
            raise ConfigError(f"a planned method has no setting '{key}'; did you mean 'model'?")
    return known[name].of_model(model_spec(settings["model"])) if settings else known[name]


def measured(label: str, drafts: Mapping[str, DraftCosts]) -> DraftCosts | None:
    """Return the table of a label; failing that, the only one of the same method. None if there is none."""
    if label in drafts:
        return drafts[label]
    name = label.partition(":")[0].removesuffix(WARM)
    same = [costs for known, costs in drafts.items() if known.partition(":")[0] == name]
    return same[0] if len(same) == 1 else None
