"""The chat page in a real browser, with a live gateway and a small model: `make test-browser`.

`make test` passes this file over, since not every machine has a browser. PUMA_BROWSER names the
program; default: Chromium of this system, or Playwright's own. PUMA_SCREENSHOTS names a folder for
pictures of what is tested.
"""

import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from conversation import PROMPT
from playwright.async_api import Browser, Page, async_playwright, expect
from waiting import HANG, until

from puma_actors.api.life import Cluster
from puma_actors.api.local import LocalCluster

sys.path.append(str(Path(__file__).parents[1] / "puma_actors" / "serve"))
from gateway import KEY, NAME, Gateway, gateway

WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
LOOKS = [
    pytest.param({"viewport": size, "color_scheme": scheme}, id=f"{name}-{scheme}")
    for name, size in (("wide", WIDE), ("phone", PHONE))
    for scheme in ("light", "dark")
]
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = (
    "there is no Chromium: install your system's (apt install chromium), or run "
    "`.venv/bin/playwright install chromium`, or give a path in PUMA_BROWSER"
)

expect.set_options(timeout=1000 * HANG)


@dataclass
class Shown:
    """A page, what it asked for, and what its console says."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    async def most(self, tokens: int) -> None:
        """Let answers have so many tokens at most; the model has room for 64 in all."""
        await self.page.evaluate(f"document.getElementById('tokens').value = {tokens}")

    async def ask(self, text: str = PROMPT) -> None:
        await self.page.fill("#text", text)
        await self.page.press("#text", "Enter")

    async def answered(self, count: int = 1) -> str:
        """Wait for a number of whole answers; the last one's text."""
        answers = self.page.locator(".turn.assistant")
        await expect(answers).to_have_count(count)
        await expect(self.page.locator("#send")).to_be_enabled()
        return await answers.last.locator("p").inner_text()

    async def kept(self) -> Any:
        """The conversations in the browser's store."""
        return json.loads(await self.page.evaluate("localStorage.getItem('puma.talks') || '[]'"))

    async def picture(self, name: str) -> None:
        if folder := os.environ.get("PUMA_SCREENSHOTS"):
            await self.page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    found = os.environ.get("PUMA_BROWSER") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    # Chromium's sandbox does not work for root, as in a container.
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.exit(NO_BROWSER, returncode=2)
        started = await playwright.chromium.launch(executable_path=found, args=alone)
        yield started
        await started.close()


@asynccontextmanager
async def shown(browser: Browser, served: Gateway, **look: Any) -> AsyncIterator[Shown]:
    """The page of a gateway, opened by the link that it prints."""
    context = await browser.new_context(**look)
    context.set_default_timeout(1000 * HANG)
    found = Shown(await context.new_page())
    context.on("request", lambda request: found.requests.append(request.url))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on(
        "console",
        lambda said: found.complaints.append(said.text) if said.type == "error" else None,
    )
    await found.page.goto(f"{served.base}/#key={KEY}")
    await expect(found.page.locator("#model option")).to_have_count(len(served.models))
    await found.most(8)
    try:
        yield found
        assert found.complaints == []
        assert found.requests
        outside = [
            url for url in found.requests if not url.startswith((served.base, "data:", "blob:"))
        ]
        assert outside == []
    finally:
        await context.close()


@asynccontextmanager
async def slow(folder: Path, network: str = "12ms,1gbit") -> AsyncIterator[Gateway]:
    """A gateway whose model takes some tenths of a second a token."""

    async def opener() -> Cluster:
        return LocalCluster.from_pretrained(folder, network=network)

    async with gateway(remote={NAME: opener}) as served:
        yield served


def idle(served: Gateway) -> bool:
    """Whether no inference is running at the client."""
    model = served.models[NAME]
    return model.waiting == 0 and not model.cluster().client._inferences


async def issues(page: Page) -> list[str]:
    """What axe finds on a page as it stands."""
    found = await Axe().run(page)
    return [
        f"{each['impact']}: {each['id']} at {[node['target'] for node in each['nodes']]}"
        for each in found.response["violations"]
    ]


# -- what it does ----------------------------------------------------------------------------------


async def test_an_answer_appears_and_tells_its_cost(browser: Browser, folder: Path) -> None:
    async with gateway(folder) as served, shown(browser, served) as chat:
        assert "key=" not in chat.page.url
        await chat.ask()
        assert await chat.answered()
        note = await chat.page.locator(".turn.assistant small").inner_text()
        assert "rounds" in note and "between the parties" in note
        await chat.ask("and the dog")
        await chat.answered(2)
        (talk,) = await chat.kept()
        assert [turn["role"] for turn in talk["turns"]] == ["user", "assistant"] * 2
        assert talk["title"] == PROMPT


async def test_the_first_token_is_seen_before_the_last(browser: Browser, folder: Path) -> None:
    # The gateway says every two seconds how far it is: reading the prompt takes longer than that.
    async with slow(folder, "150ms") as served, shown(browser, served) as chat:
        await chat.most(3)
        await chat.ask()
        running = chat.page.locator(".turn.assistant[aria-busy]")
        await expect(chat.page.locator("#bar")).to_be_visible()  # the prompt is being read
        await expect(running.locator("p")).not_to_be_empty()
        assert await chat.page.locator("#stop").is_visible()
        assert not await chat.page.locator("#send").is_visible()
        await chat.picture("running")
        first = await running.locator("p").inner_text()
        await chat.page.click("#who")
        await expect(chat.page.locator("#facts")).to_be_visible()
        await chat.page.keyboard.press("Escape")  # closes the dialog, and does not stop the answer
        await expect(chat.page.locator("#facts")).to_be_hidden()
        assert (await chat.answered()).startswith(first)
        assert await chat.page.locator(".turn.assistant small").inner_text() != "stopped"


@pytest.mark.parametrize("how", ["button", "escape"])
async def test_an_answer_is_stopped_at_every_party(
    browser: Browser, folder: Path, how: str
) -> None:
    async with slow(folder) as served, shown(browser, served) as chat:
        await chat.most(40)
        await chat.ask()
        await expect(chat.page.locator(".turn.assistant p")).not_to_be_empty()
        assert not idle(served)
        if how == "button":
            await chat.page.click("#stop")
        else:
            await chat.page.keyboard.press("Escape")
        text = await chat.answered()
        assert await chat.page.locator(".turn.assistant small").inner_text() == "stopped"
        await until(lambda: idle(served))
        assert text
        assert await chat.page.evaluate("document.activeElement.id") == "text"


async def test_a_reload_loses_the_running_answer_alone(browser: Browser, folder: Path) -> None:
    async with slow(folder) as served, shown(browser, served) as chat:
        await chat.ask()
        said = await chat.answered()
        await chat.most(30)
        await chat.ask("and the dog")
        await expect(chat.page.locator(".turn.assistant[aria-busy] p")).not_to_be_empty()
        await chat.page.reload()
        await expect(chat.page.locator("#model option")).to_have_count(1)
        await until(lambda: idle(served))  # nobody waits for it
        turns = chat.page.locator(".turn")
        assert [await turns.nth(at).locator("p").inner_text() for at in range(3)] == [
            PROMPT,
            said,
            "and the dog",
        ]
        await expect(turns).to_have_count(3)
        await chat.most(3)
        await chat.ask("again")  # with the key of this tab
        assert await chat.answered(2)


async def test_two_tabs_lose_nothing_of_each_other(browser: Browser, folder: Path) -> None:
    async with gateway(folder) as served, shown(browser, served) as chat:
        await chat.ask()
        await chat.answered()
        page = await chat.page.context.new_page()
        await page.goto(f"{served.base}/#key={KEY}")
        other = Shown(page)
        await expect(page.locator("#model option")).to_have_count(1)
        await other.most(8)
        await page.click("#new")
        await other.ask("the dog")
        await other.answered()
        await expect(chat.page.locator("#talks li")).to_have_count(2)  # it hears of it
        await chat.ask("and the dog")
        await chat.answered(2)
        titles = [(talk["title"], len(talk["turns"])) for talk in await chat.kept()]
        assert titles == [("the dog", 2), (PROMPT, 4)]
        await page.click(f"text={PROMPT}")
        await expect(page.locator(".turn")).to_have_count(4)
        chat.page.once("dialog", lambda dialog: dialog.accept())
        await chat.page.get_by_role("button", name=f"Delete {PROMPT}").click()
        await expect(page.locator("#talks li")).to_have_count(1)
        await expect(page.locator(".turn.user p")).to_have_text("the dog")
        assert [talk["title"] for talk in await other.kept()] == ["the dog"]


async def test_conversations_are_exported_and_deleted(browser: Browser, folder: Path) -> None:
    async with gateway(folder) as served, shown(browser, served) as chat:
        await chat.ask()
        await chat.answered()
        await chat.page.click("#new")
        await chat.page.click("#new")  # one that is empty is enough
        await expect(chat.page.locator("#talks li")).to_have_count(2)
        await chat.ask("the dog")
        await chat.answered()
        async with chat.page.expect_download() as coming:
            await chat.page.click("#export")
        download = await coming.value
        assert download.suggested_filename.endswith(".json")
        assert json.loads((await download.path()).read_text("utf-8")) == await chat.kept()
        await chat.page.click(f"text={PROMPT}")
        await expect(chat.page.locator(".turn.user p")).to_have_text(PROMPT)
        delete = chat.page.get_by_role("button", name=f"Delete {PROMPT}")
        await delete.click()  # nothing is deleted before "OK": without a listener the answer is no
        assert len(await chat.kept()) == 2
        chat.page.once("dialog", lambda dialog: dialog.accept())
        await delete.click()
        await expect(chat.page.locator(".turn.user p")).to_have_text("the dog")
        assert [talk["title"] for talk in await chat.kept()] == ["the dog"]


async def test_without_a_key_it_asks_for_one(browser: Browser, folder: Path) -> None:
    async with gateway(folder) as served:
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(served.base)
        await page.fill("#key", KEY)
        await page.press("#key", "Enter")
        await expect(page.locator("#model option")).to_have_count(1)
        await context.close()


async def test_a_lost_gateway_is_told(browser: Browser, folder: Path) -> None:
    async with gateway(folder) as served:
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(f"{served.base}/#key={KEY}")
        await expect(page.locator("#model option")).to_have_count(1)
    await page.fill("#text", PROMPT)
    await page.press("#text", "Enter")
    await expect(page.locator("#status.bad")).not_to_be_empty()
    await expect(page.locator("#send")).to_be_enabled()
    assert await page.input_value("#text") == PROMPT  # to be sent again
    await context.close()


# -- for everybody ---------------------------------------------------------------------------------


async def test_the_keyboard_is_enough(browser: Browser, folder: Path) -> None:
    async with gateway(folder) as served, shown(browser, served, viewport=WIDE) as chat:
        await chat.ask()
        await chat.answered()
        keys = chat.page.keyboard
        await chat.page.click("h1")  # from the start
        reached = []
        while len(reached) < 30:
            await keys.press("Tab")
            reached.append(
                await chat.page.evaluate(
                    "document.activeElement.id || document.activeElement.textContent"
                )
            )
            if reached[-1] == "send":
                break
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert await chat.page.evaluate(outline) != "none", reached[-1]
        wanted = ["model", "Settings", "who", "new", PROMPT, "×", "export", "talk", "text"]
        assert [each for each in reached if each in wanted] == wanted
        await chat.page.focus("#who")
        await keys.press("Enter")
        await expect(chat.page.locator("#facts")).to_be_visible()
        await keys.press("Escape")
        await expect(chat.page.locator("#facts")).to_be_hidden()
        assert await chat.page.evaluate("document.activeElement.id") == "who"
        await chat.page.focus("#text")
        await keys.type("one")
        await keys.press("Shift+Enter")
        await keys.type("two")
        assert await chat.page.input_value("#text") == "one\ntwo"
        await keys.press("Enter")
        assert await chat.answered(2) is not None


@pytest.mark.parametrize("look", LOOKS)
async def test_how_it_looks(
    browser: Browser, folder: Path, look: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """No issue for axe, nothing beside the screen, and what one writes in is in view."""
    name = request.node.callspec.id
    async with gateway(folder) as served, shown(browser, served, **look) as chat:
        page = chat.page
        await chat.picture(f"{name}-empty")
        assert await issues(page) == []
        await chat.ask("I see the red cat and the dog, and I see the cat again.\n" * 2)
        await chat.answered()
        await chat.ask()
        await chat.answered(2)
        await chat.picture(f"{name}-talk")
        assert await issues(page) == []
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= look["viewport"]["width"]
        for control in ("#text", "#send", "#who", "#model"):
            box = await page.locator(control).bounding_box()
            assert box is not None
            assert box["width"] > 50
            assert box["y"] + box["height"] <= look["viewport"]["height"], control
        if look["viewport"] is PHONE:
            await page.click("#open")
            await expect(page.locator("#list")).to_be_visible()
            await chat.picture(f"{name}-list")
            assert await issues(page) == []
            await page.locator("#talks button").first.click()
            await expect(page.locator("#list")).to_be_hidden()
        await page.click("#settings summary")
        await expect(page.locator("#heat")).to_be_visible()
        await chat.picture(f"{name}-settings")
        assert await issues(page) == []
        box = await page.locator("#settings > div").bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= look["viewport"]["width"] - box["width"]
        await page.click("#settings summary")
        await page.click("#who")
        await expect(page.locator("#facts")).to_be_visible()
        await chat.picture(f"{name}-facts")
        assert await issues(page) == []
