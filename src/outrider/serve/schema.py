"""Bodies of requests and their limits: OpenAI's fields, vLLM's additions, and ours for the page.

Unknown fields are ignored, as vLLM does. `params.py` turns a body into an engine's request; fields that this server
cannot honour are refused there.

Example: `{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}` is a `ChatRequest`.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ChatRequest", "CompletionRequest", "GenerationRequest", "Message", "ResponseFormat", "StreamOptions"]

MOST_STOPS: Final = 64
LONGEST_STOP: Final = 1024
MOST_TOKENS: Final = 2**24
MOST_TOP_LOGPROBS: Final = 20
MOST_PROMPTS: Final = 64
MOST_MESSAGES: Final = 4096
MOST_IDS: Final = 2**20
MOST_PARTS: Final = 1024

Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Real = Annotated[float, Field(allow_inf_nan=False)]
# a list of a million wrong items would be a million errors
Prompt = Annotated[list[TokenId], Field(min_length=1, max_length=MOST_IDS, fail_fast=True)]
Parts = Annotated[list[dict[str, Any]], Field(max_length=MOST_PARTS, fail_fast=True)]


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool | None = False
    """Send the counts of tokens in a last chunk."""
    continuous_usage_stats: bool | None = False
    """Send the counts so far in every chunk."""


class JsonSchema(BaseModel):
    """A schema that the answer must follow, under OpenAI's names."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = ""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """Form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Structure(BaseModel):
    """Form of the answer under vLLM's names; exactly one."""

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None


class GenerationRequest(BaseModel):
    """Fields of both kinds of completions."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MOST_STOPS)] | None = None
    ignore_eos: bool | None = False
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] | None = None
    logit_bias: dict[str, Real] | None = None
    bad_words: Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Structure | None = None
    return_token_ids: bool | None = None
    return_steps: bool | None = False
    """Show the draft of every step in each chunk of a stream."""
    outrider_method: Annotated[str, Field(max_length=1024)] | None = None
    """Method that drafts: none, or one of those that /outrider/info lists."""
    outrider_num_nodes: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Upper limit of nodes per step."""

    @property
    def has_usage(self) -> bool:
        """True if a stream ends with the counts of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    """Body of `/v1/completions`."""

    prompt: str | Prompt | Annotated[list[str | Prompt], Field(min_length=1, max_length=MOST_PROMPTS)]
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    echo: bool | None = False
    best_of: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, also of a body with a single one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[one for one in self.prompt if isinstance(one, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]


class Message(BaseModel):
    """One message; further fields reach the chat template."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | Parts | None = None


class ChatRequest(GenerationRequest):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
