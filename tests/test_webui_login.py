"""The Tuner in a WebUI that has a login, or should have one."""

from __future__ import annotations

from types import SimpleNamespace

from test_webui_extension import client_of, starting, texts

from lib_tuner.hosts import extension
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.jobs import Jobs


def test_the_tab_of_an_open_host_says_why_there_is_none(tmp_path):
    with starting(tmp_path, flags={"listen": True}) as open_:
        assert "asks for no login" in texts(open_) and "tuner-live" not in texts(open_)
        answer = client_of(open_).get("/tuner/api/status")
        assert answer.status_code == 403 and "--gradio-auth" in answer.json()["detail"]


def test_the_apis_login_holds_for_our_routes(tmp_path):
    with starting(tmp_path, flags={"api": True, "api_auth": "ann:secret,bob:x"}) as guarded:
        assert client_of(guarded).get("/tuner/api/status").status_code == 401
        assert client_of(guarded).get("/tuner/api/status", auth=("bob", "x")).status_code == 200
        key = texts(guarded).split('data-key="')[1].split('"')[0]
        assert client_of(guarded).get("/tuner/api/status", headers={"X-Tuner": key}).status_code == 200


def test_a_folder_that_another_program_holds_is_said_in_the_tab(tmp_path):
    other = Jobs(tmp_path / "data" / "data" / "outputs" / "tuner", Standalone)
    try:
        with starting(tmp_path / "data") as second:
            home = extension.home_of(SimpleNamespace(shared=second.modules.shared, paths=second.modules.paths))
            assert home == other.home and "tuner-notice" in texts(second)
    finally:
        other.close()
