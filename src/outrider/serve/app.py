"""The application: routes, and every error in OpenAI's form.

    POST /v1/chat/completions, /v1/completions     GET /v1/models, /health, /metrics, /openapi.json
    GET /outrider/info                             the method, those that can be asked for, and limits
    GET /, /page/... and /ribbon/...               the page, if the package has one

Example: a body without messages gets status 400 and `{"error": {"message": "messages: Field required", ...}}`.
"""

import time
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from outrider.env import version
from outrider.serve.failures import RefusalError, error_body
from outrider.serve.handlers import complete
from outrider.serve.schema import ChatRequest, CompletionRequest
from outrider.serve.service import Service

__all__ = ["create_app"]

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PAGE: Final = Path(str(files("outrider.serve"))) / "page"
RIBBON: Final = Path(str(files("outrider.traces"))) / "ribbon"


def create_app(service: Service) -> FastAPI:
    """Return the application of a service."""
    app = FastAPI(title="Outrider", version=version(), docs_url=None, redoc_url=None)
    _add_completions(app, service)
    _add_state(app, service)
    _add_page(app, PAGE)
    app.add_exception_handler(RefusalError, _refused)
    app.add_exception_handler(RequestValidationError, _misshapen)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    return app


def _add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await complete(service, request, body)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await complete(service, request, body)


def _add_state(app: FastAPI, service: Service) -> None:
    created = int(time.time())
    model = service.config.model

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        card = {
            "id": model,
            "object": "model",
            "created": created,
            "owned_by": "outrider",
            "max_model_len": service.max_len,
        }
        return {"object": "list", "data": [card]}

    @app.get("/outrider/info")
    async def info() -> dict[str, Any]:
        return {
            "target": model,
            "method": service.method,
            "methods": service.methods,
            "max_len": service.max_len,
            **service.facts,
        }

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if service.worker.is_well else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.page, media_type=METRICS_TYPE)


def _add_page(app: FastAPI, page: Path) -> None:
    if not (page / "index.html").is_file():
        return

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(page / "index.html")

    app.mount("/page", StaticFiles(directory=page))
    app.mount("/ribbon", StaticFiles(directory=RIBBON))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _misshapen(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:] if not str(part).startswith("function-"))
    message = f"{place}: {first['msg']}" if place else str(first["msg"])
    return JSONResponse(error_body(message, 400, place.partition(".")[0] or None), 400)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code, headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(f"the server failed ({type(error).__name__})", 500), 500)
