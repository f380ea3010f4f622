"""A generated set of questions about videos, laid out as Video-MME is."""

from pathlib import Path

import numpy as np

QUESTIONS = ("What moves?", "Where is it?", "How many are there?", "What comes first?", "What is red?")


def write_clip(path: Path, seed: int, frames: int = 9, size: tuple[int, int] = (48, 64)) -> None:
    """A square of a colour that wanders over another colour, as MP4."""
    import av

    rng = np.random.default_rng(seed)
    ground, colour, step = rng.integers(0, 256, (3, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            pixels = np.full((*size, 3), ground, np.uint8)
            top, left = (number * step[0]) % (size[0] - 16), (number * step[1]) % (size[1] - 16)
            pixels[top : top + 16, left : left + 16] = colour
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        file.mux(stream.encode())


def write_set(root: Path, videos: int = 3, questions: int = 5) -> Path:
    """So many videos with so many questions about each, below `root`."""
    home = root / "long_video" / "Video-MME"
    columns = ("index", "video", "duration", "domain", "candidates", "sub_category", "task_type", "question", "answer")
    rows = ["\t".join(columns)]
    for video in range(videos):
        write_clip(home / "video" / f"v{video}.mp4", seed=video)
        for number in range(questions):
            cells = (
                video * questions + number,
                f"v{video}",
                "long",
                "Made",
                "['A. One.', 'B. Two.', 'C. No.', 'D. X.']",
            )
            rows.append(
                "\t".join(map(str, (*cells, "Made", "Made", QUESTIONS[number % len(QUESTIONS)], "ABCD"[video % 4])))
            )
    (home / "Video-MME.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root
