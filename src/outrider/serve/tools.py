"""Calls of tools in the text of an answer, in the form of Hermes and Qwen.

    Let me look. <tool_call>
    {"name": "weather", "arguments": {"city": "Rome"}}
    </tool_call>

Text before the first call is the answer's content; a call is taken out of the text once it is complete. What is no call
(no JSON, no name) stays text, as in vLLM. A template of this family contains the tag; others are refused.

Example: `ToolParser().push(text)` of the lines above is content "Let me look. " and one call of "weather".
"""

import json
from dataclasses import dataclass, field
from typing import Any, Final, final
from uuid import uuid4

from outrider.serve.failures import RefusalError
from outrider.serve.schema import ChatRequest

__all__ = ["ToolCall", "ToolParser", "check_tools", "wants_tools"]

BEGIN: Final = "<tool_call>"
END: Final = "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """A call; `arguments` is JSON as the model wrote it, normalised."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid4().hex[:24]}")

    @property
    def json(self) -> dict[str, Any]:
        """The call in OpenAI's form."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@final
class ToolParser:
    """Reads an answer piece by piece."""

    def __init__(self) -> None:
        self._held = ""
        self._has_calls = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Return the content and the calls that are now certain."""
        self._held += text
        content, calls = "", list[ToolCall]()
        while BEGIN in self._held:
            before, _, rest = self._held.partition(BEGIN)
            inside, end, after = rest.partition(END)
            content += self._plain(before)
            if not end:
                self._held = BEGIN + rest
                return content, calls
            call = _call(inside)
            if call is None:
                content += BEGIN + inside + END
            else:
                self._has_calls = True
                calls.append(call)
            self._held = after
        kept = next((n for n in range(len(BEGIN) - 1, 0, -1) if self._held.endswith(BEGIN[:n])), 0)
        certain, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return content + self._plain(certain), calls

    def flush(self) -> tuple[str, list[ToolCall]]:
        """Return what is left when the answer has ended; a last call may lack its end."""
        held, self._held = self._held, ""
        if held.startswith(BEGIN) and (call := _call(held.removeprefix(BEGIN))) is not None:
            return "", [call]
        return self._plain(held), []

    def _plain(self, text: str) -> str:
        """Return the text, without the blanks between calls."""
        return "" if self._has_calls and not text.strip() else text


def _call(text: str) -> ToolCall | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = json.dumps(found.get("arguments", {}), ensure_ascii=False)
    try:
        (found["name"] + arguments).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no answer can carry
        return None
    return ToolCall(found["name"], arguments)


def wants_tools(body: ChatRequest) -> bool:
    """Return whether the model is told of tools."""
    return bool(body.tools) and body.tool_choice != "none"


def check_tools(body: ChatRequest, tokenizer: Any) -> None:
    """
    Raises:
        RefusalError: if the tools cannot be offered in this way to this model.
    """
    if not wants_tools(body):
        return
    if body.tool_choice not in (None, "auto"):
        raise RefusalError("tool_choice must be none or auto; a call cannot be enforced", param="tool_choice")
    template = getattr(tokenizer, "chat_template", None)
    texts = template.values() if isinstance(template, dict) else (template,)
    if not any(isinstance(text, str) and BEGIN in text for text in texts):
        raise RefusalError(
            "the model's chat template has no tools that this server reads (<tool_call> as Hermes and Qwen write it); "
            "leave tools out",
            param="tools",
        )
    for tool in body.tools or ():
        if not isinstance(tool.get("function"), dict) or not isinstance(tool["function"].get("name"), str):
            raise RefusalError("a tool needs a function with a name", param="tools")
