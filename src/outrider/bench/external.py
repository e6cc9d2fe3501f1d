"""Baselines outside our engine: Hugging Face `generate` on the same weights, prompts and limits, in the same run.

    transformers                       plain
    transformers-lookup                `prompt_lookup_num_tokens`, its n-gram method; setting: num_tokens
    transformers-assisted              assisted generation with a small model; setting: layers=0,1,2 of the target,
                                       or checkpoint=DIRECTORY

They decode greedily, one request at a time; everything else is as that library comes. Its time is split at the first
tokens that reach a streamer: up to there is prefill, the rest decodes the remaining tokens. Its arithmetic rounds
differently from ours in bf16, so its texts may leave ours at a near tie; equality is counted, not required.

Example: 64 tokens of which 3 arrive together after 0.5 s and the last after 2.5 s were decoded at 61 / 2 tokens/s.
"""

import copy
import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter
from typing import Any, final

import torch

from outrider.bench.cells import Cell, Group
from outrider.bench.config import BenchConfig
from outrider.bench.contender import Contender, Name
from outrider.bench.notes import Notes
from outrider.data.dialogue import Dialogue, Rules
from outrider.errors import CheckpointError, ConfigError, RunError, as_error, nearest
from outrider.formats.locate import locate
from outrider.proposers.method_spec import split_settings
from outrider.results.unit import Answer, UnitResult
from outrider.target import Target

__all__ = ["EXTERNAL", "ExternalModel", "TransformersContender", "external_contenders"]

ENGINE = "transformers"
EXTERNAL = {
    "transformers": (),
    "transformers-lookup": ("num_tokens",),
    "transformers-assisted": ("layers", "checkpoint"),
}
"""Name -> its settings."""


def external_contenders(
    config: BenchConfig, target: Target, warm_up: Sequence[int], notes: Notes
) -> list["TransformersContender"]:
    """Return the external baselines of a run; an optional one that does not fit the target is a note.

    Raises:
        ConfigError: for an unknown name or setting, or a target without files.
    """
    model = ExternalModel(target)
    found = []
    for text in config.external:
        excused = (ConfigError,) if text in config.optional else ()
        with notes.leaving_out(text, *excused):
            found.append(_contender(text, model, config, warm_up))
    return found


def _contender(
    text: str, model: "ExternalModel", config: BenchConfig, warm_up: Sequence[int]
) -> "TransformersContender":
    name, settings = split_settings(text)
    if name not in EXTERNAL:
        raise ConfigError(f"unknown external baseline '{name}'{nearest(name, EXTERNAL)}")
    for key in settings:
        if key not in EXTERNAL[name]:
            raise ConfigError(f"'{name}' has no setting '{key}'{nearest(key, EXTERNAL[name])}")
    target = model.target
    if target.spec.source is None:
        raise ConfigError(f"'{name}' reads the target's files, but {target.spec.name} has none")
    method = name.partition("-")[2] or "generate"
    return TransformersContender(method, model, _arguments(name, settings, target), config, warm_up)


@dataclass(frozen=True)
class _Arguments:
    """Arguments of `generate`: plain keyword arguments, and layers or a directory of an assistant."""

    keywords: dict[str, Any]
    layers: tuple[int, ...] = ()
    checkpoint: str | None = None


def _arguments(name: str, settings: dict[str, str], target: Target) -> _Arguments:
    try:
        if "num_tokens" in EXTERNAL[name]:
            return _Arguments({"prompt_lookup_num_tokens": int(settings.get("num_tokens", "10"))})
        layers = tuple(int(layer) for layer in settings.get("layers", "").split(",") if layer)
    except ValueError:
        raise ConfigError(f"a setting of '{name}' is not a number: {settings}") from None
    if "layers" in EXTERNAL[name] and bool(layers) == ("checkpoint" in settings):
        raise ConfigError(f"'{name}' needs an assistant; write {name}:layers=0,1,2 or {name}:checkpoint=DIRECTORY")
    for layer in layers:
        if not 0 <= layer < target.spec.num_layers:
            raise ConfigError(f"layer {layer} does not exist; the target has layers 0 to {target.spec.num_layers - 1}")
    return _Arguments({}, layers, settings.get("checkpoint"))


@final
class ExternalModel:
    """The target once more, as `transformers` loads it; shared by its baselines."""

    def __init__(self, target: Target) -> None:
        self.target = target

    @cached_property
    def model(self) -> Any:
        return self._load(str(self.target.checkpoint()))

    def assistant(self, arguments: _Arguments) -> Any:
        """Return a small model with the same vocabulary."""
        if arguments.checkpoint is not None:
            return self._load(str(locate(arguments.checkpoint)))
        return kept_layers(self._load(str(self.target.checkpoint())), arguments.layers)

    def _load(self, directory: str) -> Any:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        spec = self.target.spec
        what = f"transformers cannot load {directory}"
        with as_error(CheckpointError, what, "leave out --external or check the files"):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=spec.dtype, local_files_only=True, trust_remote_code=spec.trusts_code
            )
        return model.to(spec.device).eval()


def kept_layers(model: Any, layers: Sequence[int]) -> Any:
    """Return the model with some of its layers only, renumbered for its cache."""
    what = "an assistant cannot be made of this target's layers"
    with as_error(ConfigError, what, "give one as checkpoint=DIRECTORY"):
        kept = [model.model.layers[layer] for layer in layers]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    model.model.layers = torch.nn.ModuleList(kept)
    model.config = copy.deepcopy(model.config)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[layer] for layer in layers]
    model.model.config = model.config
    return model


class _Arrivals:
    """A streamer that reads the clock; its first item is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.sizes: list[int] = []

    def put(self, tokens: Any) -> None:
        self.times.append(perf_counter())
        self.sizes.append(tokens.numel())

    def end(self) -> None:
        """Flush nothing: nothing is buffered."""


@final
class TransformersContender(Contender):
    """`generate` of `transformers`, greedy, one request at a time."""

    def __init__(
        self, method: str, model: ExternalModel, arguments: _Arguments, config: BenchConfig, warm_up: Sequence[int]
    ) -> None:
        self.source = model
        self.arguments = arguments
        self.config = config
        self.warm_up = list(warm_up)
        self._name = Name(ENGINE, method)
        self._assistant: Any = None
        self._num_requests = 0

    @property
    def name(self) -> Name:
        return self._name

    @property
    def learns(self) -> bool:
        return False

    def takes(self, cell: Cell, index: int) -> bool:
        config = self.config
        return (
            cell.batch == 1
            and cell.temperature == 0
            and cell.repeat < config.external_repeats
            and index < config.external_prompts
            and (config.external_categories is None or cell.category in config.external_categories)
        )

    def open(self, batch: int) -> None:
        if self._assistant is None and (self.arguments.layers or self.arguments.checkpoint):
            self._assistant = self.source.assistant(self.arguments)
        self._generate(self.warm_up, 4, ignore_eos=True, streamer=_Arrivals())

    def close(self) -> None:
        self._assistant = None
        gc.collect()

    def leave(self) -> None:
        """Release nothing: no state outlives a batch size."""

    def reset(self) -> None:
        """Reset nothing: no state outlives a request."""

    def measure(self, cell: Cell, group: Group, rules: Rules) -> UnitResult:
        gc.collect()
        start = perf_counter()
        answers = [answer for conversation in group for answer in self._play(Dialogue(conversation), rules)]
        wall_s = perf_counter() - start
        return self.name.result(cell, group, rules, answers, wall_s)

    def _play(self, dialogue: Dialogue, rules: Rules) -> list[Answer]:
        conversation, tokenizer = dialogue.conversation, self.source.target.tokenizer
        answers: list[Answer] = []
        for turn in range(len(conversation.turns)):
            start = perf_counter()
            prompt = dialogue.ask(turn, tokenizer)
            room = rules.max_len - len(prompt)
            if room < 1:
                break
            answer = self._answer(prompt, min(room, rules.limit(conversation)), rules, start)
            answers.append(replace(answer, conversation=conversation.id, turn=turn))
            dialogue.answer(answer.tokens, tokenizer)
        return answers

    def _answer(self, prompt: list[int], limit: int, rules: Rules, start: float) -> Answer:
        self._num_requests += 1
        arrivals = _Arrivals()
        tokens = self._generate(prompt, limit, ignore_eos=rules.ignore_eos, streamer=arrivals)
        return Answer(
            conversation="",
            turn=0,
            request=self._num_requests,
            seed=0,
            num_prompt_tokens=len(prompt),
            tokens=tuple(tokens),
            ttft_s=arrivals.times[1] - start,
            latency_s=perf_counter() - start,
            first_burst=arrivals.sizes[1],
        )

    def _generate(self, prompt: list[int], limit: int, *, ignore_eos: bool, streamer: _Arrivals) -> list[int]:
        spec = self.source.target.spec
        prompt_1S = torch.tensor([prompt], device=spec.device)
        assistant = {} if self._assistant is None else {"assistant_model": self._assistant}
        ends = list(spec.eos_ids)
        what = f"transformers cannot write with {self.name.method}"
        with torch.inference_mode(), as_error(RunError, what, "leave it out of --external"):
            text_1S = self.source.model.generate(
                prompt_1S,
                attention_mask=torch.ones_like(prompt_1S),
                do_sample=False,
                max_new_tokens=limit,
                min_new_tokens=limit if ignore_eos else None,
                eos_token_id=ends or None,
                pad_token_id=ends[0] if ends else 0,
                streamer=streamer,
                **self.arguments.keywords,
                **assistant,
            )
        return text_1S[0, len(prompt) :].tolist()  # type: ignore[no-any-return]
