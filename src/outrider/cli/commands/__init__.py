"""The commands: one file and one frozen dataclass each; `outrider.cli.COMMANDS` names them."""
