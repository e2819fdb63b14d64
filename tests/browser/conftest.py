"""One ComfyUI, one Chromium and one tab for all browser tests."""

import json

import frontend
import pytest

from testbed import example_pictures, serve
from testbed.server import BASE, Server
from tools import draw_workflows


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    """A host with settings of its own, so that an artist's stay as they are."""
    user = tmp_path_factory.mktemp("user")
    (user / "default").mkdir()
    (user / "default" / "comfy.settings.json").write_text(
        json.dumps({"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False})
    )
    serve.prepare()
    with Server(
        *serve.FLAGS,
        "--user-directory",
        str(user),
        log=BASE / "test-browser.log",
        leaves=example_pictures.SAVED,
    ) as running:
        yield running


@pytest.fixture(scope="package")
def context():
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if draw_workflows.chromium() is None:
        pytest.skip("no Chromium on this machine (on Debian: apt install chromium)")
    frontend.SHOTS.mkdir(parents=True, exist_ok=True)
    with api.sync_playwright() as play:
        browser = draw_workflows.launched(play)
        yield browser.new_context(viewport={"width": 1600, "height": 1000})
        browser.close()


@pytest.fixture(scope="package")
def tab(context, server):
    return frontend.Tab(context, server.url)
