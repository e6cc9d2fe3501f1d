"""The trainable methods: what they predict at each depth, and their losses.

One file per method and one line here. Nothing else is imported, so that a list of the methods costs nothing.

Example: `OBJECTIVES["eagle3"]` is the module and the class that train an EAGLE-3 head.
"""

from outrider.errors import ConfigError, nearest

__all__ = ["OBJECTIVES", "objective_name"]

OBJECTIVES: dict[str, str] = {
    "eagle3": "outrider.train.objectives.eagle3:Eagle3Objective",
    "peagle": "outrider.train.objectives.peagle:PEagleObjective",
    "dflash": "outrider.train.objectives.blocks.dflash:DFlashObjective",
    "medusa": "outrider.train.objectives.medusa:MedusaObjective",
    "pard": "outrider.train.objectives.pard:PardObjective",
    "mtp": "outrider.train.objectives.mtp:MtpObjective",
    "draft": "outrider.train.objectives.draft_model:DraftObjective",
}


def objective_name(text: str) -> str:
    """Return the name in `OBJECTIVES` of what trains a method, in any spelling that `outrider.proposers` knows.

    Raises:
        ConfigError: for a method without weights to train, and for what is no method.
    """
    if text in OBJECTIVES:
        return text
    from outrider.proposers import known_method  # imports PyTorch

    method = known_method(text)
    found = next((name for name in OBJECTIVES if method is not None and known_method(name) == method), None)
    if found is not None:
        return found
    if method is not None:
        raise ConfigError(f"method '{method}' has no weights to train; train one of {', '.join(OBJECTIVES)}")
    raise ConfigError(f"unknown method {text!r}{nearest(text, OBJECTIVES)}")
