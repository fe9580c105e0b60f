"""Behind a real nginx: clients are counted, redirects keep https, and everything works under a prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from pydantic import ValidationError

from serving.settings import Settings
from tests.serving.nginx import PROXY, nginx
from tests.serving.service import server

FORWARDED = "X-Forwarded-For"


def client_at(address: str, **headers: str) -> httpx.Client:
    """Return a client that calls from another address of this machine."""
    return httpx.Client(transport=httpx.HTTPTransport(local_address=address), headers=headers, timeout=60)


def statuses(client: httpx.Client, url: str, number: int = 4) -> list[int]:
    return [client.get(f"{url}/labels").status_code for _ in range(number)]


def test_rate_limits_count_clients_and_not_the_proxy(folder: Path, tmp_path: Path) -> None:
    proxies, log = f"{PROXY}, 10.0.0.0/8", tmp_path / "log"
    with (
        server(folder, tmp_path, log=log, MME_RATE_PER_MINUTE="3", MME_TRUSTED_PROXIES=proxies) as (service, _),
        nginx(tmp_path, service=service, location="/") as proxy,
        client_at("127.0.0.11") as first,
        client_at("127.0.0.12") as second,
        client_at("127.0.0.13") as direct,
    ):
        assert statuses(first, proxy) == [200, 200, 200, 429]
        assert statuses(second, proxy) == [200, 200, 200, 429]

        # What a client writes into the header itself counts neither through the proxy nor without it.
        first.headers[FORWARDED] = "198.51.100.7"
        assert statuses(first, proxy) == [429] * 4
        for number, status in enumerate((200, 200, 200, 429)):
            direct.headers[FORWARDED] = f"198.51.100.{number}"
            assert statuses(direct, service, 1) == [status]
    clients = set(re.findall(r'"client": "([0-9.]+)"', log.read_text()))
    assert clients >= {"127.0.0.11", "127.0.0.12", "127.0.0.13"}
    assert not clients & {PROXY, "198.51.100.7"}


def test_unlisted_proxy_is_a_client(folder: Path, tmp_path: Path) -> None:
    with (
        server(folder, tmp_path, MME_RATE_PER_MINUTE="3") as (service, _),
        nginx(tmp_path, service=service, location="/") as proxy,
        client_at("127.0.0.11") as first,
        client_at("127.0.0.12") as second,
    ):
        assert statuses(first, proxy, 3) == [200] * 3
        assert statuses(second, proxy, 1) == [429]
        assert first.get(f"{proxy}/health/").headers["location"].startswith("http://")


@pytest.fixture(scope="module")
def prefixed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a service that knows its prefix."""
    uploads = tmp_path_factory.mktemp("uploads")
    with server(folder, uploads, MME_ROOT_PATH="/team/motion", MME_TRUSTED_PROXIES=PROXY) as (service, _):
        yield service


@pytest.fixture(params=["kept", "removed"])
def proxied(prefixed: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Run an nginx that keeps or removes the prefix, and yield the page's address."""
    target = "" if request.param == "kept" else "/"
    with nginx(tmp_path, service=prefixed, location="/team/motion/", target=target) as proxy:
        yield f"{proxy}/team/motion/"


class Links(HTMLParser):
    """Addresses that a page names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src") and value]


def test_page_and_its_links_work_under_a_prefix(proxied: str) -> None:
    page = httpx.get(proxied)
    assert page.status_code == 200
    links = Links(page.text).found
    scripts = [urljoin(proxied, link) for link in links if link.endswith(".js")]
    imported = [
        urljoin(script, name) for script in scripts for name in re.findall(r'from "(.+?)"', httpx.get(script).text)
    ]
    assert len(links) >= 7
    assert imported
    for url in [*(urljoin(proxied, link) for link in links), *imported]:
        assert url.startswith(proxied)
        assert httpx.get(url).status_code == 200, url
        assert httpx.head(url).status_code == 200, url


def test_video_is_classified_under_a_prefix(proxied: str, clip: Path) -> None:
    answer = httpx.post(f"{proxied}classify", files={"file": clip.read_bytes()}, timeout=60)
    assert answer.status_code == 200, answer.text


def test_problem_types_are_addresses_under_the_prefix(proxied: str) -> None:
    bad = {"file": b"no video"}
    batch = httpx.post(f"{proxied}classify/batch", files=bad, timeout=60).json()["results"]
    for problem in (
        httpx.get(f"{proxied}nothing").json(),
        httpx.get(f"{proxied}static/nothing").json(),
        httpx.get(f"{proxied}classify").json(),
        httpx.post(f"{proxied}classify?top_k=0").json(),
        httpx.post(f"{proxied}classify", files=bad, timeout=60).json(),
        batch[0]["problem"],
    ):
        explained = httpx.get(urljoin(proxied, problem["type"]))
        assert explained.status_code == 200, problem
        assert explained.json()["type"] == problem["type"]
        assert explained.json()["title"] == problem["title"]


def test_document_names_the_prefix(proxied: str) -> None:
    document = httpx.get(f"{proxied}openapi.json").json()
    assert document["servers"] == [{"url": "/team/motion"}]
    assert '"type": "/team/motion/problems/' in str(document).replace("'", '"')
    assert '"type": "/problems/' not in str(document).replace("'", '"')


def test_redirects_keep_https_host_and_prefix(proxied: str) -> None:
    location = httpx.get(f"{proxied}health/").headers["location"]
    assert location == f"{proxied}health".replace("http:", "https:")


def test_direct_requests_need_no_prefix(prefixed: str) -> None:
    for path in ("/health", "/metrics", "/static/page.js", "/team/motion/health", "/team/motion/"):
        assert httpx.get(f"{prefixed}{path}").status_code == 200, path
    assert httpx.get(f"{prefixed}/team/motion").headers["location"] == f"{prefixed}/team/motion/"
    assert httpx.get(f"{prefixed}/team/motionless").json()["status"] == 404


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MME_TRUSTED_PROXIES", "proxy.example"),
        ("MME_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("MME_ROOT_PATH", "motion"),
        ("MME_ROOT_PATH", "/motion/"),
        ("MME_ROOT_PATH", "/"),
    ],
)
def test_wrong_settings_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.removeprefix("MME_").lower()):
        Settings()
