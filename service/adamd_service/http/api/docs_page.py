"""Serves /docs: Swagger UI with every call, from local files, so that no other machine is needed. / redirects there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

# The page can make calls, so no foreign page may put it into a frame and trick a person into pressing its buttons.
# It loads this server's own files only.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
}
FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
DAY = {"Cache-Control": "max-age=86400"}
# Addresses are relative: a proxy may have the server below a path of its own.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>adamd</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# validatorUrl null: otherwise Swagger UI would send the document to a server of Swagger's.
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null})\n'


def add(app: FastAPI) -> None:
    """Serve the page and its files; a wheel carries Swagger UI's."""
    static = Path(str(files("fastapi_offline") / "static"))

    @app.get("/", include_in_schema=False)
    async def start_here() -> Response:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(PAGE, headers=HEADERS)

    @app.get("/docs/start.js", include_in_schema=False)
    async def start() -> Response:
        return Response(START, media_type="text/javascript", headers=DAY)

    for name, kind in FILES.items():
        app.get(f"/docs/{name}", include_in_schema=False)(_file(static / name, kind))


def _file(path: Path, kind: str) -> Callable[[], Awaitable[Response]]:
    async def file() -> Response:
        return FileResponse(path, media_type=kind, headers=DAY)

    return file
