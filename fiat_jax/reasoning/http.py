"""JSON over HTTP with retries: what may pass is tried again, what cannot is one clear error."""

import asyncio
import email.utils
import json
import random
import time

import httpx
import tenacity

from fiat_jax.errors import UserError
from fiat_jax.reasoning.backend import Refused, Unavailable
from fiat_jax.reasoning.pace import Pace
from fiat_jax.reasoning.streamed import Streamed

EVENTS, LAST_EVENT = "text/event-stream", "[DONE]"
LONGEST_BACKOFF_SECONDS = 60.0


class NotFound(UserError):
    """The endpoint has no such path, or no such model."""


class BadRequest(Refused):
    """The endpoint understood the request and does not take it; `error` is what it says, where that is JSON."""

    def __init__(self, message: str, error: dict):
        super().__init__(message)
        self.error = error


class _TransientError(Exception):
    """Worth another attempt; `overload`: the endpoint has too much to do."""

    def __init__(self, message: str, overload: bool = False):
        super().__init__(message)
        self.overload = overload


class JsonClient:
    """Sends requests to one endpoint; a `Retry-After` of any answer holds all of its requests back.

    `pace` bounds how many are under way at a time.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        key_variable: str,
        timeout_seconds: float,
        longest_wait_seconds: float,
        pace: Pace,
    ):
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UserError(f"{url!r} is not a URL: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UserError(f"{url!r} is not the URL of an endpoint; expected something like http://localhost:8000/v1")
        self.url = url.rstrip("/") + ("/v1" if parsed.path in ("", "/") else "")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._key_variable = key_variable
        self._timeout, self._longest_wait = timeout_seconds, longest_wait_seconds
        self._pace = pace
        self._client: httpx.AsyncClient | None = None
        self._resume_at = 0.0

    async def request(
        self, method: str, path: str, body: dict | None = None, *, attempts: int, streamed: Streamed | None = None
    ) -> dict:
        """The JSON object of a successful answer; raises Refused, Unavailable, NotFound or UserError.

        `streamed` takes the events of an answer that comes as such; once it has begun there is no other attempt.
        """
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(attempts),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_BACKOFF_SECONDS),
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, _TransientError) and not (streamed and streamed.begun)
            ),
            reraise=True,
        )
        try:
            return await retrying(self._attempt, method, path, body, streamed)
        except _TransientError as error:
            tried = "in the middle of its answer" if streamed and streamed.begun else f"{attempts} attempts"
            raise Unavailable(f"{error} ({tried})") from None

    async def close(self) -> None:
        """Close the connections, within the event loop that used them."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def _attempt(self, method: str, path: str, body: dict | None, streamed: Streamed | None) -> dict:
        begun = await self._pace.begin()
        try:
            await self._wait_until_resumed()
            answer = await self._send(method, path, body, streamed)
        except _TransientError as error:
            if error.overload:
                self._pace.overloaded(begun)
            raise
        finally:
            self._pace.end()
        self._pace.succeeded()
        return answer

    async def _send(self, method: str, path: str, body: dict | None, streamed: Streamed | None) -> dict:
        if self._client is None:  # made here because it belongs to the running loop; `pace` bounds its connections
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            self._client = httpx.AsyncClient(headers=self._headers, limits=limits, timeout=self._timeout)
        try:
            async with (
                asyncio.timeout(self._timeout),  # httpx's own limits restart with every byte
                self._client.stream(method, self.url + path, json=body) as response,
            ):
                of_events = response.headers.get("Content-Type", "").startswith(EVENTS)
                if streamed and response.status_code == 200 and of_events:
                    return await _take_events(response, streamed)
                await response.aread()
        except (TimeoutError, httpx.TimeoutException):
            raise _TransientError(f"no answer within {self._timeout:g} s", overload=True) from None
        except httpx.TransportError as error:
            raise _TransientError(f"{type(error).__name__}: {error}") from None
        if response.status_code != 200:
            self._raise_for(response)
        answer = _json_object(response)
        if answer is None:
            raise _TransientError(f"an answer that is no JSON object: {response.text[:200]!r}")
        return answer

    def _raise_for(self, response: httpx.Response) -> None:
        status, message = response.status_code, f"HTTP {response.status_code}: {_message(response)}"
        if status in (401, 402) or (status == 429 and "insufficient_quota" in response.text):
            raise UserError(
                f"{self.url} says {message}. The key is read from the environment variable {self._key_variable}"
            )
        if status in (404, 405):
            raise NotFound(f"{response.url} says {message}")
        if status in (408, 425, 429) or status >= 500:
            self._hold_back(response.headers.get("Retry-After"), message)
            raise _TransientError(message, overload=status in (429, 503))
        if status < 400:
            location = response.headers.get("Location")
            raise UserError(f"{self.url} answers {status}, location {location}; set the URL to it")
        if status in (400, 422):
            raise BadRequest(message, _json_object(response) or {})
        raise Refused(message)

    def _hold_back(self, retry_after: str | None, message: str) -> None:
        seconds = _seconds(retry_after)
        if seconds > self._longest_wait:
            allowed = f"{self._longest_wait:.0f} s"
            raise UserError(
                f"{self.url} asks to wait {seconds:.0f} s where {allowed} are allowed ({message}). "
                "What was answered is stored; run the same command again later"
            )
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)

    async def _wait_until_resumed(self) -> None:
        while (seconds := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(seconds + random.uniform(0, 0.1 * seconds))  # not all at the same instant


async def _take_events(response: httpx.Response, streamed: Streamed) -> dict:
    """Hand on the events of an answer; return all of it."""
    async for line in response.aiter_lines():
        name, _, data = line.partition(":")
        if name != "data" or not data.strip():
            continue
        if data.strip() == LAST_EVENT:
            return streamed.answer()
        try:
            event = json.loads(data)
        except json.JSONDecodeError:
            raise _TransientError(f"an event that is no JSON: {data[:200]!r}") from None
        if not isinstance(event, dict) or event.get("error"):
            raise _TransientError(f"an error in its answer: {data.strip()[:500]}")
        streamed.take(event)
    raise _TransientError(f"its answer ended without {LAST_EVENT}")


def _seconds(retry_after: str | None) -> float:
    """Seconds to wait by a Retry-After header: a number, or a date."""
    if not retry_after:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0  # neither: the back-off of the next attempt is all there is to go by


def _json_object(response: httpx.Response) -> dict | None:
    try:
        found = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:500]
    except (ValueError, KeyError, TypeError):
        return response.text.strip()[:500] or response.reason_phrase
