"""The routes of tools.serve. Edit this file to change the request format, or to require an API key."""

import asyncio
import contextlib
import math
from argparse import Namespace
from collections.abc import AsyncIterator
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
from tools.serve.limits import Limits, answered
from tools.serve.metrics import Metrics

FORM = """{"texts": a text or a list of them}, each a string or an object with `text` or `tokens`, and `text_pair`, """
FORM += "`extras` and `id` if needed"


class Row(BaseModel):
    """A text or its tokens, with a second text and the columns of own inputs if needed. The answer has the same id."""

    model_config = ConfigDict(extra="forbid")
    id: Annotated[str, BeforeValidator(str)] | None = None
    text: str | None = None
    tokens: list[str] | None = None
    text_pair: str | None = None
    extras: dict[str, Any] | None = None


class Request(BaseModel):
    """One or more texts, which are answered in the same order."""

    model_config = ConfigDict(extra="forbid")
    texts: str | Row | list[str | Row]


class Service:
    """The handlers of all routes. predictor: that of the exported folder; input_error: its error for invalid texts"""

    def __init__(self, predictor: Any, input_error: type[Exception], options: Namespace, metrics: Metrics) -> None:
        self.predictor, self.input_error, self.options, self.metrics = predictor, input_error, options, metrics
        label = batcher.labeller(predictor, options.batch_size, input_error)
        limits = (options.batch_size, options.max_queue, options.max_latency_ms / 1000)
        self.batcher = batcher.Batcher(label, *limits, metrics)
        row: dict[str, Any] = {"text": "a text of ten words or so, to begin with"}
        if predictor.encode.pairs:
            row["text_pair"] = "and a second one"
        words = row["text"].split()
        row["extras"] = {}
        for field in predictor.encode.fields.values():
            row["extras"] |= field.example(len(words))
            row |= {"tokens": words} if field.level == "words" else {}
        self.batcher.warm_up(row)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(self.batcher.run())
        yield
        running.cancel()

    async def predict(self, request: Request) -> Response:
        """Labels texts. Each answer has the columns of `main.py --do_predict`."""
        answers = await self.batcher.ask(self.rows_of(request))
        self.metrics.texts.inc(len(answers))
        return answered({"answers": answers})

    def rows_of(self, request: Request) -> list[batcher.Row]:
        """Converts the texts of a request to rows for the predictor. Raises InputError for invalid texts here, before
        they are batched with texts of other requests."""
        texts = request.texts if isinstance(request.texts, list) else [request.texts]
        rows = [text if isinstance(text, str) else text.model_dump(exclude_none=True) for text in texts]
        if not 0 < len(rows) <= self.options.max_texts:
            raise HTTPException(413 if rows else 400, f"a request must have 1 to {self.options.max_texts} texts")
        for number, row in enumerate(rows, 1):
            if batcher.cost_of(row) > self.options.max_characters + batcher.COST_PER_TEXT:
                raise HTTPException(413, f"text {number} has more than {self.options.max_characters:,} characters")
            self.predictor.encode.example(row, f"text {number}")
        return rows

    async def labels(self) -> Response:
        """Returns {task: {"type", "labels"}}."""
        tasks = self.predictor.tasks.items()
        return answered({name: {"type": task["type"], "labels": task["labels"]} for name, task in tasks})

    async def health(self) -> Response:
        """Returns 200, or 503 while the server shuts down."""
        status, code = ("ok", 200) if self.metrics.stopping is None else ("stopping", 503)
        return answered({"status": status, "waiting": len(self.batcher.waiting)}, code)

    async def for_prometheus(self) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def docs(self) -> Response:
        names = {"js": "swagger-ui-bundle.js", "css": "swagger-ui.css", "favicon": "favicon-32x32.png"}
        files: dict[str, Any] = {f"swagger_{kind}_url": f"swagger/{name}" for kind, name in names.items()}
        return get_swagger_ui_html(openapi_url="openapi.json", title="Labels", **files)


async def not_valid(_: Any, error: RequestValidationError) -> Response:
    """Returns a 400 that does not echo the input, which may be long or binary."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))[:100]
    return answered({"detail": f"{where}: {first['msg']}; a request must be {FORM}"}, 400)


async def not_labelled(_: Any, error: Exception) -> Response:
    return answered({"detail": f"{error}; a request must be {FORM}"}, 400)


async def busy(_: Any, error: batcher.Busy) -> Response:
    return answered({"detail": "the server is busy; retry later"}, 503, {"Retry-After": str(math.ceil(error.args[0]))})


def build_app(service: Service, hosts: list[str]) -> FastAPI:
    """Builds the ASGI application. hosts: host names that requests may use"""
    about: dict[str, Any] = {"title": "Text labelling", "description": "Texts in, labels out."}
    app = FastAPI(**about, lifespan=service.lifespan, docs_url=None, redoc_url=None)
    app.openapi_version = "3.0.2"  # the version supported by the bundled Swagger page
    limits = {"most_bytes": service.options.max_bytes, "seconds": service.options.max_body_ms / 1000}
    app.add_middleware(Limits, metrics=service.metrics, **limits)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)  # outermost
    app.mount("/swagger", StaticFiles(directory=swagger_ui_path))
    handlers: list = [(RequestValidationError, not_valid), (service.input_error, not_labelled), (batcher.Busy, busy)]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)
    refusals: dict = {"4XX": {"description": "invalid or too long"}, 503: {"description": "overloaded"}}
    app.add_api_route("/predict", service.predict, methods=["POST"], responses=refusals)
    app.add_api_route("/labels", service.labels)
    app.add_api_route("/health", service.health)
    app.add_api_route("/metrics", service.for_prometheus, include_in_schema=False)
    app.add_api_route("/docs", service.docs, include_in_schema=False)
    return app
