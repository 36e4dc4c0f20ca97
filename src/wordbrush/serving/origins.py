"""Who calls where no key is asked for: the web pages of other sites are kept out."""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from fastapi import Request

from wordbrush.serving.replies import ApiError


def check_origin(request: Request, allowed: Sequence[str]) -> None:
    """Refuse what a browser sends for another site's page.

    CORS alone keeps such a page from reading the reply; a form that it sends would still be an edit. And a
    page whose name was made to point at this computer (DNS rebinding) counts as of the same site: its name
    in Host is what gives it away.

    Args:
        request: without a key.
        allowed: origins that may call all the same.

    Raises:
        ApiError: 403.
    """
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin in allowed:
        return
    site = request.headers.get("sec-fetch-site", "none")
    foreign = site in ("cross-site", "same-site") if origin is None else urlsplit(origin).netloc != host
    if foreign or (_is_local(request) and not _names_this_computer(host)):
        words = "pages of other sites may not call a service without keys; --cors-origin lets one in"
        raise ApiError(403, words, code="foreign_origin")


def _is_local(request: Request) -> bool:
    """Whether the request came in at an address that only this computer has."""
    address, _ = request.scope.get("server") or ("", 0)
    return _is_loopback(address)


def _names_this_computer(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or _is_loopback(name)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
