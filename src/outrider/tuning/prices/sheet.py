"""Costs of another machine, from its data sheet: for `--hardware`, where nothing can be timed.

Sizes of drafters are those of `recipes/drafters/published.toml`; a method without sizes there is left out.

Example: `sheet_costs("h100", target, families, context=400.0)` prices every setting on an H100.
"""

from collections.abc import Sequence

from outrider.costs.tables import DraftCosts
from outrider.errors import ConfigError
from outrider.models.spec import DecoderSpec
from outrider.planning.check import CostTables
from outrider.planning.drafters import read_drafters
from outrider.planning.models import model_spec
from outrider.planning.roofline import Hardware, RooflineCosts, RooflineDraftCosts
from outrider.planning.widths import stored_kinds, width_of
from outrider.proposers.method_spec import split_settings
from outrider.records.presets import preset_file, read_record, read_toml
from outrider.target import Target
from outrider.tuning.candidates import Family

__all__ = ["sheet_costs"]


def sheet_costs(
    name: str, target: Target, families: Sequence[Family], context: float
) -> tuple[CostTables, tuple[str, ...]]:
    """Return the costs on a data sheet's machine, and notes on them.

    Raises:
        ConfigError: for unknown hardware, or a target that does not fit into its memory.
    """
    file = preset_file("hardware", name, "hardware")
    hardware = read_record(Hardware, read_toml(file), str(file))
    spec: DecoderSpec = model_spec(target.spec.name)
    width = width_of(stored_kinds(target.spec.name), spec)
    costs = RooflineCosts(hardware=hardware, spec=spec, bytes_per_weight=width.num_bytes, is_integer=width.is_integer)
    if costs.largest_batch(context) < 1:
        raise ConfigError(
            f"{target.spec.name} does not fit into the memory of {hardware.name}; give a larger --hardware"
        )
    known = read_drafters("published")
    drafts: dict[str, DraftCosts] = {}
    without = []
    for family in families:
        method = split_settings(family.base)[0]
        if method not in known:
            without.append(family.base)
            continue
        priced = RooflineDraftCosts(target=costs, sizes=known[method], context=context)
        drafts |= {one.text: priced for one in family.settings}
    notes = [f"a roofline of {hardware.name}, not a measurement; acceptance was measured here"]
    notes += [f"left out, for want of sizes: {', '.join(without)}"] if without else []
    return CostTables(target=costs, drafts=drafts), tuple(notes)
