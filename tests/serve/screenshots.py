"""Pictures of the page for the documentation, made anew: python tests/serve/screenshots.py"""

import threading
import time
from pathlib import Path

import uvicorn
from browsing import browser, opened, send, take_example

import segue
from segue.serve.app import create_app
from segue.serve.settings import Settings

ASSETS = Path(__file__).parents[2] / "docs" / "assets"
PORT = 8790
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "locale": "zh-CN"}


def main():
    app = create_app(segue.load("demo"), Settings(port=PORT), model="demo")
    server = uvicorn.Server(uvicorn.Config(app, port=PORT, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not (server.started and app.state.context.scheduler.is_ready):
        time.sleep(0.1)
    try:
        with browser() as chromium:
            shoot(chromium)
    finally:
        server.should_exit = True
        thread.join()


def shoot(chromium):
    url = f"http://127.0.0.1:{PORT}/"
    with opened(chromium, url) as page:
        take_example(page, "scene")
        send(page, "the big green car, the triangle", "find")
        send(page, "Describe the picture with interleaved masks.", "ask")
        page.locator(".turn.chosen .mention").last.hover()
        page.screenshot(path=ASSETS / "page-light.png")
    with opened(chromium, url, **PHONE) as page:
        take_example(page, "clip")
        page.locator("#ideas button").first.click()
        page.locator("#send").click()
        page.locator(".turn.chosen .mention").first.wait_for()
        page.locator("#frame").fill("5")
        page.wait_for_function("document.querySelector('#frame_number').value.includes('6')")
        page.screenshot(path=ASSETS / "page-phone-dark.png", full_page=True)


if __name__ == "__main__":
    main()
