"""The page in a real browser, against a server with a tiny model and one with the demo model."""

import json
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import CHROMIUM, browser, opened, send, take_example
from PIL import Image
from pycocotools import mask as coco

from segue.media import iter_frames, open_media

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
KEYS = ("first-key-of-someone",)


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def page(chromium, server):
    with opened(chromium, server.url) as page:
        page.locator(".example").nth(1).wait_for()
        yield page


def pixels(page):
    """What is on the canvas, RGB."""
    address = page.evaluate('document.querySelector("#canvas canvas").toDataURL()')
    return np.asarray(Image.open(BytesIO(b64decode(address.partition(",")[2]))).convert("RGB"))


def downloaded(page, button):
    with page.expect_download() as found:
        page.locator(button).click()
    return found.value


def drop(page, place, picture, *names):
    """Files fall on a part of the page; whether the page has caught them, so that the browser does not open them."""
    return page.evaluate(
        """([place, bytes, names]) => {
            const dataTransfer = new DataTransfer();
            const fileOf = (name) => new File([new Uint8Array(bytes)], name, { type: "image/png" });
            names.forEach((name) => dataTransfer.items.add(fileOf(name)));
            const options = { bubbles: true, cancelable: true, dataTransfer };
            const fall = (kind) => !document.querySelector(place).dispatchEvent(new DragEvent(kind, options));
            return ["dragover", "drop"].map(fall);
        }""",
        [place, list(picture), names or ("other.png",)],
    )


def hold(page, path, count=1):
    """The first requests for a path, which stay on their way until they are continued."""
    held = []
    page.route(path, lambda route: held.append(route) if len(held) < count else route.continue_())
    return held


def dense(rle):
    return coco.decode({"size": rle["size"], "counts": rle["counts"].encode()}).astype(bool)


def test_what_is_found_is_drawn_listed_and_kept(page, server, tmp_path):
    take_example(page, "scene")
    before = pixels(page)
    send(page, "the car, the triangle", "find")
    assert page.locator("#objects li").count() == 2
    assert page.locator(".turn.assistant .mention").all_inner_texts() == ["the car", "the triangle"]
    page.locator("#objects li").nth(1).locator("[type=checkbox]").uncheck()
    found = json.loads(downloaded(page, "#save_rle").path().read_text())
    assert [(region["name"], region["frame"]) for region in found["regions"]] == [("the car", 0)]
    mask = dense(found["regions"][0]["rle"])
    assert np.array_equal((pixels(page) != before).any(-1), mask)
    page.locator("#objects [type=text]").first.fill("car no. 1")
    table = json.loads(downloaded(page, "#save_coco").path().read_text())
    assert [category["name"] for category in table["categories"]] == ["car no. 1"]
    assert [image["file_name"] for image in table["images"]] == ["scene.png"]
    left, top, width, height = table["annotations"][0]["bbox"]
    rows, columns = np.nonzero(mask)
    assert (left, top, width, height) == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert table["annotations"][0]["area"] == mask.sum()
    assert downloaded(page, "#save_png").path().read_bytes().startswith(b"\x89PNG")


def test_words_and_regions_light_each_other(page):
    take_example(page, "scene")
    send(page, "the car", "find")
    plain = pixels(page)
    mention, row = page.locator(".turn .mention"), page.locator("#objects li")
    mention.hover()
    assert "lit" in row.get_attribute("class")
    page.locator("h1").hover()
    assert "lit" not in (row.get_attribute("class") or "")
    mask = dense(json.loads(downloaded(page, "#save_rle").path().read_text())["regions"][0]["rle"])
    y, x = (int(places[len(places) // 2]) for places in np.nonzero(mask))
    shown = page.locator("#canvas canvas").bounding_box()
    scale = shown["width"] / mask.shape[1]
    page.mouse.move(shown["x"] + (x + 0.5) * scale, shown["y"] + (y + 0.5) * scale)
    assert "lit" in mention.get_attribute("class")
    page.mouse.move(2, 2)
    assert np.array_equal(pixels(page), plain)
    mention.focus()
    assert "lit" in row.get_attribute("class")


def test_the_threshold_acts_at_once_and_asks_nobody(page):
    take_example(page, "scene")
    send(page, "the car", "find")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    areas = []
    for value in ("20", "50", "80"):
        page.locator("#threshold").fill(value)
        found = json.loads(downloaded(page, "#save_rle").path().read_text())
        areas.append(dense(found["regions"][0]["rle"]).sum() if found["regions"] else 0)
    assert areas[0] > areas[1] > areas[2]
    assert [url for url in asked if not url.startswith("blob:")] == []


def test_a_clip_is_followed_frame_by_frame(page):
    take_example(page, "clip")
    assert page.locator("#frame_number").inner_text() == "Frame 1 of 10"
    send(page, "the ring", "find")
    page.locator("#frame").fill("3")
    page.wait_for_function("document.querySelector('#frame_number').value === 'Frame 4 of 10'")
    found = json.loads(downloaded(page, "#save_coco").path().read_text())
    assert len(found["images"]) == 10 and len(found["annotations"]) > 5
    assert page.locator("#threshold_note").is_hidden()
    page.locator("#threshold").fill("90")
    fewer = json.loads(downloaded(page, "#save_coco").path().read_text())
    assert sum(one["area"] for one in fewer["annotations"]) < sum(one["area"] for one in found["annotations"])


@pytest.mark.parametrize("leave", ["reload", "close"])
def test_a_page_that_goes_ends_the_session_of_the_clip_that_it_follows(chromium, serve, served_engine, leave):
    with serve(served_engine, keys=KEYS) as server, opened(chromium, server.url) as page:
        page.locator("#key").fill(KEYS[0])
        page.locator("#key_form button").click()
        take_example(page, "clip")
        hold(page, "**/follow")
        page.locator("#words").fill("the ring")
        with page.expect_request("**/follow") as following:
            page.locator("#send").click()
        session = following.value.url.removesuffix("/follow")
        getattr(page, leave)()
        with server.http(headers={"authorization": f"Bearer {KEYS[0]}"}) as http:
            assert any(http.get(session).status_code == 404 for _ in range(2000))


def test_a_clip_that_is_paused_and_played_again_while_frames_are_on_their_way_plays_once(page):
    take_example(page, "clip")
    held = hold(page, "**/frames/*", 3)
    for number in (1, 2, 3):
        with page.expect_request(f"**/frames/{number}"):
            page.locator("#play").click()
        if number < 3:
            page.locator("#play").click()
    page.evaluate("() => { window.waiting = []; window.setTimeout = (work) => waiting.push(work); }")
    for route in held:
        route.continue_()
    page.wait_for_function("() => waiting.length === 3")
    page.evaluate("async () => { await Promise.all(waiting.splice(0).map((work) => work())); }")
    assert page.locator("#frame_number").inner_text() == "Frame 5 of 10"


def test_a_clip_is_kept_as_it_is_shown(page, tmp_path):
    take_example(page, "clip")
    send(page, "the ring", "find")
    page.locator("#objects [type=color]").fill("#00ff00")
    downloaded(page, "#save_mp4").save_as(tmp_path / "a.mp4")
    kept = open_media(tmp_path / "a.mp4")
    assert (kept.kind, kept.count) == ("video", 10)
    frames = np.stack([frame.image for frame in iter_frames(kept)])
    is_green = (frames[..., 1].astype(int) - frames[..., ::2].max(-1)) > 60
    assert is_green.any((1, 2)).sum() > 5


def test_parts_of_a_picture_are_marked_and_asked_about(page):
    take_example(page, "scene")
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data) if "chat" in request.url else None)
    send(page, "the car", "find")
    assert page.locator("#marking").is_hidden()
    page.locator("[name=mode][value=ask]").check()
    shown = page.locator("#canvas canvas").bounding_box()

    def draw(tool, start, stop):
        page.locator(f"#{tool}").click()
        for place, act in ((start, page.mouse.down), (stop, page.mouse.up)):
            page.mouse.move(shown["x"] + place[0] * shown["width"], shown["y"] + place[1] * shown["height"])
            act()
        page.locator(f"#{tool}").click()

    draw("box", (0.2, 0.5), (0.4, 0.75))
    draw("brush", (0.5, 0.5), (0.6, 0.6))
    page.locator("#objects li button").click()
    assert page.locator("#marks button").all_inner_texts() == [f"region{number} ✕" for number in (1, 2, 3)]
    page.locator("#marks button").nth(1).click()
    page.locator("#ideas button").click()
    page.locator("#send").click()
    page.locator("#send:not([disabled])").wait_for()
    [message] = json.loads(bodies[0])["messages"]
    assert [part["type"] for part in message["content"]] == ["file", "region", "region", "text"]
    left, top, right, bottom = message["content"][1]["box"]
    size = message["content"][2]["rle"]["size"]
    assert (left + 1) / size[1] == pytest.approx(0.2, abs=0.02) and bottom / size[0] == pytest.approx(0.75, abs=0.02)
    assert right > left and bottom > top and dense(message["content"][2]["rle"]).any()
    assert page.locator("#marks button").count() == 0 and page.locator(".turn.error").count() == 0


def test_a_question_is_answered_word_by_word_and_the_dialogue_goes_on(page, server):
    take_example(page, "scene")
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data) if "chat" in request.url else None)
    for words in ("Where is it?", "And there?"):
        send(page, words, "ask")
    assert page.locator(".turn.user").all_inner_texts() == ["Where is it?", "And there?"]
    assert page.locator(".turn.assistant .mention").count() == 2
    roles = [message["role"] for message in json.loads(bodies[1])["messages"]]
    assert roles == ["user", "assistant", "user"]
    page.locator(".turn.assistant .mention").first.hover()
    assert "chosen" in page.locator(".turn.assistant").first.get_attribute("class")


def test_a_new_picture_takes_nothing_over_from_the_one_before(page, png, picture):
    take_example(page, "clip")
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data) if "chat" in request.url else None)
    send(page, "Where is it?", "ask")
    hold(page, "**/v1/chat/completions")
    page.locator("#words").fill("And there?")
    page.locator("#send").click()
    drop(page, "#stage", png(picture(60, 80)))
    page.locator("#player").wait_for(state="hidden")
    page.locator("#send:not([disabled])").wait_for()
    assert page.locator("#words").input_value() == ""
    send(page, "What is this?", "ask")
    asked = [json.loads(body)["messages"] for body in bodies]
    assert [len(messages) for messages in asked] == [1, 3, 1]
    assert asked[2][0]["content"][0]["file"] != asked[0][0]["content"][0]["file"]
    assert page.locator(".turn").count() == 2


def test_the_end_of_an_answer_is_in_sight_unless_someone_reads_further_up(chromium, serve, wordy):
    place = "[log.scrollTop, log.scrollHeight - log.clientHeight]"
    options = {"viewport": {"width": 1280, "height": 500}}
    wordy.pause = 0.02  # on a busy machine the browser is slow
    with serve(wordy) as server, opened(chromium, server.url, **options) as page:
        page.locator(".example").nth(1).wait_for()
        for wanted in (400, 800):
            page.locator("#words").fill("Talk!")
            page.locator("#send").click()
            page.wait_for_function(f"() => log.scrollHeight > log.clientHeight + {wanted}")
            at, end = page.evaluate(f"new Promise((done) => requestAnimationFrame(() => done({place})))")
            assert at == pytest.approx(end, abs=1)
            page.evaluate("log.scrollTop = 20")
            page.wait_for_function(f"() => log.scrollHeight > log.clientHeight + {end + 200}")
            assert page.evaluate("log.scrollTop") == 20
            page.locator("#stop").click()
            page.locator("#send:not([disabled])").wait_for()


def test_the_last_choice_counts_however_slowly_an_earlier_one_is_sent(page, png, picture):
    def choose_slowly():
        hold(page, "**/v1/files")
        drop(page, "#stage", png(picture(60, 80)))

    with page.expect_event("requestfailed"):
        choose_slowly()
        take_example(page, "clip")
    send(page, "the ring", "find")
    assert page.locator("#player").is_visible() and page.locator(".turn").count() == 2
    with page.expect_event("requestfailed"):
        choose_slowly()
        page.locator("#another").click()
    assert page.locator("#empty").is_visible() and page.locator("#status").inner_text() == ""


@pytest.mark.parametrize("place", ["#stage", "#log", "#words", "header", "html"])
def test_a_file_that_is_dropped_anywhere_is_opened(page, png, picture, place):
    assert drop(page, place, png(picture(60, 80))) == [True, True]
    page.locator("#canvas canvas").wait_for()


def test_of_several_files_the_first_is_opened_and_that_is_told(page, png, picture):
    drop(page, "#stage", png(picture(60, 80)), "one.png", "two.png", "three.png")
    page.locator("#status", has_text="one.png was opened, the first of 3 files").wait_for()
    drop(page, "#stage", b"no picture", "one.png", "two.png")
    page.locator("#status", has_text="no image or video of a supported format").wait_for()


def test_a_folder_is_told_as_such(page, tmp_path):
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 100, "y": 100, "data": data})
    page.locator("#status", has_text=f"{tmp_path.name} cannot be read: it is a folder").wait_for()
    assert page.locator("#away").is_hidden()


def test_on_a_phone_the_first_answer_stays_in_sight(chromium, server):
    with opened(chromium, server.url, viewport={"width": 390, "height": 844}) as page:
        page.locator(".example").nth(1).wait_for()
        take_example(page, "scene")
        send(page, "the ring, the car, the square, the circle", "find")
        top, bottom = page.evaluate(
            "(({ top, bottom }) => [top, bottom])(document.querySelector('.assistant').getBoundingClientRect())"
        )
        assert 0 <= top < bottom <= 844


def test_the_keyboard_goes_on_where_a_medium_was_opened_or_closed(page):
    page.locator('.example[data-name="scene"]').press("Enter")
    page.locator("#words:focus").wait_for()
    page.locator("#another").press("Enter")
    page.locator("#file:focus").wait_for(state="attached")
    assert page.evaluate("getComputedStyle(document.querySelector('label.button')).outlineStyle") == "solid"
    page.locator("#language").focus()
    page.evaluate("document.querySelector('.example').click()")
    page.locator("#canvas canvas").wait_for()
    page.locator("#language:focus").wait_for()


def test_what_people_write_is_text_and_nothing_else(page):
    take_example(page, "scene")
    evil = "<img src=x onerror=document.title='gone'>"
    send(page, evil, "find")
    assert page.locator(".turn .mention").inner_text() == evil
    assert page.title() == "Segue" and page.locator(".turn img").count() == 0


def test_what_a_model_answers_is_text_and_nothing_else(page):
    evil = "<img src=x onerror=document.title='gone'> or <b>so</b>"
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in ({"content": evil}, {"regions": []})]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    take_example(page, "scene")
    send(page, "What is there?", "ask")
    assert page.locator(".turn.assistant").inner_text() == evil
    assert page.title() == "Segue" and page.locator(".turn img, .turn b").count() == 0


def test_an_error_is_told_and_the_words_stay(page):
    take_example(page, "scene")
    words = ",".join("abcdefghijklmnopq")
    send(page, words, "find")
    assert page.locator(".turn.error").inner_text() == "17 phrases; at most 16 are asked for together"
    assert page.locator("#words").input_value() == words


def test_a_long_answer_can_be_stopped(chromium, serve, wordy):
    with serve(wordy) as server, opened(chromium, server.url) as page:
        page.locator(".example").nth(1).wait_for()
        assert page.locator("[value=find]").is_disabled()
        page.locator("#words").fill("Talk!")
        page.locator("#send").click()
        page.locator(".turn.assistant", has_text="word word").wait_for()
        page.locator("#stop").click()
        page.locator("#send:not([disabled])").wait_for()
        assert page.locator("#status").inner_text() == "Stopped."
        assert page.locator("#words").input_value() == "Talk!"
        server.wait_idle()


def test_a_server_that_goes_away_is_told_and_nothing_typed_is_lost(chromium, serve, wordy):
    with serve(wordy) as server:
        port = server.context.settings.port
        context = opened(chromium, server.url)
        page = context.__enter__()
        page.locator(".example").nth(1).wait_for()
    page.locator("#words").fill("Are you there?")
    page.locator("#send").click()
    page.locator("#away").wait_for()
    assert page.locator("#words").input_value() == "Are you there?"
    with serve(wordy, port=port):
        page.locator("#away").wait_for(state="hidden")
        assert page.locator("#words").input_value() == "Are you there?"
        page.reload()
        assert page.locator("#words").input_value() == "Are you there?"
        context.__exit__(None, None, None)


def test_a_key_is_asked_for_and_kept_in_the_tab(chromium, serve, wordy):
    with serve(wordy, keys=KEYS) as server, opened(chromium, server.url) as page:
        page.locator("#key").fill(KEYS[0])
        page.locator("#key_form button").click()
        page.locator(".example").nth(1).wait_for()
        assert page.evaluate("localStorage.getItem('key')") is None


@pytest.mark.parametrize(("key", "fault"), [("not-the-key", "does not know"), (f"“{KEYS[0]}”", "holds “, which")])
def test_what_is_wrong_with_a_key_is_told_where_it_is_asked_for_again(chromium, serve, wordy, key, fault):
    with serve(wordy, keys=KEYS) as server, opened(chromium, server.url) as page:
        page.locator("#key_dialog[open]").wait_for()
        assert page.locator("#key_fault").is_hidden()
        page.locator("#key").fill(key)
        page.locator("#key_form button").click()
        page.locator("#key_fault", has_text=fault).wait_for()
        page.reload()
        page.locator("#key_fault", has_text=fault).wait_for()
        assert page.locator("#away").is_hidden()
        page.locator("#key").fill(KEYS[0])
        page.locator("#key_form button").click()
        page.locator(".example").nth(1).wait_for()
        assert page.locator("#status").inner_text() == ""


def test_a_server_that_lives_but_does_not_answer_is_not_asked_without_a_pause(chromium, server):
    with opened(chromium, "about:blank") as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "health" in request.url else None)
        page.route("**/v1/models", lambda route: route.abort())
        page.clock.install(time=0)
        page.clock.pause_at(1000)
        page.goto(server.url)
        page.locator("#away").wait_for()
        for times in (1, 2):
            with page.expect_request("**/v1/models"):
                page.clock.run_for(1500)
            page.locator("#away").wait_for()
            assert len(asked) == times


def test_two_sessions_that_take_turns_see_nothing_of_each_other(chromium, server, page):
    with opened(chromium, server.url) as other:
        other.locator(".example").nth(1).wait_for()
        take_example(page, "scene")
        assert other.locator("#canvas").is_hidden()
        take_example(other, "clip")
        for number, (mine, name) in enumerate([(page, "scene"), (other, "clip")] * 2):
            bodies = []
            mine.on("request", lambda request, seen=bodies: seen.append(request.post_data_buffer))
            send(mine, f"the {name} words {number}", "find")
            assert not any(b"words" in (body or b"") and name.encode() not in body for body in bodies)
        for mine, name, another in ((page, "scene", "clip"), (other, "clip", "scene")):
            assert mine.locator(".turn").count() == 4
            seen = mine.locator("body").inner_html() + mine.evaluate(
                "JSON.stringify([{...sessionStorage}, {...localStorage}])"
            )
            assert f"the {name} words" in seen and f"the {another} words" not in seen
            found = json.loads(downloaded(mine, "#save_rle").path().read_text())
            assert found["media"]["kind"] == {"scene": "image", "clip": "video"}[name]
            assert {region["name"] for region in found["regions"]} <= {f"the {name} words {n}" for n in range(4)}


@pytest.mark.parametrize(("locale", "send_word"), [("en-GB", "Send"), ("zh-CN", "发送")])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_languages_and_schemes(chromium, server, locale, send_word, scheme):
    options = {"viewport": {"width": 360, "height": 740}, "locale": locale, "color_scheme": scheme}
    with opened(chromium, server.url, **options) as page:
        page.locator(".example").nth(1).wait_for()
        take_example(page, "scene")
        send(page, "a long phrase for a thing that is there, another", "find")
        assert page.locator("#send").inner_text() == send_word
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        ink, back = page.evaluate(
            "['color', 'background-color'].map((name) => getComputedStyle(document.body).getPropertyValue(name))"
        )
        bright = [sum(map(int, re.findall(r"\d+", one)[:3])) for one in (ink, back)]
        assert (bright[0] < bright[1]) is (scheme == "light") and abs(bright[0] - bright[1]) > 400
        page.locator("#language").click()
        assert page.locator("#send").inner_text() == {"Send": "发送", "发送": "Send"}[send_word]


def test_only_files_of_the_page_are_given_out_and_only_they_run(server):
    with server.http() as http:
        found = http.get("/")
        assert "script-src 'self'" in found.headers["content-security-policy"]
        assert "unsafe" not in found.headers["content-security-policy"]
        assert not re.search(r"<script>|<style|\son\w+=|https?:", found.text)
        named = re.findall(r'(?:src|href)="(page/[^"]+)"', found.text)
        assert len(named) == 3 and all(http.get(f"/{name}").status_code == 200 for name in named)
        for name in ("..%2fapp.py", "%2e%2e/app.py", "../app.py", "app.py", ""):
            assert http.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(chromium, server, scheme):
    def faults():
        found = Axe().run(page).response["violations"]
        return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]

    with opened(chromium, server.url, color_scheme=scheme) as page:
        page.locator(".example").nth(1).wait_for()
        assert faults() == []
        for name, mode in (("clip", "find"), ("scene", "ask")):
            take_example(page, name)
            send(page, "the ring, the car", mode)
            assert faults() == []
            page.locator("#another").click()
