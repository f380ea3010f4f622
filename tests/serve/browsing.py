"""A page in Debian's Chromium, for the tests and for the pictures in the documentation."""

import shutil
from contextlib import contextmanager

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@contextmanager
def opened(chromium, url, **options):
    """The page at an address in a session of its own; what goes wrong in its code is an error here."""
    context = chromium.new_context(**({"viewport": {"width": 1280, "height": 860}} | options))
    page = context.new_page()
    page.set_default_timeout(60_000)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if "Content Security Policy" in line.text else None)
    page.goto(url)
    yield page
    context.close()
    assert wrong == []


def take_example(page, name):
    page.locator(f'.example[data-name="{name}"]').click()
    page.locator("#canvas canvas").wait_for()


def send(page, words, mode):
    page.locator(f'[name="mode"][value="{mode}"]').check()
    page.locator("#words").fill(words)
    page.locator("#send").click()
    page.locator("#send:not([disabled])").wait_for()
