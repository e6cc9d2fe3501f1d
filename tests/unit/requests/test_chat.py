"""Chat templates that refuse, fail, never end or give no text; tokenizers that give no tokens."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from outrider.errors import RequestError
from outrider.requests import chat
from outrider.requests.text import encode

USER = [{"role": "user", "content": "hi"}]
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must\n  alternate.') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.fixture
def templated(tokenizer: PreTrainedTokenizerFast) -> Iterator[PreTrainedTokenizerFast]:
    yield tokenizer
    tokenizer.chat_template = None


def test_the_tokens_are_those_of_transformers(templated: PreTrainedTokenizerFast) -> None:
    templated.chat_template = ALTERNATING
    talk = [*USER, {"role": "assistant", "content": "yes? \u4e2d"}, {"role": "user", "content": "<eos>"}]
    want = templated.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert encode(templated, talk) == want
    assert encode(templated, "hi") == templated.apply_chat_template(USER, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "{{ raise_exception('Roles must\n  alternate.') }}",
            "the chat template refuses these messages: Roles must alt",
        ),
        ("{{ raise_exception('') }}", "refuses these messages: no reason given"),
        ("{{ raise_exception('x' * 1000) }}", r"refuses these messages: x{200}$"),
        ("{{ 1 / 0 }}", r"fails on these messages \(ZeroDivisionError: division by zero\)"),
        ("{{ messages[0].nothing.there }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ '\ud83d' }}", r"half of a surrogate pair, U\+D83D"),
        ({"tool_use": "a", "rag": "b"}, "the chat templates tool_use, rag, and none is called default"),
        (5, "fails on these messages"),
        (["{{ messages }}"], "fails on these messages"),
    ],
)
def test_a_template_that_refuses_or_fails(templated: PreTrainedTokenizerFast, template: Any, sentence: str) -> None:
    templated.chat_template = template
    with pytest.raises(RequestError, match=sentence):
        encode(templated, "hi")


def test_of_named_templates_the_default_is_used(templated: PreTrainedTokenizerFast) -> None:
    templated.chat_template = {"default": "<{{ messages[0].content }}>", "rag": "b"}
    assert templated.decode(encode(templated, "hi")) == "<hi>"


class Given:
    """A tokenizer that gives what it is told to."""

    def __init__(self, rendered: Any = "", tokens: Any = (1, 2)) -> None:
        self.chat_template = "a template"
        self.rendered, self.tokens = rendered, tokens

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        if isinstance(self.rendered, BaseException):
            raise self.rendered
        return self.rendered

    def __call__(self, text: str, **options: Any) -> Any:
        if isinstance(self.tokens, BaseException):
            raise self.tokens
        return {"input_ids": self.tokens}


@pytest.mark.parametrize(
    ("rendered", "sentence"),
    [
        (None, "gives a NoneType instead of text"),
        ([1, 2], "gives a list instead of text"),
        ({"input_ids": [1]}, "gives a dict instead of text"),
        (OSError("gone"), r"OSError: gone\)"),
        (MemoryError(), "MemoryError: no reason given"),
    ],
)
def test_what_is_no_text(rendered: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        encode(Given(rendered), "hi")


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ("12", "gives a str instead of token ids"),
        (None, "gives a NoneType instead of token ids"),
        ([[1, 2]], r"token 0 of the tokenizer=\[1, 2\] must be a whole number"),
        ([1.5], "must be a whole number"),
        (KeyError("x"), "cannot read this text"),
    ],
)
def test_what_are_no_tokens(tokens: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        encode(Given("text", tokens), "hi")


def test_a_text_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MOST_CHARS", 4)
    assert encode(Given("four"), "hi") == [1, 2]
    with pytest.raises(RequestError, match="writes 5 characters"):
        encode(Given("fives"), "hi")


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
ENDLESS = f"{LOOP}WHAT{'{% endfor %}' * 3}"


def test_a_template_without_end_is_ended(templated: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "TICK", 0.01)
    templated.chat_template = ENDLESS.replace("WHAT", "")
    with pytest.raises(RequestError, match="has not come to an end"):
        encode(templated, "hi")
    templated.chat_template = "fine"
    assert templated.decode(encode(templated, "hi")) == "fine"


def test_a_template_that_eats_the_memory_is_ended(
    templated: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "TICK", 0.01)
    monkeypatch.setattr(chat, "MOST_TICKS", 10**9)
    monkeypatch.setattr(chat, "MOST_BYTES", 2**24)
    templated.chat_template = ENDLESS.replace("WHAT", "{{ i }}{{ j }}{{ k }}")
    with pytest.raises(RequestError, match="has not come to an end"):
        encode(templated, "hi")


def test_rendering_leaves_no_thread_behind(templated: PreTrainedTokenizerFast) -> None:
    templated.chat_template = "{{ messages[0].content }}"
    before = threading.active_count()
    for _ in range(50):
        encode(templated, "hi")
    for thread in threading.enumerate():
        if thread.name.startswith("Thread-"):
            thread.join(timeout=10)
    assert threading.active_count() <= before
