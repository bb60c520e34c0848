"""The HTTP side of a bundle: POST images to /v1/predict; a page for people at /."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from pathlib import PurePath
from types import FrameType
from typing import Annotated, Any

import anyio
import numpy as np
import uvicorn
from fastapi import FastAPI, File, HTTPException, Query, Request, Response, Security, UploadFile
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.formparsers import MultiPartParser

from dermtune_bundle.bundle import Bundle
from dermtune_bundle.decode import count_pictures, decode
from dermtune_bundle.errors import BundleError, ImageError
from dermtune_bundle.pictures import overlay, thumbnail, to_jpeg
from dermtune_bundle.predict import record
from dermtune_server.guard import Counts, Guard, Limits

_PICTURE = 512  # pixels
_FILES = "Images: JPEG, PNG, BMP, TIFF, WebP or DICOM."
_PAGE = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
         "/page.css": ("page.css", "text/css")}  # fmt: skip

_PATHS = frozenset({*_PAGE, "/v1/predict", "/v1/model", "/healthz", "/readyz", "/metrics", "/openapi.json"})


class Problem(BaseModel):
    """Why a request is refused."""

    detail: str


class Answer(BaseModel):
    """What the bundle says of one image, or why it can't."""

    path: str
    """The file's name, as it was sent."""
    error: str | None = None
    predicted: str | None = None
    malignant_probability: float | None = None
    probabilities: dict[str, float] | None = None
    decisions: dict[str, bool] | None = None
    prediction_set: list[str] | None = None
    abstain: list[str] | None = None
    distance: float | None = None
    similar: list[dict[str, Any]] | None = None
    """Training cases most like it, where the bundle carries them."""
    picture: str | None = None
    """The image, 512 pixels at most; JPEG, base64."""
    overlay: str | None = None
    """The same, lit where something speaks for the class predicted."""
    bundle: dict[str, str]
    notice: str


class Answers(BaseModel):
    """One answer a file, in their order."""

    results: list[Answer]


class Model(BaseModel):
    """What the bundle is."""

    name: str
    version: str
    signed_by: str | None
    classes: list[dict[str, Any]]
    operating_points: list[dict[str, Any]]
    coverage: float
    metrics: dict[str, Any]
    notice: str


class _Service:
    """What answers, apart from HTTP."""

    def __init__(self, bundle: Bundle, limits: Limits, counts: Counts) -> None:
        self._bundle, self._limits, self._counts = bundle, limits, counts
        self._who = {"name": bundle.manifest.name, "version": bundle.version}

    def answer(self, data: bytes, name: str, *, pictures: bool) -> dict[str, Any]:
        """Of one file; one that cannot be read gets its reason."""
        manifest = self._bundle.manifest
        try:
            suffix, most = PurePath(name).suffix, self._limits.max_pixels
            image = decode(data, name="this file", suffix=suffix, max_pixels=most)
            prediction = self._bundle.predict(image, pictures=count_pictures(data))
        except (ImageError, BundleError) as error:
            self._counts.images.labels("refused").inc()
            return {"path": name, "error": str(error), "bundle": self._who, "notice": manifest.notice}
        self._counts.images.labels("abstained" if prediction.abstain else "answered").inc()
        found = record(name, self._bundle, prediction)
        if pictures:
            small = thumbnail(image, _PICTURE)
            found |= {"picture": _coded(small), "overlay": _coded(overlay(small, prediction.activation))}
        return found

    def model(self) -> Model:
        """What the bundle is."""
        manifest = self._bundle.manifest
        return Model(
            **self._who,
            signed_by=self._bundle.signed_by,
            classes=[vars(known) for known in manifest.classes],
            operating_points=[vars(point) for point in manifest.operating_points],
            coverage=manifest.coverage,
            metrics=manifest.metrics,
            notice=manifest.notice,
        )


def create_app(bundle: Bundle, *, token: str = "", limits: Limits | None = None, workers: int = 2) -> FastAPI:
    """The application, ready to be run by uvicorn.

    Args:
        bundle: opened with one thread: as many images run at once as there are workers.
        token: that a client must bear; empty: none.
        limits: how much a client may ask for.
        workers: images that run at once.
    """
    limits, counts = limits or Limits(), Counts()
    service = _Service(bundle, limits, counts)
    # What is sent stays in memory: longer parts would be written to the disk.
    MultiPartParser.spool_max_size = limits.max_bytes

    app = FastAPI(
        title="dermtune",
        description=bundle.manifest.notice,
        version=bundle.version,
        docs_url=None,  # its page loads scripts from elsewhere; /openapi.json says the same
        redoc_url=None,
        lifespan=partial(_lifespan, workers=workers),
        responses=_refusals(401, 429, 503),
    )
    app.state.ready = False
    # for the OpenAPI document alone: the guard holds the token against the one given
    told = [Security(HTTPBearer(auto_error=False))] if token else []

    @app.post(
        "/v1/predict",
        response_model=Answers,
        response_model_exclude_unset=True,
        responses=_refusals(400, 413),
        dependencies=told,
    )
    async def predict(
        request: Request,
        file: Annotated[
            list[UploadFile], File(description=_FILES, min_length=1, max_length=limits.max_files)
        ],
        *,
        pictures: Annotated[bool, Query(description="Also show it, and where the model looked.")] = False,
    ) -> dict[str, Any]:
        """Classify images; each is answered or refused by itself. None is kept."""
        results = []
        for part in file:
            if await request.is_disconnected():
                break
            look = partial(service.answer, await part.read(), part.filename or "", pictures=pictures)
            results.append(await anyio.to_thread.run_sync(look, limiter=app.state.at_work))
        return {"results": results}

    @app.get("/v1/model", dependencies=told)
    def model() -> Model:
        """What the bundle is, and how good it was on held-out lesions."""
        return service.model()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Is the process alive?"""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"model": Problem}})
    def readyz() -> dict[str, str]:
        """Will it answer?"""
        if not app.state.ready:
            raise HTTPException(503, "starting or stopping")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=told)
    def metrics() -> PlainTextResponse:
        """Counts for Prometheus."""
        return PlainTextResponse(generate_latest(counts.registry), media_type=CONTENT_TYPE_LATEST)

    _add_page(app)
    app.add_middleware(Guard, paths=_PATHS, token=token, limits=limits, counts=counts)
    return app


def _refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """As JSON, whatever the route's own answers are."""
    problem = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {code: {"description": HTTPStatus(code).phrase, "content": problem} for code in codes}


def _coded(image: NDArray[np.uint8]) -> str:
    return base64.b64encode(to_jpeg(image)).decode()


def _add_page(app: FastAPI) -> None:
    for path, (name, kind) in _PAGE.items():
        content = files(__package__).joinpath("page", name).read_bytes()
        app.add_api_route(path, _Static(content, kind), methods=["GET"], include_in_schema=False)


@asynccontextmanager
async def _lifespan(app: FastAPI, *, workers: int) -> AsyncIterator[None]:
    app.state.at_work = anyio.CapacityLimiter(workers)
    app.state.ready = True
    yield
    app.state.ready = False


class _Static:
    """Gives the same bytes to whoever asks."""

    def __init__(self, content: bytes, kind: str) -> None:
        self._content, self._kind = content, kind

    def __call__(self) -> Response:
        return Response(self._content, media_type=self._kind)


def serve(app: FastAPI, *, host: str, port: int) -> None:
    """Run the application until a signal stops it: what was begun is finished first, for ten seconds."""
    config = uvicorn.Config(
        app, host=host, port=port, access_log=False, server_header=False, timeout_graceful_shutdown=10,
        timeout_keep_alive=30, proxy_headers=False,
    )  # fmt: skip
    _Server(config).run()


class _Server(uvicorn.Server):
    """Says that it is not ready from the signal on, while it finishes what was begun."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.ready = False  # type: ignore[union-attr]  # it is our FastAPI
        super().handle_exit(sig, frame)
