"""DICOM images through pydicom (extra `dicom`), as Pillow images are read."""

from __future__ import annotations

import numpy as np
import pydicom
from PIL import Image
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

from segue.media.formats import Readable


class DicomImage(Image.Image):
    """A DICOM file: its size and number of frames at once, its pixels by `load`, frame by frame.

    Stored values become what the modality says they mean (Hounsfield units of CT). Where the file names a window it is
    applied; MONOCHROME1 is turned over, so that more is brighter. Grey values stay deep and are windowed like those of
    any deep picture.
    """

    format = "DICOM"

    def __init__(self, file: Readable):
        super().__init__()
        self._file = file
        try:
            self._header = pydicom.dcmread(file, stop_before_pixels=True)
            self._size = int(self._header.Columns), int(self._header.Rows)
            self.n_frames = int(self._header.get("NumberOfFrames") or 1)
            self._is_colour = int(self._header.get("SamplesPerPixel", 1)) > 1
        except (InvalidDicomError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"no readable DICOM image ({error})") from error
        if min(self._size) < 1 or self.n_frames < 1:
            raise ValueError(f"it states a size of {self._size} and {self.n_frames} frames")
        self._mode = "RGB" if self._is_colour else "F"
        self._frame = 0
        self._loaded: int | None = None

    def seek(self, frame: int) -> None:
        """Go to a frame, from 0."""
        if not 0 <= frame < self.n_frames:
            raise EOFError(f"it has no frame {frame}")
        self._frame = frame

    def tell(self) -> int:
        """The frame that it is at."""
        return self._frame

    def load(self) -> Image.core.PixelAccess | None:
        """Decode the frame that it is at.

        Raises: ValueError, if it cannot be decoded; pydicom's reason says what to install for compressed ones.
        """
        if self._loaded != self._frame:
            try:
                self._file.seek(0)
                raw = pixel_array(self._file, index=self._frame if self.n_frames > 1 else 0)
                values = raw if self._is_colour else self._meant(raw)
            except (InvalidDicomError, AttributeError, NotImplementedError, RuntimeError, OSError) as error:
                raise ValueError(" ".join(str(error).split())) from error
            self.im = Image.fromarray(values).im
            self._loaded = self._frame
        return super().load()

    def _meant(self, raw: np.ndarray) -> np.ndarray:
        values = apply_voi_lut(apply_modality_lut(raw, self._header), self._header).astype(np.float32)
        if self._header.get("PhotometricInterpretation") == "MONOCHROME1":
            values = values.max() + values.min() - values
        return np.ascontiguousarray(values)
