"""Pictures of more than 8 bits: the range that is used is found, applied everywhere and said."""

import io

import numpy as np
import pytest
from PIL import Image

from segue.errors import MediaError
from segue.media import open_media, read_frames, read_image
from segue.media.deep import Window

RAMP = np.linspace(0, 3810, 64).astype(np.uint16).reshape(8, 8)


def saved(values, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    return file.getvalue()


def colours_of_16_bits(values, form="png"):
    """Pillow writes none, FFmpeg does."""
    from fractions import Fraction

    import av

    context = av.CodecContext.create(form, "w")
    context.width, context.height, context.time_base = values.shape[1], values.shape[0], Fraction(1, 25)
    context.pix_fmt = "rgb48be" if form == "png" else "rgb48le"
    frame = av.VideoFrame.from_ndarray(values, format="rgb48le").reformat(format=context.pix_fmt)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_twelve_bits_in_sixteen_use_all_of_eight(form):
    media = open_media(saved(RAMP, form))
    assert media.window == (0, 3810) and media.notes == ("windowed 0 to 3,810",)
    pixels = read_image(media)
    assert (pixels.min(), pixels.max()) == (0, 255)
    np.testing.assert_allclose(pixels[..., 0], RAMP / 3810 * 255, atol=0.51)


def test_a_picture_that_uses_its_sixteen_bits_is_shown_as_it_is():
    media = open_media(saved((RAMP.astype(np.uint32) * 17).astype(np.uint16)))
    assert (media.window, media.notes) == (None, ())
    np.testing.assert_allclose(read_image(media)[..., 0], RAMP * 17 / 257, atol=0.51)


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_colours_of_twelve_bits_are_windowed_too(form):
    values = np.stack([RAMP, RAMP // 2, RAMP * 0], axis=2)
    media = open_media(colours_of_16_bits(values, form))
    assert media.window == (0, 3810)
    np.testing.assert_allclose(read_image(media), values / 3810 * 255, atol=0.51)


def test_a_video_of_sixteen_bits_says_what_becomes_of_them(tmp_path):
    import av

    with av.open(str(tmp_path / "deep.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = RAMP.shape[1], RAMP.shape[0], "gray16le"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(RAMP, format="gray16le")))
        file.mux(stream.encode())
    (depth, window) = open_media(tmp_path / "deep.mkv", window=(0, 4095)).notes
    assert depth.startswith("its 16 bits are brought to 8 over their whole range")
    assert window == "the window is not used, for it is a video"


CASES: dict[str, tuple[np.ndarray, Window]] = {
    "hounsfield units": (RAMP.astype(np.int32) - 1024, (-1024, 2786)),
    "floating point": (RAMP.astype(np.float32) / 3810, (0, 1)),
    "an offset": (RAMP // 100 + np.uint16(32000), (32000, 32038)),
}


@pytest.mark.parametrize(("values", "window"), CASES.values(), ids=CASES)
def test_the_range_may_lie_anywhere(values, window):
    media = open_media(saved(values, "TIFF"))
    assert media.window == window
    pixels = read_image(media)
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_a_window_that_is_given_counts():
    media = open_media(saved(RAMP), window=(0, 4095))
    assert media.notes == ("windowed 0 to 4,095",)
    assert read_image(media).max() == round(3810 / 4095 * 255)


def test_a_window_for_eight_bits_is_said_to_be_unused():
    assert "not used" in open_media(saved(np.zeros((4, 4), np.uint8)), window=(0, 10)).notes[0]


def test_a_folder_of_frames_has_one_window(tmp_path):
    for number, most in enumerate((1000, 4000)):
        (tmp_path / f"{number}.png").write_bytes(saved((RAMP.astype(np.uint32) * most // 3810).astype(np.uint16)))
    media = open_media(tmp_path)
    assert media.window == (0, 4000) and media.notes
    assert read_frames(media, [0, 1]).pixels.max(axis=(1, 2, 3)).tolist() == [64, 255]


def test_pixels_that_are_no_numbers_are_refused():
    with pytest.raises(MediaError, match="no finite numbers"):
        open_media(saved(np.full((2, 2), np.inf, np.float32), "TIFF"))


def dicom(values, **fields):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = Dataset()
    header.file_meta, header.Rows, header.Columns = meta, values.shape[-2], values.shape[-1]
    header.SamplesPerPixel, header.BitsAllocated, header.BitsStored, header.HighBit = 1, 16, 12, 11
    header.PixelRepresentation, header.PhotometricInterpretation = 0, "MONOCHROME2"
    for name, value in fields.items():
        setattr(header, name, value)
    header.PixelData = values.tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, header, enforce_file_format=True)
    return file.getvalue()


def test_dicom_is_read_in_what_its_values_mean():
    media = open_media(dicom(RAMP, RescaleSlope=1, RescaleIntercept=-1024))
    assert (media.kind, media.size, media.window) == ("image", (8, 8), (-1024, 2786))
    np.testing.assert_allclose(read_image(media)[..., 0], RAMP / 3810 * 255, atol=0.51)


def test_dicom_frames_are_a_clip():
    media = open_media(dicom(np.stack([RAMP, RAMP // 2]), NumberOfFrames=2))
    assert (media.kind, media.count) == ("video", 2)
    assert read_frames(media, [0, 1]).pixels.max(axis=(1, 2, 3)).tolist() == [255, 128]


def test_a_damaged_dicom_file_is_one_line():
    with pytest.raises(MediaError, match="damaged"):
        read_image(open_media(dicom(RAMP)[:-40]))
