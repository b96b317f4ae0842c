"""What every request passes first: the key, the host that it names, an id, the log."""

import base64
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from fiat_jax.serving.errors import ApiError
from fiat_jax.serving.service import Service

logger = logging.getLogger(__name__)
access = logging.getLogger("fiat_jax.serving.access")
OPEN_PATHS = ("/health",)
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
REQUEST_ID = re.compile(r"[\w.:-]{1,100}")


class Guard:
    """An ASGI application around another one; one line of JSON in the log for each request, without its text.

    Where no key is asked for, requests that name another host than this machine are refused: a page from elsewhere
    that a browser was led to believe lives here could otherwise read the answers.
    """

    def __init__(self, app: Any, service: Service, key: str | None):
        self._app, self._service, self._key = app, service, key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection's request, or what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, began = Headers(scope=scope), time.monotonic()
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope["state"] = {**scope.get("state", {}), "began": began, "request_id": request_id}
        status, told = 499, False  # unless an answer begins

        async def sending(message: Any) -> None:
            nonlocal status, told
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)
            told = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            refusal = self._refusal(scope, headers)
            app = self._app if refusal is None else JSONResponse(refusal.body(), refusal.status, refusal.headers)
            await app(scope, receive, sending)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not told:
                raise  # so that the connection ends
        finally:
            self._account(scope, state, status, time.monotonic() - began)

    def _refusal(self, scope: Mapping[str, Any], headers: Headers) -> ApiError | None:
        if scope["path"] in OPEN_PATHS:
            return None
        if self._key is not None:
            if self._shown(headers.get("authorization", "")):
                return None
            error = ApiError(401, "the key is missing or wrong; send Authorization: Bearer KEY")
            error.headers["WWW-Authenticate"] = 'Basic realm="fiat"'  # so that a browser asks for it
            return error
        host = headers.get("host", "").lower()
        if self._service.serve.local and re.sub(r":\d+$", "", host) not in LOCAL_HOSTS:
            return ApiError(403, f"the host {host!r} is not this machine; set a key to serve other names")
        return None

    def _shown(self, authorization: str) -> bool:
        """Whether the key is shown, as a bearer's or as the password of a browser's form."""
        kind, _, text = authorization.partition(" ")
        value = text.strip().encode("latin-1")  # the bytes that came
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[2]
            except ValueError:
                return False
        elif kind.lower() != "bearer":
            return False
        assert self._key is not None
        return hmac.compare_digest(value, self._key.encode())

    def _account(self, scope: Mapping[str, Any], state: Mapping[str, Any], status: int, seconds: float) -> None:
        route = scope.get("route")
        path = route.path if route is not None else "other"
        model, usage = state.get("model", ""), state.get("usage")
        self._service.metrics.requests.labels(path, model, str(status)).inc()
        self._service.metrics.seconds.labels(path).observe(seconds)
        line = {"id": state["request_id"], "method": scope["method"], "path": path, "model": model, "status": status}
        line |= {"seconds": round(seconds, 4)} | (usage.body() if usage else {})
        line |= {name: state[name] for name in ("asked", "answered") if name in state}  # where Serve.log_text says so
        access.info("%s", json.dumps(line, ensure_ascii=False))
