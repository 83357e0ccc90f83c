"""HTTP requests whose failures are one sentence; the proxy variables of the environment apply."""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import IO

from hjepa_jax.errors import DataError, first_line

# Of a connection, and of a pause between two packets.
TIMEOUT_SECONDS = 10.0
RANGE_NOT_SATISFIABLE = 416
_HEADERS = {"User-Agent": "hjepa_jax", "Accept-Encoding": "identity"}
_ANSWERS = {
    401: "so it wants a login, or does not exist: check the name",
    403: "so it is refused, perhaps for want of an account",
    404: "so it is not there: check the name, or find out where it has moved",
    410: "so it is not there any more: find out where it has moved",
}


class NoConnectionError(OSError):
    """A server cannot be reached, or a connection broke; the message completes a sentence."""


class RefusedError(DataError):
    """A server does not send what was asked for; the message is a sentence."""


class RangeError(DataError):
    """The requested part of a file does not exist."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to any host, but not from an encrypted connection to an open one."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Returns the request of the new address.

        Raises:
          RefusedError: if it is neither HTTPS, nor HTTP from HTTP.
        """
        new = urllib.parse.urlsplit(newurl).scheme
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if new not in allowed:
            fp.close()
            raise RefusedError(
                f"{req.full_url} redirects to {newurl[:200]}, which is not followed: from "
                f"{req.type} only to {' or '.join(allowed)}."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def opened(
    url: str, headers: Mapping[str, str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    """Requests an address and yields the response; redirects are followed.

    Args:
      url: an 'http' or 'https' address.
      headers: additional headers of the request.

    Raises:
      NoConnectionError: if the server cannot be reached within seconds; the body that is read
        inside the block may raise OSError and http.client.HTTPException.
      RangeError: if a range was requested that the file does not have.
      RefusedError: if the server answers with an error or a redirect that is not followed.
      DataError: if it is no such address.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url[:200]} is not an http or https address.")
    request = urllib.request.Request(url, headers={**_HEADERS, **(headers or {})})
    opener = urllib.request.build_opener(_Redirects)
    try:
        response = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(url, error.code) from error
    except urllib.error.URLError as error:
        raise NoConnectionError(_cause(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise NoConnectionError(_cause(error)) from error
    with response:
        yield response


def _refused(url: str, code: int) -> RefusedError | RangeError:
    if code == RANGE_NOT_SATISFIABLE:
        return RangeError(f"{url} has fewer bytes than were asked for.")
    meaning = _ANSWERS.get(code, "try again later")
    return RefusedError(f"The server of {url} answers {code}, {meaning}.")


def _cause(reason: str | BaseException) -> str:
    """Describes why there is no connection."""
    if isinstance(reason, str):
        return reason
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return first_line(reason) or type(reason).__name__
