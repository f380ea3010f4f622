"""Clips with regions drawn on them, and what is refused."""

import json
import socket
import threading

import numpy as np
import pytest

from segue.geometry.masks import encode
from segue.media import iter_frames, open_media
from segue.serve import overlays


@pytest.fixture
def clip_id(server, png, clip):
    with server.http() as http:
        return http.post("/v1/files", files={"file": ("a.png", png(clip(5)))}).json()["id"]


def drawn(index=1, size=(60, 80), **more):
    mask = np.zeros(size, bool)
    mask[:30] = True
    return {"frames": [{"index": index, "rle": {"size": list(size), "counts": encode(mask)}}], **more}


def left_over(server):
    return [path.name for path in server.context.files._folder.glob("*.mp4")]


def test_a_mask_is_drawn_in_its_colour_on_its_frame_alone(server, clip_id, clip, tmp_path):
    with server.http() as http:
        found = http.post(f"/v1/files/{clip_id}/overlay", json={"regions": [drawn(colour="#00ff00")]})
    assert found.headers["content-type"] == "video/mp4"
    (tmp_path / "a.mp4").write_bytes(found.content)
    frames = np.stack([frame.image for frame in iter_frames(open_media(tmp_path / "a.mp4"))]).astype(int)
    greener = (frames - clip(5))[..., 1].mean(2).mean(1)
    assert len(frames) == 5 and greener.argmax() == 1 and greener[1] > 10 + max(greener[[0, 2, 3, 4]])
    assert left_over(server) == []


@pytest.mark.parametrize(
    ("regions", "text"),
    [
        ([drawn(index=5)], "does not fit a clip of 5 frames"),
        ([drawn(size=(61, 80))], "does not fit"),
        ([drawn(colour="red")], "colour"),
        ([{"frames": [{"index": 0, "rle": {"size": [60, 80], "counts": "1"}}]}], "cover"),
        ([drawn()] * 65, "65 regions; at most 64"),
    ],
)
def test_what_does_not_fit_is_refused(server, clip_id, regions, text):
    with server.http() as http:
        found = http.post(f"/v1/files/{clip_id}/overlay", json={"regions": regions})
    assert found.status_code == 400 and text in found.json()["error"]["message"]


def test_an_image_is_no_clip(server, png, picture):
    with server.http() as http:
        name = http.post("/v1/files", files={"file": ("a.png", png(picture(60, 80)))}).json()["id"]
        assert http.post(f"/v1/files/{name}/overlay", json={"regions": []}).status_code == 400


def test_a_client_that_leaves_ends_the_drawing(server, clip_id, monkeypatch):
    drawings, (begun, left, ended) = [], [threading.Event() for _ in range(3)]
    close, write = overlays.Drawing.close, overlays.Drawing.write

    def waiting(frame, *_):
        drawings.append(1)
        begun.set()
        assert left.wait(60)
        return frame

    def closed(drawing):
        close(drawing)
        left.set()

    def written(drawing, path):
        try:
            write(drawing, path)
        finally:
            ended.set()

    monkeypatch.setattr(overlays, "overlay", waiting)
    monkeypatch.setattr(overlays.Drawing, "close", closed)
    monkeypatch.setattr(overlays.Drawing, "write", written)
    body = json.dumps({"regions": [drawn()]})
    head = f"POST /v1/files/{clip_id}/overlay HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=60) as client:
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        assert begun.wait(60)
    assert left.wait(60) and ended.wait(60)
    assert len(drawings) == 1 and left_over(server) == []
