import av
import layouts
import numpy as np
import pytest
from layouts import answers, box_mask, questions

from segue.data.base import rng_for
from segue.data.ref_sav import load
from segue.errors import ConfigError, DataError


def write_video(path, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def root(tmp_path):
    home = tmp_path / "video_datas"
    write_video(home / "sam_v_full/sav_train/sav_000/sav_000002.mp4", 30)
    masklet = [[layouts.rle(box_mask(number, 5, 10, 10 + n, (48, 64))) for n in range(2)] for number in range(8)]
    layouts.write_json(home / "sam_v_full/sav_train/sav_000/sav_000002_manual.json", {"masklet": masklet})
    record = {
        "video_path": "sav_000/sav_train/sav_000/sav_000002.mp4",
        "anno_path": "sav_000/sav_train/sav_000/sav_000002_manual.json",
        "objects": {str(n): {"formated": f"The object is box {n}.", "short_caps": ["A box"]} for n in (1, 0)},
    }
    layouts.write_json(home / "Ref-SAV.json", {"sav_000002": record, "empty": {**record, "objects": {}}})
    return tmp_path


def test_only_every_fourth_frame_is_annotated_and_a_folder_named_twice_is_dropped(root):
    dataset = load(root, "train", frames=None, expressions=None)
    assert len(dataset) == 1
    sample = dataset.get(0, rng_for(0, 0, 0))
    assert sample.frames == (0, 4, 8, 12, 16, 20, 24, 28)
    assert [int(region.masks.dense(0).sum()) for region in sample.regions] == [110, 100]
    assert sample.regions[0].masks.dense(3)[5, 3]
    assert not sample.regions[0].masks.dense(3)[5, 2]
    assert all("The object is box" in question for question in questions(sample))


def test_five_frames_and_five_expressions_are_drawn(root):
    sample = load(root, "train").get(0, rng_for(0, 0, 0))
    assert len(sample.frames) == 5
    assert len(answers(sample)) == 5
    assert sample.id == sample.group == "sav_000002"


def test_a_video_whose_masks_do_not_match_is_a_bad_sample(root):
    write_video(root / "video_datas/sam_v_full/sav_train/sav_000/sav_000002.mp4", 40)
    with pytest.raises(DataError, match="masks for 8 frames, but 40 frames of video, of which every 4th, 10"):
        load(root, "train").get(0, rng_for(0, 0, 0))


def test_the_other_split_lies_elsewhere(root):
    with pytest.raises(ConfigError, match="ref_vos, variant ref_sav"):
        load(root, "valid")
