"""HTTP client: requests over http and https with a time limit for the whole response, and the headers of a resume."""

import email.utils
import queue
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from email.message import Message
from functools import cache
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import IO
from urllib.parse import urlsplit

from graft import __version__

TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which another attempt may succeed."""


def strong_validator(headers: Message) -> str | None:
    """The validator for If-Range (RFC 9110, 13.1.5): a strong ETag, or the date of a file that has not just changed."""
    if (etag := headers.get("ETag")) and re.fullmatch(r'"[\x21\x23-\x7e]*"', etag):
        return etag
    changed, sent = (_date(headers.get(name)) for name in ("Last-Modified", "Date"))
    return headers["Last-Modified"] if changed is not None and sent is not None and sent - changed >= 1 else None


def retry_after(headers: Message) -> float | None:
    """Seconds to wait according to the header `Retry-After`, which is a number or a date; None without it."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    until = _date(value)
    return None if until is None else max(0.0, until - time.time())


def _date(value: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() if value else None
    except (ValueError, OverflowError):
        return None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows up to five redirects over http and https, never from https to http, without reading their content."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise urllib.error.URLError(f"redirected from {req.type} to {scheme}, which is not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if request is not None:
            request.method = req.get_method()  # HEAD stays HEAD
        return request


@cache
def user_agent() -> str:
    """Value of the User-Agent header of all requests."""
    return f"graft/{__version__}"


@cache
def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https with the environment's proxies; no ftp or local files, not even after redirects."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", user_agent())]
    return opener


def open_url(request: urllib.request.Request, timeout: float) -> HTTPResponse:
    """Send a request and return its response once its header is complete.

    Raises:
        TimeoutError: name resolution, connection and header took more than `timeout` seconds together.
        OSError, HTTPException, ValueError: as `urllib.request.urlopen`.
    """
    responses: queue.Queue[HTTPResponse | Exception] = queue.Queue()
    late = threading.Event()

    def send() -> None:
        try:
            response = _opener().open(request, timeout=timeout)
        except Exception as error:
            responses.put(error)
            return
        responses.put(response)
        if late.is_set():
            response.close()

    threading.Thread(target=send, daemon=True).start()
    try:
        response = responses.get(timeout=max(0.0, timeout))
    except queue.Empty:
        late.set()
        raise TimeoutError(f"no answer within {timeout:.3g} seconds") from None
    if isinstance(response, Exception):
        raise response
    return response


def describe_error(error: Exception) -> str:
    """Describe a failed request in a few words, without text from the server."""
    if isinstance(error, urllib.error.HTTPError):
        known = error.code in HTTPStatus._value2member_map_
        phrase = f" {HTTPStatus(error.code).phrase}" if known else ""
        return f"HTTP {error.code}{phrase}" + (", a redirect that is not followed" if 300 <= error.code < 400 else "")
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return f"no network: {cause.strerror}"
    if isinstance(cause, TimeoutError):
        return f"no answer in time: {cause}"
    if isinstance(cause, HTTPException) and not isinstance(cause, OSError):
        return f"not an HTTP response ({type(cause).__name__})"
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__)
