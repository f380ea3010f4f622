import os
from pathlib import Path

import pytest
from pictures import make_frames, make_image

from segue.errors import DataError, MediaError
from segue.files import PART
from segue.jobs import inputs


def names(found: list[Path]) -> list[str]:
    return [path.name for path in found]


@pytest.fixture
def album(tmp_path) -> Path:
    """A folder with photos, a clip (its content does not matter here), a frame folder and things to leave out."""
    folder = tmp_path / "album"
    for name in ("b.jpg", "a10.PNG", "a2.png", ".hidden.jpg", "deeper/x.jpg"):
        make_image(folder / name)
    make_frames(folder / "walk")
    (folder / "clip.mp4").write_bytes(b"")
    (folder / "notes.md").write_text("no picture")
    return folder


def test_a_folder_gives_its_images_videos_and_frame_folders_with_numbers_counted(album):
    assert names(inputs.find(str(album))) == ["a2.png", "a10.PNG", "b.jpg", "clip.mp4", "walk"]


def test_digits_of_other_scripts_are_letters_of_a_name(tmp_path):
    for name in ("IMG_2\uff10.png", "\uff11.png", "IMG_10.png", "IMG_9.png"):
        make_image(tmp_path / name)
    assert names(inputs.find(str(tmp_path))) == ["IMG_2\uff10.png", "IMG_9.png", "IMG_10.png", "\uff11.png"]


def test_a_pattern_gives_its_matches_that_can_be_media(album):
    assert names(inputs.find(str(album / "*"))) == ["a2.png", "a10.PNG", "b.jpg", "clip.mp4", "walk"]
    assert names(inputs.find(str(album / "**" / "*.jpg"))) == ["b.jpg", "x.jpg"]


def test_a_file_is_taken_whatever_its_name(album):
    assert names(inputs.find(str(album / "notes.md"))) == ["notes.md"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    path = make_image(tmp_path / "cat[1].png")
    assert inputs.find(str(path)) == [path.resolve()]


def test_a_list_counts_from_its_own_folder_and_skips_comments_and_repeats(album):
    listing = album.parent / "list.txt"
    listing.write_text(f"# photos\n\nalbum/b.jpg\n  album/./b.jpg  \n{album}/a2.png\nalbum/gone.jpg\nalbum/walk\n")
    assert names(inputs.find(str(listing))) == ["b.jpg", "a2.png", "gone.jpg", "walk"]


def test_a_symbolic_link_keeps_the_name_it_is_known_by(tmp_path):
    make_image(tmp_path / "blobs" / "0f3a.png")
    (tmp_path / "dog.png").symlink_to(tmp_path / "blobs" / "0f3a.png")
    assert names(inputs.find(str(tmp_path / "dog.png"))) == ["dog.png"]


@pytest.mark.parametrize(
    ("stems", "expected"),
    [
        (("00000", "00001", "00002"), True),
        (("00000", "00005", "00010"), True),
        (("00003", "00004", "00005"), True),
        (("7", "8", "9"), True),
        (("8", "9", "10"), False),
        (("000000000139", "000000000285", "000000000632"), False),
        (("1984", "2001"), False),
        (("00000",), False),
        (("00000", "00001", "00002", "cover"), False),
        (("IMG_0001", "IMG_0002", "IMG_0003"), False),
        ((), False),
    ],
)
def test_evenly_numbered_names_of_one_width_are_frames(tmp_path, stems, expected):
    for stem in stems:
        make_image(tmp_path / f"{stem}.jpg")
    assert inputs.is_frame_folder(tmp_path) is expected


def test_the_user_decides_what_a_folder_is_where_names_do_not(tmp_path):
    frames = make_frames(tmp_path / "frames")
    odd = tmp_path / "odd"
    for name in ("shot_8.png", "shot_9.png"):
        make_image(odd / name)
    assert names(inputs.find(str(frames))) == ["frames"]
    assert names(inputs.find(str(frames), folder_kind="images")) == ["00000.png", "00001.png", "00002.png"]
    assert names(inputs.find(str(odd))) == ["shot_8.png", "shot_9.png"]
    assert names(inputs.find(str(odd), folder_kind="video")) == ["odd"]


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ("gone.jpg", MediaError, "gone.jpg does not exist"),
        ("*.jpg", MediaError, "matches no image"),
        ("empty", MediaError, "holds no image"),
        ("empty.txt", MediaError, "lists no image"),
        ("latin.txt", DataError, "nor of another encoding that is known"),
        ("x" * 300, MediaError, "cannot read"),
    ],
)
def test_nothing_found_says_what_was_looked_for(tmp_path, monkeypatch, given, error, text):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "latin.txt").write_bytes(b"\x81\x8d\x90\xff.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        inputs.find(given)


def test_touching_a_file_changes_its_stamp_and_not_its_hash(tmp_path):
    frames = make_frames(tmp_path / "frames")
    for source in (frames, frames / "00001.png"):
        stamp, content = inputs.stamp(source), inputs.content_hash(source)
        times = frames.joinpath("00001.png").stat()
        os.utime(frames / "00001.png", ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000_000))
        assert inputs.stamp(source) != stamp
        assert inputs.content_hash(source) == content


def test_a_frame_more_or_another_name_changes_a_folders_hash(tmp_path):
    frames = make_frames(tmp_path / "frames")
    hashes = {inputs.content_hash(frames)}
    (frames / "00002.png").rename(frames / "00007.png")
    hashes.add(inputs.content_hash(frames))
    make_image(frames / "00009.png")
    hashes.add(inputs.content_hash(frames))
    assert len(hashes) == 3


def folders(*sources: str, known: dict[str, str] | None = None, taken: tuple[str, ...] = ()) -> list[str]:
    paths = [Path(source) for source in sources]
    return list(inputs.folder_names(paths, known=known or {}, taken=taken).values())


def test_a_result_is_named_after_its_source():
    assert folders("/photos/dog.jpg", "/photos/cat.jpg", "/photos/.odd.jpg") == ["dog", "cat", "odd"]


@pytest.mark.parametrize("other", ["/photos/dog.png", "/more/dog.jpg", "/photos/DOG.jpg"])
def test_sources_of_one_name_each_get_a_lasting_one(other):
    first, second = folders("/photos/dog.jpg", other)
    assert len({first, second, "dog"}) == 3 and first.startswith("dog-")
    assert folders(other, "/photos/dog.jpg") == [second, first]


def test_a_long_name_is_cut_to_fit_a_file_name():
    (name,) = folders(f"/photos/{'x' * 250}.jpg")
    assert name.startswith("x" * 60 + "-") and len(name) == 69


def test_a_source_keeps_the_folder_it_has_and_others_stay_out_of_it():
    known = {"/photos/dog.jpg": "dog"}
    assert folders("/photos/dog.jpg", known=known) == ["dog"]
    assert folders("/more/dog.jpg", known=known)[0].startswith("dog-")
    assert folders("/more/manifest.jsonl.png", taken=("manifest.jsonl",))[0].startswith("manifest.jsonl-")


@pytest.mark.parametrize("letter", ["x", "\u5b57", "\U0001f600", "\udcff"])
@pytest.mark.parametrize("length", [30, 60, 61])
def test_a_folder_that_is_being_written_has_a_name_that_fits_in_whatever_script(letter, length):
    source, other = Path(f"/photos/{letter * length}.jpg"), Path(f"/more/{letter * length}.jpg")
    asked, first = [letter * 80], letter * length
    names = [
        *inputs.folder_names([source], known={}, taken={first}, asked=asked).values(),
        *inputs.folder_names([source, other], known={}, asked=asked).values(),
    ]
    assert names[1] != names[2]
    assert all(len(os.fsencode(PART + name)) <= 255 for name in names)


def test_a_name_that_begins_like_somebodys_home_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_image(tmp_path / "~tmp.png")
    (tmp_path / "list.txt").write_text("~tmp.png\n")
    assert inputs.find("~tmp.png") == inputs.find("list.txt") == [tmp_path.resolve() / "~tmp.png"]
