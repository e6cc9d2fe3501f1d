"""`outrider chat`: a conversation in the terminal; one engine answers all turns.

A line is a turn. `/reset` begins anew, `/exit` or the end of the input leaves. Ctrl-C stops an answer, whose text so
far stays in the conversation. In a pipe every line is a turn too, and the answers alone go to standard output.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from outrider.cli.commands.generate import DIM, PLAIN, marking, plain
from outrider.cli.terminal import is_styled
from outrider.loop.options import EngineOptions
from outrider.records.display import visible, visible_line

if TYPE_CHECKING:
    from outrider.engine import Engine
    from outrider.requests.text import Piece
    from outrider.sampling import SamplingParams

__all__ = ["Chat"]

COMMANDS = {"/exit": "leave", "/reset": "begin a new conversation", "/help": "list these"}


@dataclass(frozen=True, kw_only=True)
class Chat(EngineOptions):
    """Talk with a target, turn by turn, in the terminal.

    Each line is a turn; /reset begins a new conversation, /exit leaves, Ctrl-C stops an answer.
    """

    target: Annotated[str, tyro.conf.Positional] = "smollm2-135m"
    """The target model: a directory, a GGUF file, a hub id, or smollm2-135m."""
    system: str | None = None
    """The system message."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    max_len: int = 4096
    """Longest conversation in tokens; at most the target's own limit."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens that sum to this probability."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the largest probability."""
    seed: int = 0
    """Seed of all sampling; the text does not depend on the method."""
    show_drafts: bool = False
    """Colour the text that was accepted from drafts; without colours, put it in [brackets]."""

    def run(self) -> None:
        from outrider.errors import ConfigError
        from outrider.sampling import SamplingParams

        if self.max_new_tokens < 1:  # `SamplingParams` would name its own field, max_tokens
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        params = SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            max_tokens=self.max_new_tokens,
        )
        show = marking(is_styled(sys.stdout)) if self.show_drafts else plain
        conversation = _Conversation(self._engine(), params, show, self.system)
        for line in _lines():
            match line.strip():
                case "":
                    continue
                case "/exit":
                    return
                case "/reset":
                    conversation.reset()
                    _say("a new conversation begins")
                case command if command.startswith("/"):
                    _say("; ".join(f"{name}: {meaning}" for name, meaning in COMMANDS.items()))
                case text:
                    conversation.answer(text)

    def _engine(self) -> "Engine":
        from outrider.cli.loading import loaded
        from outrider.engine import Engine
        from outrider.errors import ConfigError
        from outrider.proposers.auto import check_method, named_or_picked
        from outrider.proposers.method_spec import load_method

        check_method(self.method)
        target = loaded(self)
        if target.tokenizer is None or not target.tokenizer.chat_template:
            raise ConfigError(f"{self.target} has no chat template; use outrider generate --no-chat")
        pick = named_or_picked(self.method, target)
        return Engine(
            target,
            load_method(pick.spec, target),
            max_len=min(self.max_len, target.spec.max_positions),
            verification=self.verification,
            budget=self.budget or pick.budget,
        )


@dataclass
class _Conversation:
    """The messages so far, and the engine that answers."""

    engine: "Engine"
    params: "SamplingParams"
    show: "Callable[[Sequence[Piece]], str]"
    system: str | None
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def answer(self, text: str) -> None:
        """Print the answer to a turn; one that cannot be given leaves the conversation as it was."""
        from outrider.errors import RequestError, Terminated

        clean = visible if sys.stdout.isatty() else str
        asked, pieces = [*self.messages, {"role": "user", "content": text}], list[str]()
        try:
            for event in self.engine.stream([asked], self.params):
                event.raise_for_error()
                pieces.append(event.text)
                sys.stdout.write(self.show([piece._replace(text=clean(piece.text)) for piece in event.pieces]))
                sys.stdout.flush()
        except RequestError as error:
            _say(f"{error}; /reset begins a new conversation")
            return
        except Terminated:
            raise
        except KeyboardInterrupt:
            sys.stdout.write(" ...")
        sys.stdout.write("\n")
        sys.stdout.flush()
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]


def _lines() -> Iterator[str]:
    """Yield the lines of standard input; a terminal is prompted, and can edit them."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield from sys.stdin
        return
    import readline  # noqa: F401 (`input` uses it)

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def _say(sentence: str) -> None:
    text = visible_line(sentence)
    print(f"{DIM}{text}{PLAIN}" if is_styled(sys.stderr) else text, file=sys.stderr, flush=True)
