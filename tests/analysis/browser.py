"""A real browser, for tests that look at pages as a person does."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
MISSING = "no chromium on this machine (on Debian: apt-get install chromium), so the page is not looked at"


@dataclass
class Seen:
    """An open page, what it asked the network for, and what it complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def all(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def style(self, selector: str, name: str) -> str:
        """Return the computed style of the first element."""
        script = "(node, name) => getComputedStyle(node).getPropertyValue(name)"
        return str(self.page.locator(selector).first.evaluate(script, name))


@contextmanager
def launched() -> Iterator[Browser]:
    """Run a browser while the block does."""
    with sync_playwright() as playwright:
        # Without the sandbox, which the administrator's account, as in CI, cannot use.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, *, width: int = 1280, dark: bool = False) -> Iterator[Seen]:
    """Show a file while the block runs, on a screen of some width. Nothing but the file can be reached."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        has_touch=width < 600,
        offline=True,
    )
    page = context.new_page()
    seen = Seen(page)
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.goto(path.resolve().as_uri())
    yield seen
    context.close()
