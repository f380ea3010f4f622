"""The last stage of an answer: the objects that were spoken of found, frame by frame, and all of it put together."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

import torch

from segue.encoder import Key, MediaEncoder
from segue.errors import SegueError
from segue.grounding.following import Following, TrackBuilder, decode_prompts, follow, frame_masks
from segue.grounding.model import VisionLanguageModel
from segue.grounding.sam2 import Decoded, Encoded
from segue.media import VideoFrame, iter_frames, read_ahead
from segue.models.decoding import check_computed
from segue.models.protocol import Parse, Processor
from segue.models.templates import TextTokenizer
from segue.output.answers import Answer
from segue.prepare import MediaInput
from segue.requests import Job, Reply, Request, Tracks, until_stop
from segue.types import Event, Failed, Finished, FrameMasks, ObjectsFound, Region, StopReason, TokenScore, Usage


class Answering:
    """Makes answers of what a language model said. `lineage` is that of the model."""

    def __init__(
        self, model: VisionLanguageModel, processor: Processor, encoder: MediaEncoder, lineage: Mapping[str, Any]
    ):
        self.model, self.processor, self.encoder, self.lineage = model, processor, encoder, lineage

    def ground(self, jobs: Sequence[Job]) -> Generator[tuple[Request, Event | Failed]]:
        """Masks for what was said, frame by frame, then the answers."""
        try:
            images = self._encode_images(jobs)
        except SegueError as error:
            # an image cannot be read any more, which is the matter of one request alone
            if len(jobs) == 1:
                yield jobs[0].request, Failed(error)
                return
            for job in jobs:
                yield from self.ground([job])
            return
        for job in jobs:
            try:
                tracks = yield from self._follow(job, images)
                job.timer.lap("masks")
                for answer in self._finish(job, tracks):
                    yield job.request, Finished(answer)
            except SegueError as error:
                yield job.request, Failed(error)

    def _encode_images(self, jobs: Sequence[Job]) -> dict[Key, Encoded]:
        """SAM 2's features of the images that have objects to be found."""
        if self.model.grounder is None:
            return {}
        return self.encoder.encode_images([job.media for job in jobs if job.media and job.points_into("image")])

    def _follow(self, job: Job, images: Mapping[Key, Encoded]) -> Generator[tuple[Request, Event], None, Tracks]:
        """Follows every object spoken of; none, and nothing is decoded."""
        if self.model.grounder is None or job.media is None or job.request.is_cancelled or not job.num_objects:
            return Tracks()
        options = job.plan.options
        _, regions, _ = parse_replies(job.replies, self._raw(job, job.replies), self.model.family.parse, job.media)
        yield job.request, ObjectsFound(job.media.media, regions)
        tracks = tuple(TrackBuilder(options.keep_masks) for _ in range(job.num_objects))
        frames = 0
        for masks, decoded in self._masks(job, images):
            check_computed(decoded.logits, f"in the masks of frame {masks.index}")
            for number, track in enumerate(tracks):
                track.add(masks, number, decoded.logits if options.keep_logits else None)
            frames += 1
            yield job.request, masks
            if job.request.is_cancelled:
                break
        return Tracks(tracks, frames)

    def _masks(self, job: Job, images: Mapping[Key, Encoded]) -> Iterator[tuple[FrameMasks, Decoded]]:
        assert job.media is not None and job.media.key is not None
        grounder, shown = self.model.grounder, job.media.shown
        prompts = self.model.prompts(torch.cat([reply.generation.seg_hidden for reply in job.replies]))
        check_computed(prompts, "for what the masks are asked by")
        if job.media.media.kind == "image":
            frame = VideoFrame(0, 0.0, shown.pixels[0])
            found = iter([(frame, decode_prompts(grounder, images[job.media.key], prompts))])
        else:
            known = {int(number): image for number, image in zip(shown.index, shown.pixels, strict=True)}
            frames = read_ahead(iter_frames(job.media.media))
            options = job.plan.options
            how = Following(policy=job.plan.policy, reprompt=options.reprompt, pooled=options.memory == "pooled")
            found = follow(grounder, prompts, known, frames, how)
        for frame, decoded in found:
            yield frame_masks(frame, decoded, threshold=job.plan.options.threshold), decoded

    def _finish(self, job: Job, tracks: Tracks) -> Iterator[Answer]:
        """One answer to all dialogues of a request with phrases, else one to each."""
        if job.request.phrases:
            yield self._answer(job, job.replies, tracks)
            return
        start = 0
        for reply in job.replies:
            stop = start + len(reply.generation.seg_hidden)
            yield self._answer(job, [reply], replace(tracks, tracks=tracks.tracks[start:stop]))
            start = stop

    def _answer(self, job: Job, replies: Sequence[Reply], found: Tracks) -> Answer:
        """Everything that was said and found, together; `found` has a track for each region, or none at all."""
        raw = self._raw(job, replies)
        text, regions, boxes = parse_replies(replies, raw, self.model.family.parse, job.media)
        media = None if job.media is None else job.media.media
        if media is not None and found.tracks:
            pairs = zip(found.tracks, regions, strict=True)
            regions = tuple(track.region(region, media.size) for track, region in pairs)
        usage = Usage(
            prompt_tokens=sum(reply.example.answer_start for reply in replies),
            cached_tokens=sum(reply.cached for reply in replies),
            visual_tokens=sum(reply.example.num_visual_tokens for reply in replies),
            answer_tokens=sum(len(reply.generation.ids) for reply in replies),
            encoded_frames=found.frames,
            seconds=job.timer.seconds,
        )
        lineage = {**self.lineage, **decided_by(job, replies, self.processor)}
        scores = token_scores(replies, self.processor.tokenizer)
        raw_text = "\n".join(raw).strip()
        return Answer(text, regions + boxes, raw_text, media, usage, stop_reason(replies), lineage, scores)

    def _raw(self, job: Job, replies: Sequence[Reply]) -> list[str]:
        """What was generated, special tokens included, up to a text that the caller stops at."""
        said = [self.processor.tokenizer.decode(reply.generation.ids, skip_special_tokens=False) for reply in replies]
        return [until_stop(text, job.plan.options.stop) for text in said]


def parse_replies(
    replies: Sequence[Reply], raw: Sequence[str], parse: Parse, shown: MediaInput | None
) -> tuple[str, tuple[Region, ...], tuple[Region, ...]]:
    """The clean text of all replies, a line each; one region per segmentation token; and those given as boxes.

    Spans of regions lie in that text. `shown` is the medium that the replies are about.
    """
    texts: list[str] = []
    regions: list[Region] = []
    boxes: list[Region] = []
    size, vision = (None, None) if shown is None else (shown.media.size, shown.vision)
    offset = 0
    for reply, spoken in zip(replies, raw, strict=True):
        text, found = parse(spoken, size, vision)
        marked = [region for region in found if region.box is None]
        if len(marked) != len(reply.generation.seg_hidden):
            # the letters "[SEG]" spelled out of ordinary tokens ask for nothing
            marked = [Region() for _ in reply.generation.seg_hidden]
        for region in (*marked, *(region for region in found if region.box is not None)):
            span = None if region.span is None else (region.span[0] + offset, region.span[1] + offset)
            placed = replace(region, phrase=region.phrase or reply.phrase, span=span)
            (regions if region.box is None else boxes).append(placed)
        texts.append(text)
        offset += len(text) + 1
    return "\n".join(texts), tuple(regions), tuple(boxes)


def decided_by(job: Job, replies: Sequence[Reply], processor: Processor) -> dict[str, Any]:
    """All that decided an answer beside the model, and what was not found, for its lineage."""
    is_video = job.media is not None and job.media.media.kind == "video"
    request = {
        **asdict(job.plan.options),
        "policy": job.plan.policy if is_video else None,
        "frames": job.plan.frames if is_video else None,
        "frames_shown": list(job.media.plan) if job.media is not None and is_video else None,
        "prompts": [readable_prompt(reply, processor) for reply in replies],
    }
    not_found = [reply.phrase for reply in replies if reply.phrase and not len(reply.generation.seg_hidden)]
    return {"request": request} | ({"not_found": not_found} if not_found else {})


def readable_prompt(reply: Reply, processor: Processor) -> str:
    """The prompt of a reply for people: each run of visual tokens as its length."""
    pieces = []
    ids = reply.example.ids[: reply.example.answer_start].tolist()
    for is_visual, run in groupby(ids, lambda token: token == processor.visual_id):
        part = list(run)
        text = processor.tokenizer.decode(part, skip_special_tokens=False)
        pieces.append(f"{processor.visual_token}*{len(part)}" if is_visual else text)
    return "".join(pieces)


def token_scores(replies: Sequence[Reply], tokenizer: TextTokenizer) -> tuple[TokenScore, ...]:
    """How likely each token of all replies was, where that was asked for."""

    def text(token: int) -> str:
        return tokenizer.decode([token], skip_special_tokens=False)

    return tuple(
        TokenScore(text(token), score, tuple((text(one), other) for one, other in likeliest))
        for reply in replies
        # a reply has no scores where none were asked for
        for token, (score, likeliest) in zip(reply.generation.ids, reply.generation.scores, strict=False)
    )


def stop_reason(replies: Sequence[Reply]) -> StopReason:
    """Why an answer ended: of several replies, the reason that says most."""
    reasons: list[StopReason] = [reply.generation.stop_reason for reply in replies]
    return next((one for one in ("cancelled", "length") if one in reasons), reasons[0])
