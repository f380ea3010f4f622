"""What can be said and asked about a scene: referring phrases, questions with short answers, a grounded caption.

Queries are drawn by chance and kept if nothing about them is unclear, so every phrase means exactly its things.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from segue.synth.drawings import KINDS
from segue.synth.meaning import (
    BULKS,
    CLIP_EXTREMES,
    CLIP_RELATIONS,
    DIRECTIONS,
    EVENTS,
    MOTIONS,
    PLACES,
    STILL_EXTREMES,
    STILL_RELATIONS,
    Facts,
    Noun,
    Query,
    Thing,
    denote,
    left_to_right,
)
from segue.synth.painting import COLOURS, TEXTURES
from segue.synth.wording import (
    LANGUAGES,
    Language,
    Words,
    a,
    is_bare,
    listed,
    noun_forms,
    phrase_of,
    say,
    the,
    vocabulary,
)

PhraseKind = Literal["attribute", "place", "extreme", "relation", "motion", "event"]

_TRIES = 24
_STILL_QUOTAS: dict[PhraseKind, tuple[int, int, int]] = {
    "attribute": (2, 4, 2),
    "place": (1, 2, 1),
    "extreme": (0, 2, 0),
    "relation": (1, 3, 1),
}
"""How many phrases of each kind a scene should have that mean nothing, one thing, and several."""
_CLIP_QUOTAS: dict[PhraseKind, tuple[int, int, int]] = {
    "attribute": (2, 3, 1),
    "motion": (1, 4, 1),
    "event": (1, 2, 1),
    "extreme": (0, 1, 0),
    "relation": (1, 1, 1),
}
_STILL_CONTRASTS: dict[PhraseKind, tuple[int, int, int]] = {"relation": (3, 2, 0), "place": (1, 1, 0)}
_CLIP_CONTRASTS: dict[PhraseKind, tuple[int, int, int]] = {
    "relation": (2, 2, 0),
    "motion": (2, 2, 1),
    "event": (2, 1, 1),
}
_TEXTURED = 8
_VALUES = {"kind": KINDS, "colour": tuple(COLOURS), "texture": TEXTURES, "size": ("small", "large")}
_PATTERNS: tuple[tuple[str, ...], ...] = (
    (),
    ("kind",),
    ("kind",),
    ("colour",),
    ("colour", "kind"),
    ("colour", "kind"),
    ("texture",),
    ("texture", "kind"),
    ("size", "kind"),
    ("size", "colour"),
    ("texture", "colour", "kind"),
    ("size", "colour", "kind"),
)
"""Which attributes a noun names; common ones more often."""
_LOOSE_PATTERNS: tuple[tuple[str, ...], ...] = ((), ("kind",), ("kind",), ("colour",), ("colour", "kind"))


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that mean some things of a scene: one, several, or none that is there.

    `objects` are the numbers of the things in depth order, as in the scene's arrays; `words` by language.
    """

    kind: PhraseKind
    query: Query
    objects: tuple[int, ...]
    words: Words


@dataclass(frozen=True, slots=True)
class Question:
    """A question with one right, short answer; both by language."""

    kind: str
    words: Words
    answers: Words


@dataclass(frozen=True, slots=True)
class Caption:
    """A description as `<p> phrase </p> [SEG] ...`, by language; `objects` are the things of its marks, in order."""

    words: Words
    objects: tuple[int, ...]


def phrases(facts: Facts, rng: np.random.Generator) -> tuple[Phrase, ...]:
    """About a dozen phrases, no two of one meaning: most for one thing, some for several, some for none."""
    return tuple(_filled(_CLIP_QUOTAS if facts.is_clip else _STILL_QUOTAS, facts, rng).values())


def contrasts(facts: Facts, rng: np.random.Generator) -> tuple[Phrase, ...]:
    """About a dozen phrases that hang on a texture, a relation or what a thing does; half of them or more are for none."""
    found = _filled(_CLIP_CONTRASTS if facts.is_clip else _STILL_CONTRASTS, facts, rng)
    for query in (Query(_textured(facts, rng)) for _ in range(_TEXTURED)):
        objects = denote(query, facts)
        if objects is not None and query.noun.texture != "plain":
            found.setdefault(query, _phrase("attribute", query, objects, rng))
    return tuple(found.values())


def _filled(
    quotas: Mapping[PhraseKind, tuple[int, int, int]], facts: Facts, rng: np.random.Generator
) -> dict[Query, Phrase]:
    """Phrases of each kind, as many as are wanted that mean nothing, one thing, and several, if so many are found."""
    found: dict[Query, Phrase] = {}
    for kind, quota in quotas.items():
        wanted = list(quota)
        for query, objects in _drawn(kind, facts, rng):
            slot = min(2, len(objects))
            if not wanted[slot] or query in found:
                continue
            wanted[slot] -= 1
            found[query] = _phrase(kind, query, objects, rng)
            if not any(wanted):
                break
    return found


def _phrase(kind: PhraseKind, query: Query, objects: tuple[int, ...], rng: np.random.Generator) -> Phrase:
    words = {language: phrase_of(query, len(objects), language, rng) for language in LANGUAGES}
    return Phrase(kind, query, objects, words)


def questions(facts: Facts, rng: np.random.Generator) -> tuple[Question, ...]:
    """About eight questions of different kinds, as far as the scene has an answer to them."""
    makers = [_count, _exists, _exists, _attribute, _attribute, _attribute]
    makers += [_direction, _event, _event] if facts.is_clip else [_related, _related, _side, _larger]
    return _asked(makers, facts, rng)


def comparisons(facts: Facts, rng: np.random.Generator) -> tuple[Question, ...]:
    """About a dozen questions about a still that take a look at several things: which is larger, how many, where."""
    return _asked([*[_larger] * 5, *[_count] * 4, *[_related] * 4], facts, rng)


def _asked(
    makers: Sequence[Callable[[Facts, np.random.Generator], Question | None]], facts: Facts, rng: np.random.Generator
) -> tuple[Question, ...]:
    asked: dict[str, Question] = {}
    for make in makers:
        question = next((made for _ in range(_TRIES // 4) if (made := make(facts, rng))), None)
        if question is not None:
            asked.setdefault(question.words["en"], question)
    return tuple(asked.values())


def caption(facts: Facts, background: str, rng: np.random.Generator) -> Caption:
    """Names every thing, from left to right by where it is first seen; in a clip with what it does."""
    order = left_to_right(facts.boxes)
    words: dict[Language, str] = {}
    for language in LANGUAGES:
        named: set[Noun] = set()
        items = []
        for number in order:
            noun = description(facts.things[number], with_size=facts.keeps_size(number))
            text = a(noun, language, rng, is_another=noun in named)
            items.append(f"<p> {_with_motion(text, facts, number, language, rng)} </p> [SEG]")
            named.add(noun)
        key = "caption.video" if facts.is_clip else "caption.image"
        scenery = say(f"background.{background}", language, rng)
        words[language] = say(key, language, rng, things=listed(items, language, rng), background=scenery)
    return Caption(words, tuple(order))


def description(thing: Thing, *, with_size: bool = True) -> Noun:
    """A thing's kind and colour, and what is special about it: a texture, a size that is not medium."""
    texture = None if thing.texture == "plain" else thing.texture
    return Noun(thing.kind, thing.colour, texture, thing.size if with_size and thing.size != "medium" else None)


def _drawn(kind: PhraseKind, facts: Facts, rng: np.random.Generator) -> Iterator[tuple[Query, tuple[int, ...]]]:
    """Some queries of a kind and the things they clearly denote, perhaps none."""
    for _ in range(_TRIES):
        query = _near_miss(facts, rng) if kind == "attribute" and rng.uniform() < 0.3 else _draw(kind, facts, rng)
        objects = None if query is None else denote(query, facts)
        if query is None or objects is None:
            continue
        # words that add nothing to the noun are heard, but seldom
        if query.test is not None and objects == denote(Query(query.noun), facts) and rng.uniform() < 0.75:
            continue
        yield query, objects


def _draw(kind: PhraseKind, facts: Facts, rng: np.random.Generator) -> Query | None:
    """Any query of a kind about things like those in the scene; it may denote nothing."""
    number = int(rng.integers(len(facts.things)))
    noun = _noun(facts, number, rng, loose=kind != "attribute")
    if kind == "relation":
        relations = CLIP_RELATIONS if facts.is_clip else STILL_RELATIONS
        other = int(rng.integers(len(facts.things)))
        # the noun is drawn from another thing than the anchor, so that there is something it could mean
        anchor = None if other == number else _name(facts, other, rng)
        return None if anchor is None else Query(noun, _one_of(relations, rng), anchor)
    if kind == "extreme":
        test = _one_of(CLIP_EXTREMES if facts.is_clip else STILL_EXTREMES, rng)
        return Query(noun, test)
    tests = {"place": PLACES, "motion": MOTIONS, "event": EVENTS}
    return Query(noun, _one_of(tests[kind], rng) if kind in tests else None)


def _noun(facts: Facts, number: int, rng: np.random.Generator, *, loose: bool = False) -> Noun:
    """Some of a thing's attributes; a `loose` noun is often no more than its kind, or nothing."""
    thing = facts.things[number]
    patterns = _LOOSE_PATTERNS if loose else _PATTERNS
    names = patterns[int(rng.integers(len(patterns)))]
    return Noun(**{name: getattr(thing, name) for name in names})


def _name(facts: Facts, number: int, rng: np.random.Generator, without: str = "") -> Noun | None:
    """A noun that denotes this thing alone, if some draws find one; it does not name the attribute `without`."""
    for _ in range(8):
        noun = replace(_noun(facts, number, rng), **({without: None} if without else {}))
        if not is_bare(noun) and denote(Query(noun), facts) == (number,):
            return noun
    return None


def _near_miss(facts: Facts, rng: np.random.Generator) -> Query | None:
    """A noun with one attribute changed, often to that of another thing, so that nothing may be meant."""
    noun = _noun(facts, int(rng.integers(len(facts.things))), rng)
    named = [field.name for field in fields(noun) if getattr(noun, field.name)]
    if not named:
        return None
    name = named[int(rng.integers(len(named)))]
    others = [getattr(thing, name) for thing in facts.things] if rng.uniform() < 0.6 else _VALUES[name]
    changed = replace(noun, **{name: others[int(rng.integers(len(others)))]})
    # nobody asks for a plain or a medium-sized thing that is not there
    return None if changed.texture == "plain" or changed.size == "medium" else Query(changed)


def _textured(facts: Facts, rng: np.random.Generator) -> Noun:
    """A thing's kind, its colour or both, with its own texture or, as often, with any."""
    thing = facts.things[int(rng.integers(len(facts.things)))]
    names = (("kind",), ("kind",), ("colour",), ("kind", "colour"))[int(rng.integers(4))]
    texture = thing.texture if rng.uniform() < 0.5 else _one_of(TEXTURES, rng)
    return replace(Noun(**{name: getattr(thing, name) for name in names}), texture=texture)


def _one_of(table: Collection[str], rng: np.random.Generator) -> str:
    return list(table)[int(rng.integers(len(table)))]


def _count(facts: Facts, rng: np.random.Generator) -> Question | None:
    noun = _noun(facts, int(rng.integers(len(facts.things))), rng, loose=True)
    if rng.uniform() < 0.2 and (miss := _near_miss(facts, rng)) is not None:
        noun = miss.noun
    found = denote(Query(noun), facts)
    if found is None:
        return None
    words = {
        language: say("question.count", language, rng, **noun_forms(noun, language, rng)) for language in LANGUAGES
    }
    return Question("count", words, dict.fromkeys(LANGUAGES, str(len(found))))


def _exists(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Half of the answers are yes."""
    wanted = bool(rng.uniform() < 0.5)
    draws = (_draw("attribute", facts, rng) if wanted else _near_miss(facts, rng) for _ in range(_TRIES // 2))
    found = ((query, denote(query, facts)) for query in draws if query is not None and not is_bare(query.noun))
    query = next((query for query, things in found if things is not None and bool(things) == wanted), None)
    if query is None:
        return None
    words = {
        language: say("question.exists", language, rng, indefinite=a(query.noun, language, rng))
        for language in LANGUAGES
    }
    return Question("exists", words, _answers("answer.exists" if wanted else "answer.missing", rng))


def _attribute(facts: Facts, rng: np.random.Generator) -> Question | None:
    asked = ("colour", "kind", "texture")[int(rng.integers(3))]
    number = int(rng.integers(len(facts.things)))
    name = _name(facts, number, rng, without=asked)
    if name is None:
        return None
    value = f"{asked}.{getattr(facts.things[number], asked)}"
    answers = {language: _short(value, language) for language in LANGUAGES}
    return Question(asked, _asking(f"question.{asked}", name, rng), answers)


def _related(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Half of the answers are yes."""
    pair = _two(facts, rng)
    if pair is None:
        return None
    number, name, anchor = pair
    wanted, relations = bool(rng.uniform() < 0.5), list(STILL_RELATIONS)
    for test in rng.permutation(relations):
        found = denote(Query(name, str(test), anchor), facts)
        if found is not None and (number in found) == wanted:
            words = {
                language: say(
                    "question.relation",
                    language,
                    rng,
                    thing=the(name, language, rng),
                    anchor=the(anchor, language, rng),
                    relation=say(f"relation.{test}", language, rng),
                )
                for language in LANGUAGES
            }
            return Question("relation", words, _answers("answer.yes" if wanted else "answer.no", rng))
    return None


def _side(facts: Facts, rng: np.random.Generator) -> Question | None:
    number = int(rng.integers(len(facts.things)))
    name = _name(facts, number, rng)
    side = next((side for side in ("left", "right") if PLACES[side](facts, number)), None)
    if name is None or side is None:
        return None
    return Question("side", _asking("question.side", name, rng), _answers(f"answer.{side}", rng))


def _larger(facts: Facts, rng: np.random.Generator) -> Question | None:
    pair = _two(facts, rng)
    if pair is None:
        return None
    number, name, anchor = pair
    other = denote(Query(anchor), facts)
    measure, margin = BULKS["largest"]
    here, there = measure(facts, number), measure(facts, other[0]) if other else None
    if here is None or there is None:
        return None
    leads = np.array(here) - there
    if not (abs(leads) >= margin).all() or (leads > 0).any() != (leads > 0).all() or name.size or anchor.size:
        return None
    larger = name if leads[0] > 0 else anchor
    words, answers = {}, {}
    for language in LANGUAGES:
        texts = {noun: the(noun, language, rng) for noun in (name, anchor)}
        words[language] = say("question.larger", language, rng, thing=texts[name], anchor=texts[anchor])
        answers[language] = texts[larger][0].upper() + texts[larger][1:]
    return Question("larger", words, answers)


def _direction(facts: Facts, rng: np.random.Generator) -> Question | None:
    number = int(rng.integers(len(facts.things)))
    name = _name(facts, number, rng)
    does = _motion(facts, number, (*DIRECTIONS, "staying"))
    if name is None or does is None:
        return None
    return Question("direction", _asking("question.direction", name, rng), _answers(f"answer.{does}", rng))


def _event(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Half of the answers are yes, where anything happens at all."""
    judges = EVENTS | MOTIONS
    tests = ("leaving", "entering", "hidden", "turning", "growing", "shrinking")
    cases = [(number, test) for number in range(len(facts.things)) for test in tests]
    wanted = bool(rng.uniform() < 0.5)
    fitting = [(number, test) for number, test in cases if judges[test](facts, number) is wanted]
    if not fitting:
        return None
    number, test = fitting[int(rng.integers(len(fitting)))]
    name = _name(facts, number, rng)
    if name is None:
        return None
    words = {
        language: say(
            "question.event", language, rng, thing=the(name, language, rng), event=say(f"event.{test}", language, rng)
        )
        for language in LANGUAGES
    }
    return Question("event", words, _answers("answer.yes" if wanted else "answer.no", rng))


def _two(facts: Facts, rng: np.random.Generator) -> tuple[int, Noun, Noun] | None:
    """A thing, its name, and the name of another."""
    if len(facts.things) < 2:
        return None
    number, other = (int(n) for n in rng.permutation(len(facts.things))[:2])
    name, anchor = _name(facts, number, rng), _name(facts, other, rng)
    return None if name is None or anchor is None else (number, name, anchor)


def _asking(key: str, name: Noun, rng: np.random.Generator) -> Words:
    return {language: say(key, language, rng, thing=the(name, language, rng)) for language in LANGUAGES}


def _answers(key: str, rng: np.random.Generator) -> Words:
    return {language: say(key, language, rng) for language in LANGUAGES}


def _short(key: str, language: Language) -> str:
    """The first wording of an attribute, as an answer: "Red", "Star"."""
    word = vocabulary(language)[key][0].split(" / ")[0]
    return word[0].upper() + word[1:]


def _with_motion(text: str, facts: Facts, number: int, language: Language, rng: np.random.Generator) -> str:
    does = _motion(facts, number, ("leaving", "entering", *DIRECTIONS, "turning", "growing", "shrinking"))
    return say(f"test.{does}", language, rng, head=text) if does else text


def _motion(facts: Facts, number: int, tests: tuple[str, ...]) -> str | None:
    """The first of some motions and events that is true of a thing; none in a still."""
    judges: dict[str, Callable[[Facts, int], bool | None]] = MOTIONS | EVENTS
    return next((test for test in tests if judges[test](facts, number)), None) if facts.is_clip else None
