"""Video files: probing, frames by number, damage."""

import gc
from pathlib import Path

import av
import numpy as np
import pytest

from segue.errors import ConfigError, LimitError, MediaError
from segue.media import Limits, iter_frames, open_media, read_frames, read_image

FORMATS = {
    "mp4_with_b_frames": {"name": "clip.mp4"},
    "fragmented_mp4": {"name": "clip.mp4", "container": {"movflags": "frag_keyframe+empty_moov"}},
    "mp4_with_open_groups": {"name": "clip.mp4", "open_gop": 1, "gop": 11},
    "one_long_group": {"name": "clip.mp4", "gop": 100},
    "mov": {"name": "clip.mov"},
    "mkv": {"name": "clip.mkv"},
    "streamed_mkv_without_index": {"name": "clip.mkv", "container": {"live": "1"}},
    "webm": {"name": "clip.webm", "codec": "libvpx-vp9"},
    "avi_with_b_frames": {"name": "clip.avi", "codec": "mpeg4"},
    "avi_with_reordered_h264": {"name": "clip.avi"},
    "motion_jpeg": {"name": "clip.avi", "codec": "mjpeg"},
}
E = 1 << 16
TURNS = {  # display matrix, and how its pixels are shown
    "upright": ((E, 0, 0, 0, E, 0, 0, 0, 1 << 30), lambda pixels: pixels),
    "quarter_turn_left": ((0, -E, 0, E, 0, 0, 0, 0, 1 << 30), lambda pixels: np.rot90(pixels, 1)),
    "half_turn": ((-E, 0, 0, 0, -E, 0, 0, 0, 1 << 30), lambda pixels: np.rot90(pixels, 2)),
    "quarter_turn_right": ((0, E, 0, -E, 0, 0, 0, 0, 1 << 30), lambda pixels: np.rot90(pixels, 3)),
    "mirrored": ((-E, 0, 0, 0, E, 0, 0, 0, 1 << 30), lambda pixels: pixels[:, ::-1]),
    "upside_down_mirrored": ((E, 0, 0, 0, -E, 0, 0, 0, 1 << 30), lambda pixels: pixels[::-1]),
    "transposed": ((0, E, 0, E, 0, 0, 0, 0, 1 << 30), lambda pixels: pixels.swapaxes(0, 1)),
}


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_every_container_gives_every_frame_by_its_number(form, make_clip, number_in):
    media = open_media(make_clip(**form))
    assert (media.kind, media.size, media.count) == ("video", (48, 64), 40)
    assert media.fps == pytest.approx(10)
    streamed = [(index, number_in(pixels), seconds) for index, seconds, pixels in iter_frames(media)]
    assert [shot[:2] for shot in streamed] == [(number, number) for number in range(40)]
    assert [seconds for *_, seconds in streamed] == pytest.approx(np.arange(40) / 10)
    asked = [39, 0, 17, 17, 38, 19, 20, 21]
    frames = read_frames(media, asked)
    assert [number_in(pixels) for pixels in frames.pixels] == asked
    assert frames.index.tolist() == asked
    assert frames.seconds == pytest.approx(np.array(asked) / 10)


def test_encoded_bytes_are_the_same_video_as_their_file(make_clip):
    path = make_clip()
    from_file, from_bytes = open_media(path), open_media(path.read_bytes())
    assert (from_bytes.size, from_bytes.count, from_bytes.fps) == (from_file.size, from_file.count, from_file.fps)
    np.testing.assert_array_equal(read_frames(from_bytes, [3]).pixels, read_frames(from_file, [3]).pixels)


def test_of_several_videos_in_a_file_the_first_is_taken_and_said(make_clip, tmp_path, number_in):
    with av.open(str(make_clip(count=3))) as source, av.open(str(tmp_path / "two.mkv"), "w") as file:
        streams = [file.add_stream_from_template(source.streams.video[0]) for _ in range(2)]
        for packet in source.demux(video=0):
            for stream in streams if packet.dts is not None else ():
                packet.stream = stream
                file.mux(packet)
    media = open_media(tmp_path / "two.mkv")
    assert (media.count, media.notes) == (3, ("the first of 2 video streams",))
    assert [number_in(pixels) for _, _, pixels in iter_frames(media)] == [0, 1, 2]


def test_a_variable_frame_rate_keeps_its_frames_and_their_times(make_clip, number_in):
    ticks = [0, 10, 20, 100, 110, 300, 310, 320, 330, 500]
    media = open_media(make_clip("clip.mkv", count=10, ticks=ticks))
    frames = read_frames(media, [9, 5, 3])
    assert [number_in(pixels) for pixels in frames.pixels] == [9, 5, 3]
    assert frames.seconds.tolist() == pytest.approx([0.5, 0.3, 0.1])
    assert media.fps == pytest.approx(9 / 0.5)


@pytest.mark.parametrize(("matrix", "shown"), TURNS.values(), ids=TURNS)
def test_rotation_metadata_is_applied_to_size_and_pixels(matrix, shown, make_clip, picture):
    media = open_media(make_clip(count=2, matrix=matrix))
    expected = shown(picture(1))
    assert media.size == expected.shape[:2]
    pixels = read_frames(media, [1]).pixels[0]
    assert np.abs(pixels.astype(int) - expected).mean() < 6


def test_frames_before_the_first_key_frame_do_not_count(make_clip, tmp_path, number_in):
    with av.open(str(make_clip(open_gop=1, gop=11))) as whole, av.open(str(tmp_path / "cut.mkv"), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        packets = [packet for packet in whole.demux(video=0) if packet.dts is not None]
        second_key = [position for position, packet in enumerate(packets) if packet.is_keyframe][1]
        leading = [packet for packet in packets[second_key:] if packet.pts < packets[second_key].pts]
        for packet in packets[second_key:]:
            packet.stream = stream
            cut.mux(packet)
    assert leading, "the clip must have frames that need the group cut away"
    media = open_media(tmp_path / "cut.mkv")
    numbers = [number_in(pixels) for _, _, pixels in iter_frames(media)]
    assert media.count == len(numbers) == 40 - second_key - len(leading)
    assert numbers == list(range(numbers[0], 40))
    assert number_in(read_frames(media, [media.count - 1]).pixels[0]) == 39


def test_hidden_vp8_pictures_do_not_count(make_clip):
    path = make_clip("clip.webm", codec="libvpx", count=30, gop=100)
    with av.open(str(path)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0) if packet.size][20]
    content = bytearray(path.read_bytes())
    content[content.index(packet)] &= ~0x10  # the flag "show this frame"
    media = open_media(bytes(content))
    assert media.count == len(list(iter_frames(media))) == 29


CONTAINERS = {
    "mp4": {"name": "clip.mp4"},
    "faststart_mp4": {"name": "clip.mp4", "container": {"movflags": "+faststart"}},
    "mkv": {"name": "clip.mkv"},
    "webm": {"name": "clip.webm", "codec": "libvpx-vp9"},
    "avi": {"name": "clip.avi", "codec": "mjpeg"},
    "fragmented_mp4": {"name": "clip.mp4", "container": {"movflags": "frag_keyframe+empty_moov+skip_trailer"}},
}


@pytest.mark.parametrize("form", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("keep", [slice(20), slice(-1), slice(-500)], ids=["head", "all_but_1_byte", "all_but_500"])
def test_a_truncated_video_is_refused_when_opened(form, keep, make_clip):
    path = make_clip(**form)
    path.write_bytes(path.read_bytes()[keep])
    with pytest.raises(MediaError, match="cut off|damaged"):
        open_media(path)


def test_damage_in_the_middle_stops_a_stream_there_and_leaves_other_groups_readable(make_clip, number_in):
    path = make_clip(count=80, container={"movflags": "+faststart"})
    with av.open(str(path)) as container:
        hurt = next(
            packet for packet in container.demux(video=0) if packet.is_keyframe and packet.pts and packet.pts > 0
        )
        content = bytearray(path.read_bytes())
        content[hurt.pos + 8 : hurt.pos + hurt.size] = bytes(hurt.size - 8)
    path.write_bytes(content)
    media = open_media(path)
    assert [number_in(pixels) for pixels in read_frames(media, [79, 70, 2]).pixels] == [79, 70, 2]
    with pytest.raises(MediaError, match=r"damaged (near|at) frame \d+ of 80"):
        list(iter_frames(media))
    with pytest.raises(MediaError, match="of 80"):
        read_frames(media, [12])


def test_a_video_that_shrank_after_opening_says_where_it_breaks_off(make_clip):
    path = make_clip(count=40)
    media = open_media(path)
    make_clip(count=25)
    with pytest.raises(MediaError, match="breaks off after 25 of 40 frames"):
        list(iter_frames(media))


@pytest.mark.parametrize(
    ("start", "stop", "step", "expected"),
    [
        (0, None, 1, list(range(40))),
        (5, None, 30, [5, 35]),
        (3, 9, 2, [3, 5, 7]),
        (38, 100, 1, [38, 39]),
        (40, None, 1, []),
        (7, 7, 1, []),
    ],
)
def test_streaming_walks_a_range_cut_to_the_video(start, stop, step, expected, make_clip, number_in):
    shots = list(iter_frames(open_media(make_clip()), start, stop=stop, step=step))
    assert [index for index, _, _ in shots] == [number_in(pixels) for _, _, pixels in shots] == expected


@pytest.mark.parametrize(("start", "step"), [(-1, 1), (0, 0), (0, -1)])
def test_streaming_backwards_is_refused_at_once(start, step, make_clip):
    with pytest.raises(ConfigError, match="start >= 0 and step >= 1"):
        iter_frames(open_media(make_clip(count=2)), start, step=step)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_frame_number_out_of_range_is_an_error(index, make_clip):
    with pytest.raises(MediaError, match=f"no frame {index}; it has frames 0 to 2"):
        read_frames(open_media(make_clip(count=3)), [0, index])


def test_no_frames_asked_gives_none(make_clip):
    frames = read_frames(open_media(make_clip(count=2)), [])
    assert (frames.pixels.shape, frames.index.shape, frames.seconds.shape) == ((0, 48, 64, 3), (0,), (0,))


def test_a_video_of_one_frame_is_a_video(make_clip):
    media = open_media(make_clip(count=1))
    assert (media.kind, media.count, len(list(iter_frames(media)))) == ("video", 1, 1)
    with pytest.raises(MediaError, match="where an image was expected"):
        read_image(media)


@pytest.mark.parametrize("limits", [Limits(pixels=48 * 64 - 1), Limits(frames=9), Limits(file_bytes=100)])
def test_a_video_above_a_limit_is_refused_when_opened(limits, make_clip):
    with pytest.raises(LimitError, match="Limits"):
        open_media(make_clip(count=10), limits)


def test_a_video_at_its_limits_is_opened(make_clip):
    path = make_clip(count=10)
    limits = Limits(pixels=48 * 64, frames=10, file_bytes=path.stat().st_size)
    assert open_media(path, limits).count == 10


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="no video in it"):
        open_media(tmp_path / "sound.mp4")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files through /proc")
def test_a_stream_left_halfway_closes_its_file_without_the_garbage_collector(make_clip):
    media = open_media(make_clip())
    gc.disable()
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        shots = iter_frames(media, 30)
        next(shots)
        del shots
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        gc.enable()


def test_decoded_frames_are_freed_without_the_garbage_collector(make_clip):
    media = open_media(make_clip())
    gc.collect()
    gc.disable()
    try:
        assert sum(1 for _ in iter_frames(media)) == 40
        read_frames(media, [0, 39])
        frames = [item for item in gc.get_objects() if type(item).__name__ in ("VideoFrame", "VideoCodecContext")]
    finally:
        gc.enable()
    assert not frames
