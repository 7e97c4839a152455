"""Routes of the server. Edit this file to change the request format."""

import asyncio
import contextlib
import math
import signal
from argparse import Namespace
from collections.abc import AsyncIterator, Coroutine
from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, BeforeValidator, ConfigDict
from swagger_ui_bundle import swagger_ui_path

from tools.serve import batcher
from tools.serve.access import Access
from tools.serve.limits import Limits, json_response
from tools.serve.metrics import Metrics
from tools.serve.models import InvalidText, Model

FORM = """{"texts": a text or a list of them}, each a string or an object with `text` or `tokens`, and `text_pair`, """
FORM += "`extras` and `id` if needed; and the name of a `model` if there are several"


class Row(BaseModel):
    """A text or its tokens, optionally with a second text and custom inputs. The response has the same id."""

    model_config = ConfigDict(extra="forbid")
    id: Annotated[str, BeforeValidator(str)] | None = None
    text: str | None = None
    tokens: list[str] | None = None
    text_pair: str | None = None
    extras: dict[str, Any] | None = None


class Request(BaseModel):
    """One or more texts. The response has their predictions in the same order."""

    model_config = ConfigDict(extra="forbid")
    texts: str | Row | list[str | Row]
    model: str | None = None


class Service:
    """The handlers of all routes. models: {name: Model}; the first one is the default."""

    def __init__(self, models: dict[str, Model], options: Namespace, metrics: Metrics) -> None:
        self.models, self.options, self.metrics = models, options, metrics
        self.background: set[asyncio.Task] = set()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        for model in self.models.values():
            model.start(model.current.batcher)
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
        if self.options.watch_s:
            self.in_background(self.watch())
        yield
        for task in [*self.background, *(task for model in self.models.values() for task in model.tasks.values())]:
            task.cancel()

    def in_background(self, work: Coroutine) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    def reload(self) -> None:
        """Reloads all folders in the background."""
        for model in self.models.values():
            self.in_background(model.reload())

    async def watch(self) -> None:
        """Reloads folders that have changed. Never returns."""
        while True:
            await asyncio.sleep(self.options.watch_s)
            for model in self.models.values():
                await model.reload_if_changed()

    def model(self, name: str | None) -> Model:
        """Returns the model with this name, by default the first one. Raises HTTPException if it does not exist."""
        model = self.models.get(next(iter(self.models)) if name is None else name)
        if model is None:
            raise HTTPException(404, f"no model has this name; the models are {', '.join(self.models)}")
        return model

    async def predict(self, request: Request) -> Response:
        """Labels texts. Each prediction has the columns of `main.py --do_predict`."""
        model = self.model(request.model)
        current = model.current  # used for the whole request, even if the model is reloaded meanwhile
        rows = self.rows_of(request)
        for number, row in enumerate(rows, 1):
            model.check(current, row, f"text {number}")
        predictions = await model.ask(current, rows)
        self.metrics.texts.inc(len(predictions))
        return json_response({"answers": predictions})

    def rows_of(self, request: Request) -> list[batcher.Row]:
        """Converts the texts of a request to rows for a predictor. Raises HTTPException if there are too many texts or
        if one is too long."""
        texts = request.texts if isinstance(request.texts, list) else [request.texts]
        rows = [text if isinstance(text, str) else text.model_dump(exclude_none=True) for text in texts]
        if not 0 < len(rows) <= self.options.max_texts:
            raise HTTPException(413 if rows else 400, f"a request must have 1 to {self.options.max_texts} texts")
        for number, row in enumerate(rows, 1):
            if batcher.cost_of(row) > self.options.max_characters + batcher.COST_PER_TEXT:
                raise HTTPException(413, f"text {number} has more than {self.options.max_characters:,} characters")
        return rows

    async def labels(self, model: str | None = None) -> Response:
        """Returns {task: {"type", "labels"}} for a model."""
        tasks = self.model(model).current.predictor.tasks.items()
        return json_response({name: {"type": task["type"], "labels": task["labels"]} for name, task in tasks})

    async def list_models(self) -> Response:
        """Returns {name: {"tasks", "loaded" (time in UTC), "sha256" (of the manifest)}}."""
        found = {name: model.current for name, model in self.models.items()}
        times = {name: datetime.fromtimestamp(one.since, timezone.utc).isoformat() for name, one in found.items()}
        return json_response(
            {
                name: {"tasks": list(one.predictor.tasks), "loaded": times[name], "sha256": one.sha256}
                for name, one in found.items()
            }
        )

    async def health(self) -> Response:
        """Returns 200, or 503 while the server is shutting down."""
        status, code = ("ok", 200) if self.metrics.stopping is None else ("stopping", 503)
        waiting = sum(len(model.current.batcher.waiting) for model in self.models.values())
        return json_response({"status": status, "waiting": waiting}, code)

    async def for_prometheus(self) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def docs(self) -> Response:
        names = {"js": "swagger-ui-bundle.js", "css": "swagger-ui.css", "favicon": "favicon-32x32.png"}
        files: dict[str, Any] = {f"swagger_{kind}_url": f"swagger/{name}" for kind, name in names.items()}
        return get_swagger_ui_html(openapi_url="openapi.json", title="Labels", **files)


async def not_valid(_: Any, error: RequestValidationError) -> Response:
    """Returns a 400 response that does not echo the input, which may be long or binary."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))[:100]
    return json_response({"detail": f"{where}: {first['msg']}; a request must be {FORM}"}, 400)


async def not_labelled(_: Any, error: Exception) -> Response:
    return json_response({"detail": f"{error}; a request must be {FORM}"}, 400)


async def busy(_: Any, error: batcher.Busy) -> Response:
    retry_after = {"Retry-After": str(math.ceil(error.args[0]))}
    return json_response({"detail": "the server is busy; retry later"}, 503, retry_after)


def build_app(service: Service, hosts: list[str]) -> FastAPI:
    """Builds the ASGI application. hosts: host names that requests may use."""
    about: dict[str, Any] = {"title": "Text labelling", "description": "Labels texts with exported models."}
    app = FastAPI(**about, lifespan=service.lifespan, docs_url=None, redoc_url=None)
    app.openapi_version = "3.0.2"  # the version supported by the bundled Swagger page
    limits = {"most_bytes": service.options.max_bytes, "seconds": service.options.max_body_ms / 1000}
    app.add_middleware(Limits, metrics=service.metrics, **limits)
    app.add_middleware(Access, token=service.options.token, log=service.options.log_requests)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)  # outermost
    app.mount("/swagger", StaticFiles(directory=swagger_ui_path))
    handlers: list = [(RequestValidationError, not_valid), (InvalidText, not_labelled), (batcher.Busy, busy)]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)
    errors: dict = {"4XX": {"description": "invalid or too long"}, 503: {"description": "overloaded"}}
    app.add_api_route("/predict", service.predict, methods=["POST"], responses=errors)
    app.add_api_route("/labels", service.labels)
    app.add_api_route("/models", service.list_models)
    app.add_api_route("/health", service.health)
    app.add_api_route("/metrics", service.for_prometheus, include_in_schema=False)
    app.add_api_route("/docs", service.docs, include_in_schema=False)
    return app
