"""The routes of a Label Studio backend, asked as Label Studio asks, with a Label Studio that serves the files."""

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from segue.errors import DataError
from segue.geometry.masks import track
from segue.integrations.label_studio import parse_config
from segue.media import open_media
from segue.own_data.formats.label_studio import decode_brush
from segue.serve import label_studio
from segue.serve.answers import LEFT
from segue.serve.errors import ApiError
from segue.serve.label_studio import TOKEN_VARIABLE, URL_VARIABLE, Wish, read_wishes
from segue.types import Region

KEY = "a-key-that-nobody-guesses"
CONFIG = """<View><Image name="img" value="$picture"/>
  <BrushLabels name="brush" toName="img"><Label value="Ball" hint="the red ball"/><Label value="Cat"/></BrushLabels>
  <RectangleLabels name="box" toName="img"><Label value="Ball"/></RectangleLabels>
  <PolygonLabels name="line" toName="img"><Label value="Ball"/></PolygonLabels>
  <KeyPointLabels name="point" toName="img"><Label value="Ball"/></KeyPointLabels>
  <TextArea name="words" toName="img"/></View>"""
VIDEO = """<View><Video name="clip" value="$video"/><VideoRectangle name="box" toName="clip"/>
  <Labels name="what" toName="clip"><Label value="Ball"/></Labels></View>"""


@pytest.fixture(scope="module")
def studio(picture, clip, png):
    """A Label Studio as far as it serves files: to who has its token."""
    files = {"/data/upload/1/a.png": png(picture(60, 80)), "/data/local-files/?d=b.png": png(clip(4))}
    files["/data/upload/1/endless.png"] = files["/data/upload/1/a.png"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            is_known = self.headers["authorization"] == "Token secret"
            body = files.get(self.path, b"") if is_known else b""
            self.send_response(200 if body else 404 if is_known else 401)
            is_endless = self.path.endswith("/endless.png")
            self.send_header("content-length", str(10**12 if is_endless else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def backend(serve, served_engine, studio):
    """Asks the backend: `ask(method, path, json)` gives status and body."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(URL_VARIABLE, studio)
        patch.setenv(TOKEN_VARIABLE, "secret")
        with serve(served_engine, keys=(KEY,)) as running, running.http() as http:
            credentials = base64.b64encode(f"anybody:{KEY}".encode()).decode()

            def ask(method, path, json=None):
                answer = http.request(method, f"/label-studio{path}", json=json,
                                      headers={"authorization": f"Basic {credentials}"})  # fmt: skip
                return answer.status_code, answer.json()

            yield ask


@pytest.fixture(scope="module")
def predict(backend):
    def ask(*addresses, drawn=None, config=CONFIG, key="picture"):
        context = None if drawn is None else {"result": drawn}
        tasks = [{"id": number, "data": {key: address}} for number, address in enumerate(addresses)]
        body = {"tasks": tasks, "label_config": config, "project": "1.2", "model_version": None}
        return backend("POST", "/predict", body | {"params": {"login": None, "password": None, "context": context}})

    return ask


def test_a_client_that_has_left_gets_no_more_of_its_tasks_done(predict, image_url, monkeypatch):
    looked = []

    async def look(media, *_):
        looked.append(media)
        raise ApiError(LEFT, "the client has left")

    monkeypatch.setattr(label_studio, "_look", look)
    assert (predict(*[image_url] * 3)[0], len(looked)) == (LEFT, 1)


def of_type(body, kind, row=0):
    return [one for one in body["results"][row]["result"] if one["type"] == kind]


def test_the_routes_without_work_answer_in_its_form(backend):
    assert backend("GET", "/health") == backend("GET", "/") == (200, {"status": "UP", "model_class": "Segue"})
    assert backend("GET", "/metrics") == (200, {})
    status, body = backend("POST", "/setup", {"project": "1.2", "schema": CONFIG, "hostname": "", "access_token": ""})
    assert status == 200 and body["model_version"]
    status, body = backend("POST", "/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": 1}})
    assert (status, body["status"]) == (201, "ok")


def test_a_prediction_has_brush_box_and_polygon_of_one_mask_for_each_label(predict):
    status, body = predict("/data/upload/1/a.png")
    assert status == 200
    strokes, boxes = of_type(body, "brushlabels"), of_type(body, "rectanglelabels")
    assert {stroke["value"]["brushlabels"][0] for stroke in strokes} == {"Ball", "Cat"}
    assert all(0 <= stroke["score"] <= 1 and stroke["to_name"] == "img" for stroke in strokes)
    mask = decode_brush(strokes[0]["value"]["rle"], (60, 80))
    rows, columns = np.nonzero(mask)
    value = boxes[0]["value"]
    assert value["x"] == 100 * columns.min() / 80 and value["height"] == 100 * (np.ptp(rows) + 1) / 60
    points = np.array(of_type(body, "polygonlabels")[0]["value"]["points"])
    assert points.min() >= 0 and points.max() <= 100 and len(points) > 2
    assert len({one["id"] for one in body["results"][0]["result"]}) == len(body["results"][0]["result"])


def test_files_are_taken_by_path_and_by_address(predict, studio):
    assert predict(f"{studio}/data/upload/1/a.png") == predict("/data/upload/1/a.png")


def test_words_take_the_place_of_labels(predict):
    status, body = predict("/data/upload/1/a.png", drawn=[{"type": "textarea", "value": {"text": ["the blue cup"]}}])
    assert status == 200 and {one["value"]["brushlabels"][0] for one in of_type(body, "brushlabels")} == {"Ball"}


def test_a_box_is_where_to_look(predict, picture):
    value = {"x": 50, "y": 50, "width": 50, "height": 50, "rectanglelabels": ["Ball"]}
    status, body = predict("/data/upload/1/a.png", drawn=[{"type": "rectanglelabels", "value": value}])
    assert status == 200
    strokes = [decode_brush(one["value"]["rle"], (60, 80)) for one in of_type(body, "brushlabels")]
    assert not any(mask[:30].any() or mask[:, :40].any() for mask in strokes)
    media, wish = open_media(picture(60, 80)), Wish("Ball", "the red ball", box=(0.5, 0.5, 1.2, 1.0))
    shown, place = label_studio._cropped(media, wish.box)
    assert (shown.source == media.source[30:, 40:]).all()
    region = Region("the red ball", masks=track(np.ones((1, 30, 40), bool), np.array([0])))
    found = label_studio._placed(region, wish, media, place)
    assert (found.phrase, found.box.tolist(), found.masks.dense().sum()) == ("Ball", [40, 30, 80, 60], 1200)


def test_clicks_choose_parts_and_clicks_away_leave_the_rest(predict):
    _, whole = predict("/data/upload/1/a.png")
    mask = decode_brush(of_type(whole, "brushlabels")[0]["value"]["rle"], (60, 80))
    row, column = np.argwhere(mask)[0]

    def click(is_positive):
        value = {"x": 100 * (column + 0.5) / 80, "y": 100 * (row + 0.5) / 60, "keypointlabels": ["Ball"], "width": 1}
        _, body = predict(
            "/data/upload/1/a.png", drawn=[{"type": "keypointlabels", "is_positive": is_positive, "value": value}]
        )
        found = of_type(body, "brushlabels")
        return decode_brush(found[0]["value"]["rle"], (60, 80)) if found else np.zeros_like(mask)

    chosen, others = click(1), click(0)
    assert chosen[row, column] and not others[row, column]
    assert ((chosen | others) == mask).all() and not (chosen & others).any()


def test_a_video_has_boxes_on_frames_that_count_from_one(predict):
    status, body = predict("/data/local-files/?d=b.png", config=VIDEO, key="video")
    assert status == 200
    (row,) = of_type(body, "videorectangle")
    assert row["value"]["framesCount"] == 4 and row["value"]["labels"] == ["Ball"]
    assert [one["frame"] for one in row["value"]["sequence"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/data/upload/1/gone.png", "Label Studio answers 404"),
        ("/api/projects", "expected /data/..."),
        ("/data/../api/projects", "expected /data/..."),
        ("/data/%2e%2e/api/projects", "expected /data/..."),
        ("/data/a\r\nhost: evil", "expected /data/..."),
        ("http://127.0.0.1:1/data/a.png", "fetches nothing"),
        ("s3://bucket/a.png", "fetches nothing"),
        ("http://[::1/a.png", "cannot be read"),
        ("file:///etc/passwd", "fetches nothing"),
    ],
)
def test_nothing_is_fetched_but_files_of_label_studio(predict, address, message):
    status, body = predict(address)
    assert status == 400 and message in body["error"]["message"]


@pytest.mark.parametrize("name", ["a", "endless"])
def test_what_is_too_large_is_refused(serve, wordy, studio, monkeypatch, name):
    monkeypatch.setenv(URL_VARIABLE, studio)
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    asked = {"tasks": [{"data": {"picture": f"/data/upload/1/{name}.png"}}], "label_config": CONFIG}
    with serve(wordy, {"upload_bytes": 100}) as server, server.http() as http:
        found = http.post("/label-studio/predict", json=asked)
    assert (found.status_code, found.json()["error"]["code"]) == (400, "limit_exceeded")


def test_only_its_own_address_is_label_studio(predict, studio):
    status, body = predict(studio.replace("http:", "https:") + "/data/upload/1/a.png")
    assert status == 400 and "fetches nothing" in body["error"]["message"]


def test_of_several_tasks_one_that_fails_is_empty_and_says_why(predict):
    status, body = predict("/data/upload/1/gone.png", "/data/upload/1/a.png")
    assert status == 200 and body["results"][0]["result"] == [] and "404" in body["results"][0]["error"]
    assert of_type(body, "brushlabels", row=1)


def test_a_label_asks_for_its_hint_wherever_that_stands():
    assert parse_config(CONFIG).phrases == {"Ball": "the red ball", "Cat": "Cat"}


@pytest.mark.parametrize("config", ["<View/>", "no XML", "<!DOCTYPE a [<!ENTITY b 'c'>]><View/>"])
def test_a_configuration_that_cannot_be_served_is_told(backend, config):
    status, body = backend("POST", "/setup", {"project": "1.2", "schema": config})
    assert status == 400 and "labelling configuration" in body["error"]["message"]


@pytest.mark.parametrize(
    "drawn",
    [
        [{"type": "rectanglelabels", "value": {"x": "a", "y": 0, "width": 1, "height": 1}}],
        [{"type": "rectanglelabels", "value": {"x": float("nan"), "y": 0, "width": 1, "height": 1}}],
        [{"type": "rectanglelabels", "value": {"x": 10**400, "y": 0, "width": 1, "height": 1}}],
        [{"type": "keypointlabels"}],
        [{"type": "textarea", "value": 3}],
        ["words"],
    ],
)
def test_what_is_drawn_in_no_known_form_is_refused(drawn):
    with pytest.raises(DataError, match="not in the form of Label Studio"):
        read_wishes(parse_config(CONFIG), drawn)


def test_shapes_that_are_drawn_are_counted_before_they_are_read():
    with pytest.raises(DataError, match="5,000 shapes are drawn; at most 4,096"):
        read_wishes(parse_config(CONFIG), [{"type": "choices"}] * 5000)
