"""What a server may be made to fetch."""

import asyncio
import http.server
import socket
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from segue.serve import fetch
from segue.serve.errors import ApiError
from segue.serve.fetch import Fetcher, is_public
from segue.serve.settings import Limits


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *[(one, False) for one in ("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1")],
        *[(one, False) for one in ("::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::")],
        *[(one, False) for one in ("2002:7f00:1::", "64:ff9b::7f00:1", "224.0.0.1", "ff02::1", "255.255.255.255")],
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        *[(one, False) for one in ("64:ff9b:1::7f00:1", "fec0::1", "::127.0.0.1", "::8.8.8.8", "::ffff:0:7f00:1")],
        *[(one, True) for one in ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8")],
    ],
)
def test_addresses_of_the_inside_are_known_in_every_form(address, expected):
    assert is_public(address) is expected


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/a.png",
        "https://images.example.evil.example/a.png",
        "https://images.example@evil.example/a.png",
        "https://evil.example#@images.example/a.png",
        "https://evil.example\\@images.example/a.png",
        "https://user@images.example/a.png",
        "https://images.example:8443/a.png",
        "https://images.example:x/a.png",
        "http://[::1/a.png",
        "ftp://images.example/a.png",
        "file:///etc/passwd",
        "//images.example/a.png",
        "https://images.example/a b",
        "https://ımages.example/a",
        "https://images.example/ä.png",
    ],
)
def test_other_hosts_schemes_and_ports_are_refused_unresolved(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)  # whoever resolves fails
    with pytest.raises(ApiError) as caught:
        asyncio.run(Fetcher(["images.example"], Limits())(url))
    assert caught.value.code == "remote_url"


def test_a_name_that_leads_inside_is_refused(monkeypatch):
    inside = [(2, 1, 6, "", ("93.184.215.14", 80)), (2, 1, 6, "", ("127.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: inside)
    with pytest.raises(ApiError, match="does not fetch from there"):
        asyncio.run(Fetcher(["images.example"], Limits())("http://images.example/a.png"))


class TestFetched:
    """A host on this machine stands for one of the open net."""

    @pytest.fixture
    def host(self, monkeypatch):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append((self.path, self.headers["host"]))
                self.send_response(302 if self.path == "/moved" else 200)
                self.send_header("location", "http://127.0.0.1/secret")
                self.end_headers()
                self.wfile.write(b"x" * 1000)

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        connect = socket.create_connection
        monkeypatch.setattr(fetch, "resolved", lambda _: "192.0.2.7")
        there = {("192.0.2.7", 80): ("127.0.0.1", server.server_port)}
        monkeypatch.setattr(fetch.socket, "create_connection", lambda place, timeout: connect(there[place], timeout))
        yield asked
        server.shutdown()
        thread.join()
        server.server_close()

    def test_the_address_that_was_checked_is_the_one_that_is_asked(self, host):
        found = asyncio.run(Fetcher(["Images.example"], Limits())("http://images.example/a.png?b=1#c"))
        assert found == b"x" * 1000 and host == [("/a.png?b=1", "images.example")]

    def test_redirects_are_not_followed(self, host):
        with pytest.raises(ApiError, match="answers 302; redirects are not followed"):
            asyncio.run(Fetcher(["images.example"], Limits())("http://images.example/moved"))
        assert len(host) == 1

    def test_what_comes_too_slowly_is_given_up(self, host, monkeypatch):
        clock = iter([0.0, 31.0])
        monkeypatch.setattr(fetch, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        with pytest.raises(ApiError, match="takes too long"):
            asyncio.run(Fetcher(["images.example"], Limits())("http://images.example/a.png"))

    @pytest.mark.parametrize("limits", [{"upload_bytes": 999}, {"fetch_seconds": 1e-6}])
    def test_bytes_and_time_have_an_end(self, host, limits):
        with pytest.raises(ApiError, match="larger than|does not answer"):
            asyncio.run(Fetcher(["images.example"], Limits(**limits))("http://images.example/a.png"))

    def test_headers_that_drip_have_an_end(self, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as slow:

            def drip():
                client, _ = slow.accept()
                with client, suppress(OSError):
                    client.sendall(b"HTTP/1.1 200 OK\r\n")
                    while True:
                        client.sendall(b"x: y\r\n")
                        time.sleep(0.02)

            thread = threading.Thread(target=drip)
            thread.start()
            connect, port = socket.create_connection, slow.getsockname()[1]
            monkeypatch.setattr(fetch, "resolved", lambda _: "127.0.0.1")
            monkeypatch.setattr(
                fetch.socket, "create_connection", lambda place, timeout: connect((place[0], port), timeout)
            )
            with pytest.raises(ApiError, match=r"does not answer as it should \(TimeoutError\)"):
                asyncio.run(Fetcher(["images.example"], Limits(fetch_seconds=0.5))("http://images.example/a.png"))
            thread.join()
