"""The loop in a few lines is taken from the source, and a name that is not called is refused."""

import pytest
from loop import loop

from outrider.errors import ConfigError

SOURCE = '''"""A module.

    in: 1    out: 2
    in: 2    out: 3

Not this:

    in: 3
"""


class Engine:
    def step(self):
        with self.guard:
            x = self.a.read(1)  # why
            if x:
                y = write(
                    x, read(x)
                )
            self.log(y)
'''


def test_statements_are_shown_in_order_with_the_example_above() -> None:
    assert loop(SOURCE, "Engine.step", ["log", "read", "write"]) == (
        "```python\n# in: 1    out: 2\n# in: 2    out: 3\nx = self.a.read(1)  # why\ny = write(\n    x, read(x)\n)\n"
        "self.log(y)\n```"
    )


@pytest.mark.parametrize(("name", "word"), [("Engine.step", "forward"), ("Engine.run", "read"), ("Engine", "read")])
def test_what_is_not_there_is_named(name: str, word: str) -> None:
    with pytest.raises(ConfigError, match="mend the page"):
        loop(SOURCE, name, [word])
