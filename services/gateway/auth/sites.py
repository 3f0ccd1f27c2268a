"""Whether a browser brought a request from somebody else's web page.

As long as there is no key, being on this machine is all that lets anybody in, and a browser on this
machine does what pages tell it: a page may post to the loopback, and a page whose name was made to
point at the loopback may read the answer, too. Both carry the name of the page's site.
"""

import ipaddress

# Names that nobody can register, so that no site of a stranger has one.
_PRIVATE = (".localhost", ".local", ".internal", ".test", ".lan", ".home.arpa")


def is_strangers(host: str, origin: str) -> bool:
    """`host` and `origin` as the headers say them; empty where they are not there."""
    return _is_public(_name_in(host)) or _is_foreign(origin)


def _is_foreign(origin: str) -> bool:
    scheme, found, rest = origin.strip().lower().partition("://")
    if not found:
        return bool(scheme)  # "null": a page that hides where it is from
    # Programs that show pages of their own have schemes of their own.
    return scheme in ("http", "https") and _is_public(_name_in(rest))


def _is_public(name: str) -> bool:
    if _is_address(name) or "." not in name:
        return False
    return not name.endswith(_PRIVATE)


def _name_in(authority: str) -> str:
    """The host of "host:port", as names are compared."""
    authority = authority.strip().lower()
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
