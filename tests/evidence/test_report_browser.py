"""A report in a real browser: nothing loaded, nothing run, nothing wider than a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_transfer.evidence.report.render import render_report
from tests.evidence.made_runs import MakeRun

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

HOSTILE = ["<script>document.title = 'run'</script>", '"><img src=x onerror="document.title = 1">', "w" * 300, "שלום 🐢", "plain"]
ENTITIES = ["O", *(f"{prefix}-{name}" for name in HOSTILE for prefix in "BI")]


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        # Without its sandbox, which containers often do not allow; the page is our own.
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(
    ("task", "labels"),
    [("text-classification", HOSTILE), ("token-classification", ENTITIES), ("image-classification", [str(number) for number in range(77)])],
)
def test_a_page_is_quiet_and_fits(make_run: MakeRun, browser: "sync_api.Browser", task: str, labels: list[str]) -> None:
    arms = ["scratch", "head", "lora", "an-arm-with-a-name-that-is-longer-than-others"]
    folder = make_run(task=task, labels=labels, texts=HOSTILE, arms=arms)
    path = folder / "report.html"
    path.write_text(render_report(folder), encoding="utf-8")
    for scheme in ("light", "dark"):
        for width in (390, 1280):
            found = look(browser, path, scheme, width)
            assert found["complaints"] == []
            assert found["requests"] == [path.as_uri()]
            assert found["title"] == "topics: does transfer help?", "no script ran"
            assert found["overflow"] == 0, f"{scheme}, {width} wide: {found['widest']}"
            assert found["background"] == {"light": "rgb(246, 247, 249)", "dark": "rgb(14, 17, 21)"}[scheme]


def look(browser: "sync_api.Browser", path: Path, scheme: str, width: int) -> dict[str, object]:
    """Open a page, all of it unfolded, and say what it asked for, complained of and measures."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("data:") else requests.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(it => it.open = true)")
    root = "document.documentElement"
    found = {
        "complaints": complaints,
        "requests": requests,
        "title": page.title(),
        "overflow": page.evaluate(f"{root}.scrollWidth - {root}.clientWidth"),
        "widest": page.evaluate(
            "[...document.querySelectorAll('body *')]"
            f".filter(it => it.getBoundingClientRect().right > {width} && !it.closest('.scroll, nav, pre'))"
            ".slice(0, 3).map(it => it.outerHTML.slice(0, 120))"
        ),
        "background": page.evaluate("getComputedStyle(document.body).backgroundColor"),
    }
    context.close()
    return found
