"""`outrider serve`: an OpenAI-compatible server."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from outrider.serve.config import ServeConfig

__all__ = ["Serve"]


@dataclass(frozen=True, kw_only=True)
class Serve(ServeConfig):
    """Serve a target through OpenAI's HTTP interface, and a page to watch it at /.

    One line with the address goes to standard output when requests are taken. SIGTERM and Ctrl-C stop it: running
    answers may finish first, and the exit status is 0.
    """

    target: Annotated[str, tyro.conf.Positional] = "smollm2-135m"
    """The target model: a directory, a GGUF file, a hub id, or smollm2-135m."""

    def run(self) -> None:
        from outrider.cli.loading import loaded
        from outrider.env import api_key
        from outrider.serve.requirements import check_installed

        check_installed()
        from outrider.proposers.auto import check_method
        from outrider.serve.opening import opened
        from outrider.serve.server import serve

        key = self.api_key or api_key()
        check_method(self.method)
        service = opened(loaded(self), self)

        def started(url: str) -> None:
            print(f"Outrider serves {self.model} at {url} (API at {url}/v1, method {service.method})")
            sys.stdout.flush()

        serve(service, self, key, started)
