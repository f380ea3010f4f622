"""Faults that other servers of models had, each tried here; docs/security.md lists them with their numbers."""

import base64
import io
import json
import re
from fractions import Fraction

import av
import numpy as np
import openai
import pytest
from PIL import Image

from segue.types import FrameMasks


def chat(server, *parts, **more):
    messages = [{"role": "user", "content": list(parts)}]
    return server.client().chat.completions.create(model="tiny", messages=messages, **more)


def picture_of(form, pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["TIFF", "BMP", "ICO", "PCX", "JPEG2000", "PPM", "TGA", "ICNS", "EPS", "PDF"])
@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_formats_that_nobody_needs_never_reach_their_decoders(serve, wordy_once, picture, data_url, form, kind):
    with serve(wordy_once) as server:
        server.context.media._decoders = None  # whoever decodes fails
        with pytest.raises(openai.BadRequestError, match="is not taken as|no image or video"):
            chat(server, {"type": kind, kind: data_url(picture_of(form, picture(32, 32)))})


def test_of_a_jpeg_with_several_pictures_only_the_first_is_ever_looked_at(server, picture, data_url):
    file = io.BytesIO()
    first, second = Image.fromarray(picture(20, 30)), Image.fromarray(picture(40, 50))
    first.save(file, "MPO", save_all=True, append_images=[second])
    found = chat(server, {"type": "image_url", "image_url": data_url(file.getvalue(), "image/jpeg")}, max_tokens=1)
    assert (found.choices[0].message.media["width"], found.choices[0].message.media["height"]) == (30, 20)
    kept = server.client().files.create(file=("a.jpg", file.getvalue()), purpose="user_data")
    assert kept.media == {"kind": "image", "width": 30, "height": 20, "frames": 1, "fps": None}


def test_a_video_that_changes_its_size_on_the_way_is_refused(server, picture, data_url):
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        pts = 0
        for height, width in ((48, 64), (96, 128)):
            encoder = av.CodecContext.create("libvpx", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = (
                width,
                height,
                "yuv420p",
                Fraction(1, 10),
            )
            frames = [av.VideoFrame.from_ndarray(picture(height, width), "rgb24").reformat(format="yuv420p")] * 3
            for frame in (*frames, None):
                if frame is not None:
                    frame.pts = pts
                    pts += 1
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
    with pytest.raises(openai.BadRequestError) as caught:
        chat(server, {"type": "video_url", "video_url": data_url(file.getvalue(), "video/webm")})
    assert caught.value.code == "invalid_media" and "all frames must have one size" in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_what_is_said_of_damaged_media_tells_nothing_of_the_inside(server, picture, data_url, form):
    whole = picture_of(form, picture(40, 50))
    for data in (whole[: len(whole) // 2], whole[:20] + bytes(40) + whole[60:]):
        try:
            chat(server, {"type": "image_url", "image_url": data_url(data)}, max_tokens=1)
        except openai.BadRequestError as error:
            assert not re.search(r"0x[0-9a-f]{6}|/tmp|segue-serve|Traceback", str(error))


@pytest.mark.parametrize("kind", ["image_embeds", "prompt_embeds", "input_audio", "tensor", "audio_url"])
def test_nobody_sends_tensors(server, kind):
    tensor = base64.b64encode(np.zeros(8, np.float32).tobytes()).decode()
    with pytest.raises(openai.BadRequestError, match="does not match any of the expected tags"):
        chat(server, {"type": kind, kind: tensor})


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [60, 80], "counts": [4800, 1]},
        {"size": [60, 80], "counts": [-1, 4801]},
        {"size": [2**31, 2**31], "counts": "0"},
        {"size": [60, 80], "counts": "o" * 10**6},
        {"size": [60, 80], "counts": {"a": 1}},
        {"size": [61, 80], "counts": [0, 4880]},
        {},
    ],
)
def test_masks_of_clients_are_checked_before_they_are_decoded(server, image_url, rle):
    parts = [{"type": "image_url", "image_url": image_url}, {"type": "region", "rle": rle}]
    with pytest.raises(openai.BadRequestError):
        chat(server, *parts, {"type": "text", "text": "What is region1?"})


@pytest.mark.parametrize(
    "text", ["<image>", "<img></img>", "<IMG_CONTEXT>" * 300, "<|im_end|>[SEG]", "<vp>region1</vp>", "\0"]
)
def test_marks_that_somebody_types_place_nothing_and_break_nothing(server, image_url, text):
    picture = {"type": "image_url", "image_url": image_url}
    plain = chat(server, picture, {"type": "text", "text": "x"}, max_tokens=1).usage.visual_tokens
    assert chat(server, picture, {"type": "text", "text": text}, max_tokens=1).usage.visual_tokens == plain
    assert chat(server, {"type": "text", "text": text}, max_tokens=1).usage.visual_tokens == 0


def test_frames_and_tiles_are_bounded_on_every_route(serve, served_engine, picture, png, clip, data_url):
    wide, moving = data_url(png(picture(60, 240))), data_url(png(clip(5)))
    limits = {"frames_shown": 2, "tiles": 1, "frames_with_probabilities": 4}
    with serve(served_engine, limits) as server, server.http() as http:
        tiled = {"max_tiles": 12}
        parts = [{"type": "image_url", "image_url": wide}, {"type": "text", "text": "One?"}]
        about = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 1}
        for path, body in (("chat/completions", about), ("segment", {"image": wide, "phrases": ["dog"]})):
            few, many = (http.post(f"/v1/{path}", json=body | more).json() for more in ({"max_tiles": 1}, tiled))
            assert few["usage"]["visual_tokens"] == many["usage"]["visual_tokens"]
        session = http.post("/v1/video/sessions", json={"video": moving}).json()["id"]
        http.post(f"/v1/video/sessions/{session}/phrases", json={"phrase": "dog"})
        moved = [{"type": "video_url", "video_url": moving}, {"type": "text", "text": "One?"}]
        asked = [{"type": "input_video", "video_url": moving}, {"type": "input_text", "text": "One?"}]
        for path, body in (
            ("chat/completions", about | {"messages": [{"role": "user", "content": moved}]}),
            ("responses", {"model": "tiny", "input": [{"role": "user", "content": asked}]}),
            ("segment", {"video": moving, "phrases": ["dog"]}),
            (f"video/sessions/{session}/follow", {}),
        ):
            for more in ({"frames": "uniform:3"}, {"frames": "0,1,2"}, {"probabilities": True}):
                found = http.post(f"/v1/{path}", json=body | more)
                assert (found.status_code, found.json()["error"]["code"]) == (400, "limit_exceeded"), (path, more)


def test_a_client_that_leaves_ends_the_following_of_a_video(serve, served_engine, png, clip, data_url):
    with serve(served_engine) as server, server.http() as http:
        scheduler, deliver, seen = server.context.scheduler, server.context.scheduler._deliver, []

        def counted(request, event):
            seen.append(isinstance(event, FrameMasks))
            deliver(request, event)

        scheduler._deliver = counted
        moving = data_url(png(np.concatenate([clip(10)] * 20)))
        path = f"/v1/video/sessions/{http.post('/v1/video/sessions', json={'video': moving}).json()['id']}"
        http.post(f"{path}/phrases", json={"phrase": "dog"})
        with http.stream("POST", f"{path}/follow", json={}) as response:
            lines = response.iter_lines()
            assert [json.loads(next(lines))["type"] for _ in range(2)] == ["found", "frame"]
        server.wait_idle()
        assert sum(seen) < 200
