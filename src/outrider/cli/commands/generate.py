"""`outrider generate`: stream an answer, and show which part of it was drafted.

A terminal sees escape sequences that a model writes instead of obeying them; in a pipe or a file the text is exactly
the model's.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from outrider.cli.terminal import is_styled
from outrider.loop.options import EngineOptions
from outrider.records.display import visible

if TYPE_CHECKING:
    from outrider.engine import Engine
    from outrider.metrics import PrefillRecord, StepRecord
    from outrider.requests.events import Event
    from outrider.requests.logprobs import TokenLogprob
    from outrider.requests.text import Piece, Prompt
    from outrider.sampling import SamplingParams
    from outrider.traces.trace import StepTrace

__all__ = ["DIM", "PLAIN", "Generate", "marking", "plain"]


@dataclass(frozen=True, kw_only=True)
class Generate(EngineOptions):
    """Stream an answer to a prompt; the reason it ended and statistics follow on standard error.

    A terminal shows control characters in the answer as escapes; a pipe gets the text as it is.
    """

    prompt: tyro.conf.Positional[str]
    """The prompt; - reads it from standard input."""
    max_new_tokens: int = 128
    """Longest answer in tokens."""
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
    stop: tuple[str, ...] = ()
    """Strings that end the answer."""
    min_tokens: int = 0
    """Tokens before which the answer does not end by a token or a stop string."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the answer holds, from -2 to 2."""
    frequency_penalty: float = 0.0
    """The same for each time that a token occurs in the answer."""
    repetition_penalty: float = 1.0
    """Makes tokens of prompt and answer less probable above 1, more probable below."""
    bad_words: tuple[str, ...] = ()
    """Strings that the answer must not hold."""
    logprobs: int | None = None
    """Show on standard error the log-probability of every token, and so many of the most probable ones."""
    json_schema: Path | None = None
    """File with a JSON schema that the answer must fit."""
    json_object: bool = False
    """The answer is a JSON object."""
    compact_json: bool = False
    """Allow no white space between the parts of JSON."""
    regex: str | None = None
    """Regular expression that the whole answer must match."""
    choice: tuple[str, ...] = ()
    """Strings of which the answer is one."""
    grammar: Path | None = None
    """File with a grammar, in the notation of Lark or GBNF, that the answer must fit."""
    system: str | None = None
    """The system message."""
    chat: bool = True
    """Use the target's chat template; --no-chat continues the prompt as it is."""
    show_drafts: bool = False
    """Colour the text that was accepted from drafts; without colours, put it in [brackets]."""
    ribbon: Path | None = None
    """HTML file to write: the answer with the writer of each token, and each step's draft, probabilities and times."""

    def run(self) -> None:
        from outrider.cli.loading import loaded, logprob_lines, params_of
        from outrider.engine import Engine
        from outrider.proposers.auto import check_method, named_or_picked
        from outrider.proposers.method_spec import load_method
        from outrider.requests.text import encode

        params = params_of(self)
        check_method(self.method)
        self._check_ribbon()
        target = loaded(self)
        pick = named_or_picked(self.method, target)
        proposer = load_method(pick.spec, target)
        prompt = encode(target.tokenizer, self._prompt(target.tokenizer))
        records: list[StepRecord | PrefillRecord] = []
        engine = Engine(
            target,
            proposer,
            max_len=max(2, min(len(prompt) + max(1, self.max_new_tokens), target.spec.max_positions)),
            verification=self.verification,
            budget=self.budget or pick.budget,
            record=records.append,
        )
        show = marking(is_styled(sys.stdout)) if self.show_drafts else plain
        clean = visible if sys.stdout.isatty() else str
        finished = None
        logprobs: list[TokenLogprob] = []
        steps: list[StepTrace] = []
        for event in self._events(engine, prompt, params, steps):
            sys.stdout.write(show([piece._replace(text=clean(piece.text)) for piece in event.pieces]))
            sys.stdout.flush()
            event.raise_for_error()
            finished = event.finished
            logprobs += event.logprobs
        sys.stdout.write("\n")
        sys.stdout.flush()
        ends = (ENDS.get(str(finished), f"ended: {finished}"), statistics(records))
        for line in (*logprob_lines(logprobs, target.tokenizer), *ends):
            print(f"{DIM}{line}{PLAIN}" if is_styled(sys.stderr) else line, file=sys.stderr)
        self._write_ribbon(target.spec.name, pick.spec.label, steps)

    def _events(
        self, engine: "Engine", prompt: list[int], params: "SamplingParams", steps: "list[StepTrace]"
    ) -> "Iterator[Event]":
        """Decode the prompt; `steps` gets a trace of each step if the ribbon is wanted."""
        from outrider.traces.record import traced_events

        return engine.stream([prompt], params) if self.ribbon is None else traced_events(engine, prompt, params, steps)

    def _check_ribbon(self) -> None:
        from outrider.errors import ConfigError

        if self.ribbon is not None and not self.ribbon.parent.is_dir():
            raise ConfigError(f"--ribbon: {self.ribbon.parent} is no directory; make it first, or name another file")

    def _write_ribbon(self, target: str, method: str, steps: "list[StepTrace]") -> None:
        from outrider.records.files import write_text
        from outrider.traces.html import page
        from outrider.traces.trace import Trace

        if self.ribbon is not None:
            said = "(standard input)" if self.prompt == "-" else self.prompt
            trace = Trace(target=target, method=method, prompt=said, temperature=self.temperature, steps=tuple(steps))
            write_text(self.ribbon, page([trace], f"{target} with {method}"), "name another file with --ribbon")

    def _prompt(self, tokenizer: object) -> "Prompt":
        from outrider.errors import RequestError

        text = _standard_input() if self.prompt == "-" else self.prompt
        if not text:
            raise RequestError("the prompt is empty; give at least one character")
        if not self.chat:
            if self.system is not None:
                raise RequestError("--system needs the chat template; leave out --no-chat")
            return _raw(tokenizer, text)
        if self.system is None:
            return text
        return [{"role": "system", "content": self.system}, {"role": "user", "content": text}]


DRAFTED, DIM, PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"
ENDS = {
    "eos": "ended by the model (eos)",
    "stop": "ended at a stop string (stop)",
    "length": "ended at --max-new-tokens (length)",
    "context": "ended at the context limit of the target (context)",
}


def _raw(tokenizer: object, text: str) -> "Prompt":
    from outrider.errors import RequestError
    from outrider.records.values import check_text
    from outrider.requests.chat import tokenize

    if tokenizer is None:
        raise RequestError("this target has no tokenizer, so it cannot read text")
    check_text(text, "the prompt")
    return tokenize(tokenizer, text)


def _standard_input() -> str:
    """Read all of it, as UTF-8 whatever the locale."""
    from outrider.errors import RequestError

    if sys.stdin is None:
        raise RequestError("standard input is closed; give the prompt as an argument")
    binary = getattr(sys.stdin, "buffer", None)
    data = sys.stdin.read().encode("utf-8", "surrogatepass") if binary is None else binary.read()
    try:
        return str(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RequestError(
            f"standard input is not UTF-8 (byte 0x{data[error.start]:02X} at {error.start}); convert it, for example"
            " with iconv -t UTF-8"
        ) from error


def plain(pieces: "Sequence[Piece]") -> str:
    """Return the text of pieces."""
    return "".join(piece.text for piece in pieces)


def marking(is_coloured: bool) -> "Callable[[Sequence[Piece]], str]":
    """Return a function that gives the text of pieces with accepted drafts marked."""
    before, after = (DRAFTED, PLAIN) if is_coloured else ("[", "]")

    def shown(pieces: "Sequence[Piece]") -> str:
        runs = groupby((piece for piece in pieces if piece.text), key=lambda piece: piece.drafted)
        texts = ((drafted, "".join(piece.text for piece in run)) for drafted, run in runs)
        return "".join(f"{before}{text}{after}" if drafted else text for drafted, text in texts)

    return shown


def statistics(records: "Sequence[StepRecord | PrefillRecord]") -> str:
    """Return one line: tokens, tokens per target forward, speed."""
    from outrider.metrics import PrefillRecord, StepRecord, summarize

    steps = [record for record in records if isinstance(record, StepRecord)]
    prefills = [record for record in records if isinstance(record, PrefillRecord)]
    found = summarize(steps, prefills)
    tau = found.tokens_per_target_forward or 0.0
    forced = f", {found.num_accepted_forced_tokens} of them forced" if found.num_forced_tokens else ""
    return (
        f"{found.num_emitted_tokens} tokens{forced} in {found.num_steps} target forwards (tau {tau:.2f}), "
        f"{found.num_emitted_tokens / found.decode_s:.1f} tokens/s; prompt read in {found.prefill_s:.2f} s"
    )
