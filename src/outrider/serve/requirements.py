"""The packages of the `serve` extra.

Example: without FastAPI, `outrider serve` ends with one sentence that says how to install it.
"""

from importlib.util import find_spec
from typing import Final

from outrider.errors import ConfigError

__all__ = ["check_installed"]

PACKAGES: Final = ("fastapi", "uvicorn", "prometheus_client")


def check_installed() -> None:
    """
    Raises:
        ConfigError: if a package of the `serve` extra is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"a server needs {', '.join(missing)}; run pip install 'outrider[serve]', or pip install '.[serve]' in a"
            " checkout"
        )
