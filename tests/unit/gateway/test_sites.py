import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.auth.sites import is_strangers

OWN = ("127.0.0.1:8000", "localhost:8000", "[::1]:8000", "gateway", "box.local", "localhost.", "")


@pytest.mark.parametrize("host", [*OWN, "192.168.0.7:80", "host.docker.internal:8000"])
@pytest.mark.parametrize("origin", ["", "http://localhost:3000", "http://127.0.0.1", "app://x.io"])
def test_this_machines_own_pages_and_programs_are_no_strangers(host: str, origin: str) -> None:
    assert not is_strangers(host, origin)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "EVIL.example.", "a.b.co:1"])
def test_a_public_name_that_points_here_is_a_strangers(host: str) -> None:
    assert is_strangers(host, "")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://evil.example:80", "HTTPS://Evil.Example", "null"]
)
@pytest.mark.parametrize("host", OWN)
def test_a_page_of_another_site_is_a_strangers(host: str, origin: str) -> None:
    assert is_strangers(host, origin)


@pytest.mark.parametrize("host", ["127.0.0.1.evil.example", "localhost.evil.example", "1.2.3.4.5"])
def test_a_name_that_looks_like_ours_is_not(host: str) -> None:
    assert is_strangers(host, "")
    assert is_strangers("localhost", f"http://{host}")


@given(st.text(), st.text())
def test_whatever_a_header_says_there_is_an_answer(host: str, origin: str) -> None:
    is_strangers(host, origin)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_is_let_in(address: object, port: int) -> None:
    host = f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
    assert not is_strangers(host, f"http://{host}")
