"""Who may use our routes inside the WebUI: as the host's own API and page, which do not cover what an extension adds."""

from __future__ import annotations

import base64

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lib_tuner.hosts.standalone import Standalone
from lib_tuner.jobs import Jobs
from lib_tuner.web.auth import Guard
from lib_tuner.web.routes import make_router

LOCAL = "http://127.0.0.1"


@pytest.fixture
def client(tmp_path):
    jobs = Jobs(tmp_path / "out", Standalone)

    def made(**how) -> TestClient:
        app = FastAPI()
        app.tokens = {"session": "ann"}
        app.include_router(make_router(jobs, Guard(**{"key": "the-key", "logins": [], "page_login": False, "app": app, **how}).admit))
        return TestClient(app, base_url=LOCAL)

    yield made
    jobs.close()


def status(client: TestClient, cookies: dict[str, str] | None = None, **how) -> int:
    client.cookies.clear()
    client.cookies.update(cookies or {})
    return client.get("/tuner/api/status", **how).status_code


def basic(login: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def test_without_any_login_this_machine_is_let_in_and_names_from_elsewhere_are_not(client):
    assert status(client()) == 200
    assert status(client(), headers={"Host": "evil.example"}) == 403  # a foreign name that points here


def test_the_apis_login_is_asked_for(client):
    with_login = client(logins=[("ann", "secret"), ("bob", "x:y")])
    assert status(with_login) == 401 and status(with_login, headers=basic("ann:wrong")) == 401
    assert status(with_login, headers=basic("ann:secret")) == 200 and status(with_login, headers=basic("bob:x:y")) == 200
    assert "WWW-Authenticate" in with_login.get("/tuner/api/status").headers
    browser = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)"}
    assert "WWW-Authenticate" in with_login.get("/tuner/api/status", headers=browser | {"Accept": "text/html,*/*;q=0.8"}).headers
    powershell = {"User-Agent": "Mozilla/5.0 (Windows NT 10.0; en-US) PowerShell/7.4.0", "Accept": ""}
    assert "WWW-Authenticate" in with_login.get("/tuner/api/status", headers=powershell).headers
    for accept in ("*/*", "image/avif,image/webp,*/*"):  # of a page that was open before a restart: the browser's own window for a login would come at every look
        assert "WWW-Authenticate" not in with_login.get("/tuner/api/status", headers=browser | {"Accept": accept}).headers


def test_the_pages_login_is_asked_for(client):
    assert status(client(page_login=True)) == 401
    for cookie, code in (({"access-token": "session"}, 200), ({"access-token-unsecure": "session"}, 200), ({"access-token": "guessed"}, 401)):
        assert status(client(page_login=True), cookies=cookie) == code
    assert status(client(logins=[("ann", "secret")]), cookies={"access-token": "session"}) == 401  # a session that no login gave


def test_the_page_is_known_by_its_key(client):
    with_login = {"logins": [("ann", "secret")], "page_login": True}
    assert status(client(**with_login), headers={"X-Tuner": "the-key"}) == 200
    assert status(client(**with_login), cookies={"tuner-7860": "the-key"}) == 200
    assert status(client(**with_login), headers={"X-Tuner": "another"}) == 401
    assert status(client(**with_login), cookies={"other": "the-key"}) == 401


def test_every_route_is_guarded(client):
    guarded = client(logins=[("ann", "secret")])
    routes = [(method, path) for path, methods in guarded.app.openapi()["paths"].items() for method in methods]
    assert len(routes) > 7
    for method, path in routes:
        values = {"run": "x", "action": "stop", "name": "x", "index": "0"}
        assert guarded.request(method, path.format(**values), headers={"X-Tuner": "guess"}, json={"settings": {}}).status_code == 401, path


def test_an_open_host_lets_nobody_in(client):
    closed = client(closed="Start it with a login.", logins=[("ann", "secret")])
    for how in ({"headers": basic("ann:secret")}, {"headers": {"X-Tuner": "the-key"}}):
        answer = closed.get("/tuner/api/status", **how)
        assert (answer.status_code, answer.json()["detail"]) == (403, "Start it with a login.")


def test_other_sites_are_not_answered(client):
    assert status(client(), headers={"Origin": "http://evil.example"}) == 403
    assert status(client(), headers={"Origin": LOCAL}) == 200


def test_a_page_behind_a_proxy_is_known_by_its_key(client):
    through = {"Origin": "https://art.example", "Host": "127.0.0.1:7860"}  # nginx's own Host, where nobody told it to pass the browser's on
    assert status(client(), headers=through) == 403 and status(client(), headers=through | {"X-Tuner": "the-key"}) == 200
    assert status(client(), headers=through, cookies={"tuner-7860": "the-key"}) == 403  # a cookie goes along with what another site posts
    assert status(client(), headers={"Origin": "http://127.0.0.1", "Host": "127.0.0.1:80"}) == 200  # a browser leaves out the usual port
    assert status(client(), headers={"Origin": "https://127.0.0.1", "Host": "127.0.0.1:80"}) == 403
