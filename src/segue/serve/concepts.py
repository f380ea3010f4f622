"""`/sam3/concept_segment`: what `/v1/segment` does, in the form that clients of Roboflow's inference server know."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

from fastapi import FastAPI, Request
from pydantic import Field

from segue.geometry.polygons import polygons
from segue.serve.context import Context
from segue.serve.errors import ApiError
from segue.serve.schema import Items, Open, Phrase
from segue.serve.segment import SegmentRequest, answered
from segue.types import Answer, Region

Json = dict[str, Any]


class ConceptImage(Open):
    """The image: its bytes in base64, or where it is."""

    type: Literal["base64", "url"]
    value: str


class Prompt(Open):
    """What to find, in words; `output_prob_thresh` is the least score of what is told."""

    type: Literal["text", "visual"] = "text"
    text: Phrase | None = None
    output_prob_thresh: float | None = Field(None, ge=0, le=1)
    boxes: list[Any] | None = None


class ConceptRequest(Open):
    """A request; `model_id` is theirs and means nothing here."""

    image: ConceptImage
    prompts: Items[Prompt] = Field(min_length=1)
    format: Literal["polygon", "rle"] = "polygon"
    output_prob_thresh: float = Field(0.5, ge=0, le=1)


def add_routes(app: FastAPI, context: Context) -> None:
    """The route."""

    @app.post("/sam3/concept_segment")
    async def concepts(body: ConceptRequest, request: Request) -> Json:
        """Masks of all phrases in one image."""
        began = time.monotonic()
        phrases = [_phrase(prompt, number) for number, prompt in enumerate(body.prompts)]
        given, is_url = body.image.value, body.image.type == "url"
        if not is_url and not given.startswith("data:"):
            given = f"data:;base64,{given}"
        asked = SegmentRequest(image=given, phrases=list(dict.fromkeys(phrases)))
        answer = await answered(asked, context, request)
        told = await asyncio.to_thread(_results, body, answer)
        return {"prompt_results": told, "time": round(time.monotonic() - began, 4)}


def _phrase(prompt: Prompt, number: int) -> str:
    if prompt.text is None or prompt.type != "text" or prompt.boxes:
        message = f"prompts.{number}: only prompts of type 'text' are answered here, without boxes"
        raise ApiError(400, message, code="invalid_value", param="prompts")
    return prompt.text


def _results(body: ConceptRequest, answer: Answer) -> list[Json]:
    """What was found for each prompt, which is told once however often it was asked for."""
    results = []
    for number, prompt in enumerate(body.prompts):
        least = body.output_prob_thresh if prompt.output_prob_thresh is None else prompt.output_prob_thresh
        found = [region for region in answer.regions if region.phrase == prompt.text and (region.score or 0) >= least]
        echo = {"prompt_index": number, "type": "text", "text": prompt.text, "num_boxes": 0}
        predictions = [_prediction(region, body.format) for region in found]
        results.append({"prompt_index": number, "echo": echo, "predictions": predictions})
    return results


def _prediction(region: Region, form: str) -> Json:
    assert region.masks is not None
    masks: Any = region.masks.rle(0)
    if form == "polygon":
        masks = [one.round(2).tolist() for one in polygons(region.masks.dense(0))]
    return {"masks": masks, "confidence": region.score, "format": form}
