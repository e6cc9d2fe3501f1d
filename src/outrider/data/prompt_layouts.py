"""The layouts in which prompts are published, read in one place: the user's messages and the system message of a row.

    {"messages": [{"role": "user", "content": "..."}, ...]}      also "conversations" with "from" and "value"
    {"turns": ["...", "..."]}                                    the user's messages: MT-Bench, Spec-Bench, our own
    {"prompt": "..."}                                            also question, instruction, query, problem, text, ...
    {"instruction": "...", "input": "..."}                       Alpaca; also context, passages, document, ...
    {"history": [["...", "..."]], "instruction": "..."}          earlier questions and answers

"system" (or "system_prompt") may stand beside any of them. Every value that is part of the prompt is used: material
such as "input" or "context" follows the request after a blank line. Answers are never read, because the target writes
its own. A row is refused if its layout is unknown, or if a further key looks like part of a prompt; a row whose prompt
cannot be asked as text (tool calls, images, no user's message) has a `fault`, so that readers can count it.

Example: the row {"instruction": "Translate.", "input": "Der Hund"} is the one turn "Translate.\\n\\nDer Hund".
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

from outrider.errors import ConfigError, on_one_line

__all__ = ["PromptRow", "PromptText", "is_beside_a_request", "read_prompt"]

DIALOGUE_KEYS: Final = ("messages", "conversations", "conversation", "turns")
TEXT_KEYS: Final = ("prompt", "question", "instruction", "query", "problem", "text", "inputs", "data")
REQUEST_KEYS: Final = (*DIALOGUE_KEYS, *TEXT_KEYS)
MATERIAL_KEYS: Final = (
    *("input", "context", "contexts", "passage", "passages", "document", "documents", "article", "paragraph"),
    *("paragraphs", "background", "knowledge", "evidence"),
)
SYSTEM_KEYS: Final = ("system", "system_prompt", "system_message")
HISTORY_KEYS: Final = ("history", "chat_history")
ANSWER_KEYS: Final = (
    *("answer", "answers", "output", "outputs", "response", "responses", "completion", "completions", "solution"),
    *("target", "targets", "chosen", "rejected", "reference", "references", "assistant", "canonical_solution"),
)
LONG: Final = 40
PASSAGE_KEYS: Final = ("text", "content", "contents", "passage", "passage_text", "paragraph_text")

USERS: Final = frozenset({"user", "human", "prompter"})
SYSTEMS: Final = frozenset({"system", "developer"})
ASSISTANTS: Final = frozenset({"assistant", "gpt", "chatgpt", "model", "bot", "ai", "bing", "bard", "output"})
TOOLS: Final = frozenset({"tool", "function", "function_call", "function_response", "observation", "ipython"})
ATTACHMENTS: Final = ("tool_calls", "function_call", "image", "images", "audio", "audios", "video", "videos")
TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})

PROMPT_WORDS: Final = """
    prompt prompts question questions instruction instructions input inputs query queries problem problems message
    messages conversation conversations dialog dialogs dialogue dialogues turns history system context contexts passage
    passages paragraph paragraphs document documents doc docs article articles background knowledge evidence premise
    hypothesis option options choice choices hint hints example examples demonstration demonstrations shot shots
    instances image images audio video tool tools function functions schema table tables code snippet sentence sentences
    sentence1 sentence2 content body story request persona
"""
"""Words in a key's name that speak of a prompt."""
LABEL_WORDS: Final = """
    id ids idx index key type types category categories subject level source sources lang language languages length len
    num number count counts hash fingerprint url urls uri file files path name names title date time author model score
    scores rating token tokens metadata meta tag tags label labels answer answers output outputs reference references
    test tests entry
"""
"""Words that say that a key is about a prompt and not part of it."""


class PromptRow(NamedTuple):
    """One row: its place, for messages; its number, a line's or an array's, from 1; its keys and values."""

    where: str
    number: int
    fields: Mapping[str, Any]


@final
@dataclass(frozen=True, kw_only=True)
class PromptText:
    """The request of a row.

    Attributes:
        turns: the user's messages; empty if there is a fault.
        system: the system message; None if the row has none.
        key: the key that held the request.
        fault: why the prompt cannot be asked, or None.
    """

    turns: tuple[str, ...]
    system: str | None
    key: str
    fault: str | None = None


class _Said(NamedTuple):
    """The user's messages and the system messages of a dialogue."""

    turns: list[str]
    systems: list[str]


class _FaultError(Exception):
    """The row is well formed, but its prompt cannot be asked as text."""


def read_prompt(row: PromptRow) -> PromptText:
    """Return the user's messages and the system message of a row.

    Raises:
        ConfigError: for an unknown layout, a value of a wrong type, or a key that looks like a part of the prompt that
            would be lost; names the file, the line and the key.
    """
    key = _request_key(row)
    try:
        said = _request(row, key)
        before = [turn for name in HISTORY_KEYS if not _is_empty(row.fields.get(name)) for turn in _history(row, name)]
        system = _system(row, said.systems)
        turns = tuple(_asked([*before, *said.turns]))
        _check_other_keys(row, key, turns)
        _check_characters([*turns, system or ""])
    except _FaultError as fault:
        return PromptText(turns=(), system=None, key=key, fault=str(fault))
    return PromptText(turns=turns, system=system, key=key, fault=None if turns else "empty")


def is_beside_a_request(key: str) -> bool:
    """Return whether a key may hold the rest of a prompt whose request stands under another key."""
    known = (*MATERIAL_KEYS, *SYSTEM_KEYS, *HISTORY_KEYS)
    return key in known or (key not in REQUEST_KEYS and _speaks_of_a_prompt(key))


def _request_key(row: PromptRow) -> str:
    """Return the key of the request: the first known one that is not empty, or the first one at all."""
    present = [key for key in (*REQUEST_KEYS, "input") if key in row.fields]
    filled = [key for key in present if not _is_empty(row.fields[key])]
    if not present:
        some = sorted(row.fields)
        found = ", ".join(on_one_line(key, 40) for key in some[:12]) + (", ..." if len(some) > 12 else "") or "nothing"
        raise ConfigError(
            f"{row.where} has none of messages, turns and {', '.join(TEXT_KEYS[:6])}; it has {found}; rename the key "
            'of the prompt, such as {"prompt": "..."}'
        )
    return (filled or present)[0]


def _request(row: PromptRow, key: str) -> _Said:
    """Return the request under `key`, its material added to the first of its messages."""
    said = _dialogue(row, key, row.fields[key])
    material = [
        text
        for name in MATERIAL_KEYS
        if name != key and not _is_empty(row.fields.get(name)) and (text := _material(row, name))
    ]
    if material and said.turns:
        first = said.turns[0]
        missing = [text for text in material if not _stands_in(text, first)]
        said.turns[0] = "\n\n".join([*([first] if first.strip() else []), *missing])
    return said


def _stands_in(text: str, turn: str) -> bool:
    """Return whether a turn holds a text already: a long one anywhere, a short one as lines of its own."""
    wanted = text.strip()
    return wanted in turn if len(wanted) >= LONG else f"\n{wanted}\n" in f"\n{turn.strip()}\n"


def _dialogue(row: PromptRow, key: str, value: Any) -> _Said:
    if isinstance(value, str):
        return _Said([value], [])
    if not isinstance(value, list):
        raise ConfigError(f"'{key}' in {row.where} must hold text that is not empty, or a list of such texts")
    if all(isinstance(one, str) for one in value):
        if key in ("data", "conversation", "conversations") and len(value) > 1:
            raise ConfigError(
                f"'{key}' in {row.where} is a list of texts that does not say who speaks; write the user's as 'turns'"
            )
        if key != "messages":
            return _Said(list(value), [])
    if key in (*TEXT_KEYS, "turns") and not all(isinstance(one, Mapping) for one in value):
        raise ConfigError(f"'{key}' in {row.where} must hold text that is not empty, or a list of such texts")
    said = _Said([], [])
    for one in value:
        _hear(row, one, said, "user" if key == "turns" else None)
    return said


def _hear(row: PromptRow, message: Any, said: _Said, speaker: str | None) -> None:
    """Take in one message; those of the assistant are not read."""
    role = message.get("role", message.get("from", speaker)) if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(role, str):
        raise ConfigError(f'a message in {row.where} is not of the form {{"role": "user", "content": "..."}}')
    if role.lower() in TOOLS or any(message.get(name) for name in ATTACHMENTS):
        raise _FaultError("tool calls or images")
    if role.lower() in ASSISTANTS:
        return
    if role.lower() not in USERS | SYSTEMS:
        raise ConfigError(f"a message in {row.where} has the role {role!r:.40}; the roles are system, user, assistant")
    text = _content(row, message)
    if role.lower() in USERS:
        said.turns.append(text)
    elif said.turns:
        raise _FaultError("a system message after the user's")
    else:
        said.systems.append(text)


def _content(row: PromptRow, message: Mapping[str, Any]) -> str:
    """Return the text of a message; join the texts of a list of parts by newlines."""
    value = next((message[name] for name in ("content", "value") if name in message), message.get("text"))
    if value is None:
        return ""
    parts = []
    for part in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
        if isinstance(part, Mapping) and isinstance(part.get("type"), str) and part["type"] not in TEXT_PARTS:
            raise _FaultError("tool calls or images")
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise ConfigError(f'a message in {row.where} is not of the form {{"role": "user", "content": "..."}}')
        parts.append(text)
    return "\n".join(parts)


def _history(row: PromptRow, key: str) -> list[str]:
    """Return the user's part of earlier exchanges: pairs of question and answer, or messages."""
    value = row.fields[key]
    if isinstance(value, list) and all(isinstance(one, list) and len(one) == 2 for one in value):
        if all(isinstance(asked, str) for asked, _ in value):
            return [asked for asked, _ in value]
    elif isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        said = _Said([], [])
        for one in value:
            _hear(row, one, said, None)
        if not said.systems:
            return said.turns
    raise ConfigError(f"'{key}' in {row.where} must be a list of [question, answer] pairs or of messages")


def _material(row: PromptRow, key: str) -> str:
    """Return the text of a passage, or of several, a blank line between them."""
    value, texts = row.fields[key], []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, Mapping) and isinstance(one.get("title", ""), str):
            named = [one[name] for name in PASSAGE_KEYS if isinstance(one.get(name), str)]
            one = "\n".join(filter(None, [one.get("title", ""), named[0]])) if len(named) == 1 else None
        if not isinstance(one, str):
            raise ConfigError(
                f"'{key}' in {row.where} looks like part of the prompt but is not text or a list of texts; write it "
                "as text, or remove it"
            )
        texts.append(one)
    return "\n\n".join(text for text in texts if text.strip())


def _system(row: PromptRow, said: list[str]) -> str | None:
    found = ["\n\n".join(said)] if said else []
    for key in SYSTEM_KEYS:
        value = row.fields.get(key)
        if value is None or (value == "" and key != "system"):
            continue  # a table has no other way to say that there is none
        if not isinstance(value, str):
            raise ConfigError(f"'{key}' in {row.where} is {value!r:.40} but must be text")
        found.append(value)
    if len(set(found)) > 1:
        raise ConfigError(f"{row.where} holds two system messages that differ; keep one of them")
    return found[0] if found else None


def _asked(turns: list[str]) -> list[str]:
    """Return the turns without empty ones at the end."""
    while turns and not turns[-1].strip():
        turns.pop()
    if any(not turn.strip() for turn in turns):
        raise _FaultError("an empty turn before others")
    return turns


def _check_other_keys(row: PromptRow, key: str, turns: tuple[str, ...]) -> None:
    """Refuse a row that holds a further part of a prompt."""
    used = {key, *MATERIAL_KEYS, *SYSTEM_KEYS, *HISTORY_KEYS, *ANSWER_KEYS}
    if "test_list" in row.fields:
        used.add("code")  # MBPP: the answer
    for name, value in row.fields.items():
        if name in used or _is_empty(value) or not isinstance(value, str | list | dict):
            continue
        if name in REQUEST_KEYS:
            if not _is_known(row, name, turns):
                raise ConfigError(
                    f"{row.where} holds both '{key}' and '{name}', and they differ; keep one of them, or join them "
                    f"under '{key}'"
                )
        elif _speaks_of_a_prompt(name):
            raise ConfigError(
                f"'{on_one_line(name, 40)}' in {row.where} looks like part of the prompt but would not be read; write "
                f"it into '{key}', or rename the key to 'metadata_{on_one_line(name, 40)}'"
            )


def _is_known(row: PromptRow, name: str, turns: tuple[str, ...]) -> bool:
    """Return whether a further request adds nothing: the same text, a part of it, or the row with its answer."""
    further = _dialogue(row, name, row.fields[name]).turns
    if all(any(_stands_in(text, turn) for turn in turns) for text in further):
        return True
    answers = [row.fields[answer] for answer in ANSWER_KEYS if isinstance(row.fields.get(answer), str)]
    rest = " ".join(further)
    is_rendering = bool(answers) and all(text.strip() in rest for turn in turns for text in turn.split("\n\n"))
    return is_rendering and any(answer.strip() in rest for answer in answers)


def _speaks_of_a_prompt(key: str) -> bool:
    """
    >>> [_speaks_of_a_prompt(key) for key in ("choices", "Context", "prompt_id", "num_turns", "source", "userPrompt")]
    [True, True, False, False, False, True]
    """
    words = {word.lower() for word in re.findall(r"[A-Z]+[a-z0-9]*|[a-z0-9]+", key)}
    return not words.isdisjoint(PROMPT_WORDS.split()) and words.isdisjoint(LABEL_WORDS.split())


def _is_empty(value: Any) -> bool:
    return value is None or value in ([], {}) or (isinstance(value, str) and value.strip() in ("", "[]", "{}"))


def _check_characters(texts: Iterable[str]) -> None:
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise _FaultError("half of a character (a lone surrogate)")
