"""Errors in OpenAI's form, and the exception that carries one to a client.

    {"error": {"message": "...", "type": "invalid_request_error", "param": "top_p", "code": null}}

Example: `RefusalError("too many requests wait", 503, retry_s=1)` is status 503 with the header `Retry-After: 1`.
"""

from typing import Any, Final, final

from outrider.errors import on_one_line

__all__ = ["RefusalError", "error_body"]

TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    503: "service_unavailable_error",
}
"""Status -> type; any other is a "server_error"."""

MOST_CHARS: Final = 1000
"""Longest message: what a client sent comes back shortened."""


@final
class RefusalError(Exception):
    """A request that gets an error for an answer.

    param     field of the body that it is about
    retry_s   seconds until another try is welcome
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, retry_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.retry_s = retry_s

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.message, self.status, self.param)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_s is None else {"Retry-After": str(self.retry_s)}


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error."""
    kind = TYPES.get(status, "server_error")
    code = "invalid_api_key" if status == 401 else "model_not_found" if param == "model" else None
    return {"error": {"message": on_one_line(message, MOST_CHARS), "type": kind, "param": param, "code": code}}
