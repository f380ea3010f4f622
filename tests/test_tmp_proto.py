import numpy as np
from segue.engine import Options
from segue.media import open_media
from segue.types import Message

def test_a(engine, teach, picture):
    media = open_media(picture())
    m=[Message.user("Please segment the cat.", media)]
    teach(engine,[m],["Sure, it is [SEG] and [SEG].<|im_end|>"])
    a=engine.answer(m)
    print(a)
    for r in a.regions: print(r.masks.dense(0).mean(), r.score, r.presence)

def test_b(engine_i, teach, clip):
    for policy in ("upstream","consistent"):
        media = open_media(clip(9))
        a=engine_i.ask(media, "Please segment the cat.", options=Options(prefill="It is [SEG], [SEG].", policy=policy, keep_logits=True))
        print(a.lineage)
        for r in a.regions: print([r.masks.dense(i).mean().round(3) for i in range(9)], r.scores, r.presence, r.masks.logits.std((1,2)))
