"""Files that are uploaded once, masks in one request, and sessions about a video."""

import asyncio
import errno
import hashlib
import io
import json
import os
import time
from contextlib import ExitStack

import numpy as np
import openai
import pytest
from PIL import Image
from pycocotools import mask as coco

from segue.geometry.masks import iou
from segue.serve.decoder_child import uneven
from segue.serve.errors import ApiError
from segue.serve.settings import Limits
from segue.serve.storage import FileStore, named_id, new_id

KEYS = ("first-key-of-someone", "second-key-of-someone")


def dense(rle):
    return coco.decode({"size": rle["size"], "counts": rle["counts"].encode()}).astype(bool)


@pytest.fixture(scope="module")
def still(png, picture):
    return png(picture(60, 80))


@pytest.fixture(scope="module")
def moving(png, clip):
    return png(clip(5))


class TestFiles:
    def test_a_file_is_uploaded_once_and_spoken_of_by_its_id(self, server, still, image_url):
        client = server.client()
        file = client.files.create(file=("a.png", still), purpose="user_data")
        assert (file.filename, file.bytes, file.media["kind"]) == ("a.png", len(still), "image")
        assert file.expires_at > file.created_at

        def ask(part):
            content = [part, {"type": "text", "text": "Where?"}]
            return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])

        by_id, by_url = (
            ask(part).choices[0].message.regions
            for part in ({"type": "file", "file": {"file_id": file.id}}, {"type": "image_url", "image_url": image_url})
        )
        assert by_id == by_url
        assert file.id in [one.id for one in client.files.list()]
        client.files.delete(file.id)
        digest = hashlib.sha256(still).hexdigest()
        assert (digest, "image") not in server.context.media._kept, "its pixels go too"
        with pytest.raises(openai.NotFoundError, match="no such file"):
            client.files.retrieve(file.id)

    def test_frames_are_shown_as_they_are_decoded(self, server, moving, clip):
        with server.http() as http:
            file = http.post("/v1/files", files={"file": ("a.png", moving)}).json()
            assert file["media"] == {"kind": "video", "width": 80, "height": 60, "frames": 5, "fps": 10.0}
            found = http.get(f"/v1/files/{file['id']}/frames/3")
            shown = np.array(Image.open(io.BytesIO(found.content)), np.int16)
            assert found.headers["content-type"] == "image/jpeg"
            assert np.abs(shown - clip(5)[3]).mean() < 4
            assert http.get(f"/v1/files/{file['id']}/frames/5").status_code == 404

    def test_what_is_no_medium_is_refused_and_not_kept(self, server):
        before = sorted(path.name for path in server.context.files._folder.iterdir())
        with pytest.raises(openai.BadRequestError, match="no image or video"):
            server.client().files.create(file=("../../a.png", b"GIF99a nothing"), purpose="user_data")
        assert sorted(path.name for path in server.context.files._folder.iterdir()) == before

    def test_a_name_of_the_client_is_no_path(self, server, still):
        client, files = server.client(), server.context.files
        file = client.files.create(file=("../../etc/passwd", still), purpose="user_data")
        path = files.path(files.get("127.0.0.1", file.id))
        assert path.parent == files._folder and path.read_bytes() == still
        assert path.name == f"{hashlib.sha256(still).hexdigest()}-{file.id}"

    @pytest.mark.parametrize("name", ["../secret", "file-" + "x" * 300, "file-\0", "file-*"])
    def test_an_id_of_the_client_is_no_path(self, server, name):
        files = server.context.files
        secret = {"id": "x", "owner": "127.0.0.1", "digest": "x", "size": 1, "created": 0, "about": {}}
        (files._folder.parent / "secret.json").write_text(json.dumps(secret))
        with pytest.raises(ApiError, match="no such file"):
            files.get("127.0.0.1", name)

    def test_nobody_sees_files_or_sessions_of_others(self, serve, wordy, still, moving):
        with serve(wordy, keys=KEYS) as server:
            mine, theirs = (server.client(api_key=key) for key in KEYS)
            file = mine.files.create(file=("a.png", still), purpose="user_data")
            with pytest.raises(openai.NotFoundError):
                theirs.files.retrieve(file.id)
            assert theirs.files.list().data == []
            part = {"type": "file", "file": {"file_id": file.id}}
            with pytest.raises(openai.NotFoundError, match="no such file"):
                theirs.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [part]}])
            clip_file = mine.files.create(file=("b.png", moving), purpose="user_data")
            with server.http(headers={"authorization": f"Bearer {KEYS[0]}"}) as http:
                session = http.post("/v1/video/sessions", json={"video": {"file_id": clip_file.id}}).json()
                assert http.get(f"/v1/files/{session['id']}").status_code == 404
                assert http.get(f"/v1/video/sessions/{clip_file.id}").status_code == 404
            with server.http(headers={"authorization": f"Bearer {KEYS[1]}"}) as http:
                assert http.get(f"/v1/video/sessions/{session['id']}").status_code == 404

    def test_a_uuid_is_a_name_of_one_key_alone(self, serve, wordy, image_url):
        with serve(wordy, keys=KEYS) as server:
            mine, theirs = (server.client(api_key=key).chat.completions.create for key in KEYS)

            def ask(create, url):
                part = {"type": "image_url", "image_url": url, "uuid": "ours"}
                return create(model="tiny", messages=[{"role": "user", "content": [part]}], max_tokens=1)

            ask(mine, image_url)
            ask(mine, None)
            with pytest.raises(openai.NotFoundError, match="nothing is kept under this uuid"):
                ask(theirs, None)
            ask(theirs, image_url)
            ask(mine, None)

    def test_what_nobody_uses_is_forgotten_with_its_bytes(self, serve, wordy, still):
        with serve(wordy, {"kept_seconds": 0.0}) as server:
            file = server.client().files.create(file=("a.png", still), purpose="user_data")
            path = next(server.context.files._folder.glob(f"*-{file.id}"))
            with pytest.raises(openai.NotFoundError, match="expired"):
                server.client().files.retrieve(file.id)
            assert not path.exists() and not list(server.context.files._folder.iterdir())

    def test_what_nobody_asks_for_goes_when_there_is_something_new(self, serve, wordy, still):
        with serve(wordy) as server:
            create, folder = server.client().files.create, server.context.files._folder
            create(file=("a.png", still), purpose="user_data")
            for path in folder.iterdir():
                os.utime(path, (0, 0))
            file = create(file=("b.png", still), purpose="user_data")
            assert {path.name.removesuffix(".json")[-len(file.id) :] for path in folder.iterdir()} == {file.id}

    def test_storage_has_an_end(self, serve, wordy, still):
        with serve(wordy, {"stored_bytes": len(still) + 10}) as server:
            create = server.client().files.create
            create(file=("a.png", still), purpose="user_data")
            with pytest.raises(openai.APIStatusError, match="no room for more files"):
                create(file=("b.png", still + b" "), purpose="user_data")

    def test_uploads_that_come_at_once_do_not_fill_more_than_there_is(self, tmp_path):
        store = FileStore(tmp_path, Limits(stored_bytes=100))

        class Upload:
            def __init__(self):
                self.left = [b"x" * 40, b"x" * 40]

            async def read(self, _):
                await asyncio.sleep(0)
                return self.left.pop() if self.left else b""

        async def send():
            with store.sending() as path:
                sent = await store.write(Upload(), path)
                store.keep(sent, "a", {}, id=new_id("file"))

        async def run():
            return await asyncio.gather(send(), send(), return_exceptions=True)

        assert [type(one) for one in asyncio.run(run())].count(ApiError) >= 1
        assert sum(path.stat().st_size for path in tmp_path.glob("*-file-*")) <= 100

    def test_a_picture_that_another_takes_the_name_of_is_not_kept(self, tmp_path):
        store, name = FileStore(tmp_path, Limits()), named_id("a", "camera")
        for data in (b"first", b"second", b"second"):
            with store.sending() as path:
                kept = store.keep(store.put(data, path), "a", {}, id=name)
        assert sorted(tmp_path.iterdir()) == sorted([store.path(kept), tmp_path / f"{name}.json"])
        assert store.path(kept).read_bytes() == b"second"

    def test_a_full_disk_is_no_mistake_of_the_client_or_ours(self, server, still, moving, monkeypatch):
        clip = server.client().files.create(file=("b.png", moving), purpose="user_data").id

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(server.context.files, "_write", full)
        monkeypatch.setattr("segue.output.export.OverlayWriter.write", full)
        with pytest.raises(openai.APIStatusError, match="the disk is full") as caught:
            server.client().files.create(file=("a.png", still), purpose="user_data")
        assert (caught.value.status_code, caught.value.code) == (507, "storage_full")
        with server.http() as http:
            found = http.post(f"/v1/files/{clip}/overlay", json={"regions": []})
        assert (found.status_code, found.json()["error"]["code"]) == (507, "storage_full")
        assert "mp4" not in found.text, "no path of the server is told"


def test_files_are_listed_in_part_where_asked_for(serve, wordy_once, still):
    with serve(wordy_once) as server, server.http() as http:
        for number in range(3):
            http.post("/v1/files", files={"file": (f"{number}.png", still)})

        def listed(**query):
            found = http.get("/v1/files", params=query).json()
            return [one["id"] for one in found["data"]], found["has_more"]

        every = listed()[0]
        assert len(every) == 3 and listed(purpose="user_data") == (every, False)
        assert listed(limit=2) == (every[:2], True) and listed(limit=2, after=every[1]) == (every[2:], False)
        assert listed(purpose="batch") == ([], False)
        assert http.get("/v1/files", params={"limit": 0}).status_code == 400
        assert http.get("/v1/files", params={"after": "file-1"}).status_code == 404


class TestSegment:
    def test_masks_are_those_of_the_engine(self, server, served_engine, picture, image_url):
        with server.http() as http:
            found = http.post("/v1/segment", json={"image": image_url, "phrases": ["dog", "cat"]}).json()
        answer = served_engine.segment(picture(60, 80), ["dog", "cat"])
        assert [region["phrase"] for region in found["regions"]] == ["dog", "cat"]
        for region, expected in zip(found["regions"], answer.regions, strict=True):
            assert np.array_equal(dense(region["rle"]), expected.masks.dense())
        assert (found["not_found"], found["media"]["kind"], found["regions_version"]) == ([], "image", 1)

    def test_a_picture_is_read_once_for_questions_under_the_same_key(self, serve, served_engine, image_url):
        def found(phrases, **key):
            answer = http.post("/v1/segment", json={"image": image_url, "phrases": phrases} | key).json()
            return answer["regions"][0]["rle"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        with serve(served_engine) as server, server.http() as http:
            expected, none = found(["cat"])
            first, again = (found([phrase], prompt_cache_key="a picture") for phrase in ("dog", "cat"))
        assert none == first[1] == 0 and again[1] > 64
        assert iou(dense(again[0]), dense(expected)) > 0.99

    @pytest.mark.parametrize("kind", ["image", "video"])
    def test_polygons_come_on_request_and_say_how_far_they_are_from_the_mask(self, server, image_url, video_url, kind):
        url = image_url if kind == "image" else video_url
        with server.http() as http:
            body = {kind: url, "phrases": ["dog"]}
            plain, found = (http.post("/v1/segment", json=body | {"polygons": on}).json() for on in (False, True))
        region, told = plain["regions"][0], found["regions"][0]
        if kind == "video":
            region, told = region["frames"][2], told["frames"][2]
        assert "polygons" not in region and told["rle"] == region["rle"]
        mask = dense(told["rle"])
        drawn = coco.decode(coco.merge(coco.frPyObjects(told["polygons"], *mask.shape))).astype(bool)
        assert (drawn ^ mask).sum() / mask.sum() == pytest.approx(told["polygon_error"], abs=0.01)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"phrases": []}, "phrases"),
            ({"phrases": ["a"] * 17}, "17 phrases; at most 16"),
            ({"image": None}, "expected an image or a video"),
            ({"image": {"file_id": "file-1"}}, "no such file"),
            ({"threshold": 1}, "threshold"),
            ({"model": "other"}, "no model"),
        ],
    )
    def test_a_bad_request_says_what_is_wrong(self, server, image_url, change, text):
        with server.http() as http:
            found = http.post("/v1/segment", json={"image": image_url, "phrases": ["dog"]} | change)
        assert found.status_code in (400, 404) and text in found.json()["error"]["message"]

    def test_a_model_without_a_grounder_says_so(self, serve, wordy, image_url):
        with serve(wordy) as server, server.http() as http:
            found = http.post("/v1/segment", json={"image": image_url, "phrases": ["dog"]})
        assert found.status_code == 400 and "no grounder" in found.json()["error"]["message"]


class TestSessions:
    @pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
    def test_a_video_is_followed_frame_by_frame(self, server, video_url, accept):
        with server.http() as http:
            started = http.post("/v1/video/sessions", json={"video": video_url})
            path = f"/v1/video/sessions/{started.json()['id']}"
            assert started.status_code == 201 and started.json()["media"]["frames"] == 5
            assert "no phrase" in http.post(f"{path}/follow", json={}).json()["error"]["message"]
            for phrase in ("dog", "cat"):
                session = http.post(f"{path}/phrases", json={"phrase": phrase}).json()
            assert session["phrases"] == http.get(path).json()["phrases"] == ["dog", "cat"]
            told = http.post(f"{path}/follow", json={}, headers={"accept": accept})
            again = http.post(f"{path}/follow", json={}).text.split("\n")[-2]
            whole = http.post("/v1/segment", json={"video": video_url, "phrases": ["dog", "cat"]}).json()
            assert http.delete(path).json()["deleted"] and http.get(path).status_code == 404
        assert told.headers["content-type"].startswith(accept)
        assert json.loads(again)["usage"]["prompt_tokens_details"]["cached_tokens"] > 128, "the clip is not read again"
        lines = [line.removeprefix("data: ") for line in told.text.split("\n") if line]
        found, *frames, done = [json.loads(line) for line in lines if line != "[DONE]"]
        assert [region["phrase"] for region in found["regions"]] == ["dog", "cat"]
        assert [frame["index"] for frame in frames] == list(range(5))
        for number, region in enumerate(whole["regions"]):
            assert [frame["regions"][number]["rle"] for frame in frames] == [one["rle"] for one in region["frames"]]
            assert done["regions"][number]["score"] == region["score"]
        assert (done["type"], done["not_found"]) == ("done", []) and "frames" not in done["regions"][0]

    def test_frames_have_their_own_times(self, server, clip, data_url):
        first, *more = (Image.fromarray(one) for one in clip(5))
        file = io.BytesIO()
        first.save(file, "PNG", save_all=True, append_images=more, duration=[10, 490, 1000, 20, 10])
        with server.http() as http:
            body = {"video": data_url(file.getvalue())}
            path = f"/v1/video/sessions/{http.post('/v1/video/sessions', json=body).json()['id']}"
            http.post(f"{path}/phrases", json={"phrase": "dog"})
            lines = http.post(f"{path}/follow", json={}).text.splitlines()
            [region] = http.post("/v1/segment", json=body | {"phrases": ["dog"]}).json()["regions"]
        assert [one["seconds"] for one in region["frames"]] == [0, 0.01, 0.5, 1.5, 1.52]
        assert [json.loads(line)["seconds"] for line in lines[1:-1]] == [0, 0.01, 0.5, 1.5, 1.52]

    @pytest.mark.parametrize(
        ("seconds", "fps", "told"),
        [
            ([round(number / 30, 3) for number in range(300)], 299 / 9.967, False),
            ([0.0, 0.1, 0.2], 10.0, False),
            ([float("nan")] * 2, None, False),
            ([0.0, 0.1, 0.3], 20 / 3, True),
            ([0.0, 0.1, 0.2], None, True),
        ],
        ids=["milliseconds", "even", "no clock", "uneven", "no rate"],
    )
    def test_times_are_told_where_the_rate_does_not_tell_them(self, seconds, fps, told):
        assert uneven(seconds, fps) == (seconds if told else None)

    def test_probabilities_come_at_the_end_where_asked_for(self, server, video_url):
        with server.http() as http:
            path = f"/v1/video/sessions/{http.post('/v1/video/sessions', json={'video': video_url}).json()['id']}"
            http.post(f"{path}/phrases", json={"phrase": "dog"})
            lines = http.post(f"{path}/follow", json={"probabilities": True}).text.splitlines()
        *_, last, done = [json.loads(line) for line in lines]
        assert all(frame["probabilities"] for frame in done["regions"][0]["frames"])
        assert done["regions"][0]["frames"][-1]["rle"] == last["regions"][0]["rle"]

    def test_a_client_s_longest_unused_session_makes_room_and_no_other_client_s(self, serve, wordy, video_url):
        def start(http):
            return http.post("/v1/video/sessions", json={"video": video_url})

        with serve(wordy, {"sessions": 2}, keys=("one" * 8, "two" * 8)) as server, ExitStack() as stack:
            mine, others = (
                stack.enter_context(server.http(headers={"authorization": f"Bearer {key}"}))
                for key in ("one" * 8, "two" * 8)
            )
            theirs = start(others).json()["id"]
            used, unused = start(mine).json()["id"], start(mine).json()["id"]
            files = server.context.files
            for number, name in enumerate([theirs, unused, used]):
                os.utime(files._record(name), times=(2e9 + number,) * 2)
            assert start(mine).status_code == 201
            status = {name: mine.get(f"/v1/video/sessions/{name}").status_code for name in (used, unused)}
            assert status == {used: 200, unused: 404}
            assert others.get(f"/v1/video/sessions/{theirs}").status_code == 200

    def test_sessions_that_are_followed_do_not_make_room(self, serve, served_engine, video_url):
        with serve(served_engine, {"sessions": 1}) as server, server.http() as http:
            path = f"/v1/video/sessions/{http.post('/v1/video/sessions', json={'video': video_url}).json()['id']}"
            http.post(f"{path}/phrases", json={"phrase": "dog"})
            [session] = server.context.files.all("video")
            held = server.context.files.hold(session)
            refused = http.post("/v1/video/sessions", json={"video": video_url})
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_sessions")
            held.unlink()
            assert http.post(f"{path}/follow", json={}).status_code == 200
            while server.context.files.is_held(session):
                time.sleep(0.02)  # the mark goes after the answer
            assert http.post("/v1/video/sessions", json={"video": video_url}).status_code == 201

    def test_too_many_phrases_are_refused(self, serve, wordy, video_url):
        with serve(wordy, {"phrases": 1}) as server, server.http() as http:
            first = http.post("/v1/video/sessions", json={"video": video_url}).json()
            path = f"/v1/video/sessions/{first['id']}/phrases"
            assert [http.post(path, json={"phrase": "a"}).status_code for _ in range(2)] == [200, 400]
