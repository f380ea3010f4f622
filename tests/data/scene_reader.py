"""Reads the phrases of generated scenes back and finds out, from masks and boxes alone, which things they mean.

Written apart from the code that makes the phrases: own words, own grammar, and plain judgements without margins (left
is a smaller x). The makers leave unclear cases out, so both must agree on every phrase.
"""

import re

import numpy as np

ENGLISH_KINDS = {
    **{
        word: word
        for word in (
            *("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon"),
            *("house", "tree", "car", "boat", "flower", "cup"),
        )
    },
    **{"fish": "fish", "butterfly": "butterfly", "crescent": "moon", "sailing boat": "boat", "mug": "cup"},
}
ENGLISH_PLURALS = {"crosses": "cross", "butterflies": "butterfly", "fishes": "fish"} | {
    word + "s": kind for word, kind in ENGLISH_KINDS.items() if word not in ("cross", "butterfly", "fish")
}
ENGLISH_WORDS = {
    **{w: ("colour", w) for w in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")},
    **{w: ("colour", w) for w in ("white", "grey", "black")},
    **{w: ("texture", w) for w in ("plain", "striped", "dotted", "checked")},
    **{"gray": ("colour", "grey"), "spotted": ("texture", "dotted"), "checkered": ("texture", "checked")},
    **{w: ("size", "small") for w in ("small", "little")},
    **{w: ("size", "large") for w in ("large", "big")},
}
CHINESE_KINDS = {
    **{"圆形": "circle", "正方形": "square", "方块": "square", "三角形": "triangle", "星星": "star", "心形": "heart"},
    **{"爱心": "heart", "十字": "cross", "圆环": "ring", "月牙": "moon", "房子": "house", "树": "tree", "汽车": "car"},
    **{"车": "car", "鱼": "fish", "帆船": "boat", "船": "boat", "花": "flower", "杯子": "cup", "蝴蝶": "butterfly"},
    **{"物体": None, "东西": None},
}
CHINESE_WORDS = {
    **{"红色": ("colour", "red"), "橙色": ("colour", "orange"), "黄色": ("colour", "yellow")},
    **{"绿色": ("colour", "green"), "蓝色": ("colour", "blue"), "紫色": ("colour", "purple")},
    **{"粉红色": ("colour", "pink"), "粉色": ("colour", "pink"), "棕色": ("colour", "brown")},
    **{"白色": ("colour", "white"), "灰色": ("colour", "grey"), "黑色": ("colour", "black")},
    **{"纯色的": ("texture", "plain"), "带条纹的": ("texture", "striped")},
    **{"带圆点的": ("texture", "dotted"), "带格子的": ("texture", "checked")},
    **{"小": ("size", "small"), "大": ("size", "large")},
}
ENGLISH_TESTS = {
    r"(?:on|at) the (left|right|top|bottom)(?: side)?": "half",
    r"in the (upper|lower) half": "half",
    r"in the (top|upper|bottom|lower) (left|right) corner": "corner",
    r"in the (?:middle|centre)": "middle",
    r"(?:moving |moving to the )(left|right|up|down)": "goes",
    r"(rising|sinking)": "goes",
    r"(?:on the move|moving along)": "moves",
    r"(?:standing still|not moving)": "stays",
    r"(?:turning round|spinning)": "turns",
    r"(?:growing|getting bigger)": "grows",
    r"(?:shrinking|getting smaller)": "shrinks",
    r"(?:leaving|moving out of) the picture": "leaves",
    r"(?:entering|coming into) the picture": "enters",
    r"(?:hidden for a while|disappearing for a moment)": "is hidden",
}
ENGLISH_RELATIONS = (
    r"(?:to the )?(left|right) of|above|below|behind|partly hidden by|in front of|(?:passing|moving) behind"
)
ENGLISH_FIRSTS = r"leftmost|rightmost|topmost|highest|bottommost|lowest|largest|biggest|smallest|fastest"
CHINESE_TESTS = {
    "左边|左侧": ("half", ("left",)),
    "右边|右侧": ("half", ("right",)),
    "上方|上半部分": ("half", ("top",)),
    "下方|下半部分": ("half", ("bottom",)),
    "左上角": ("corner", ("top", "left")),
    "右上角": ("corner", ("top", "right")),
    "左下角": ("corner", ("bottom", "left")),
    "右下角": ("corner", ("bottom", "right")),
    "中间|正中央": ("middle", ()),
    "[向往]左移动": ("goes", ("left",)),
    "[向往]右移动": ("goes", ("right",)),
    "向上移动|往上移动|上升": ("goes", ("up",)),
    "向下移动|往下移动|下降": ("goes", ("down",)),
    "移动|正在移动": ("moves", ()),
    "静止|不动": ("stays", ()),
    "旋转|正在转动": ("turns", ()),
    "变大": ("grows", ()),
    "变小": ("shrinks", ()),
    "离开画面": ("leaves", ()),
    "进入画面": ("enters", ()),
    "暂时消失|一度被挡住": ("is hidden", ()),
}
CHINESE_RELATIONS = {
    "在?(.+)左[边侧]": "left",
    "在?(.+)右[边侧]": "right",
    "在?(.+)上[方面]": "above",
    "在?(.+)下[方面]": "below",
    "从(.+)后面经过": "passing",
    "(.+)后面|被(.+)挡住一部分": "behind",
    "(.+)前面": "in front",
}
CHINESE_FIRSTS = {
    **{"最左边": "leftmost", "最右边": "rightmost", "最上面": "highest", "最下面": "lowest"},
    **{"最大": "largest", "最小": "smallest", "移动最快": "fastest", "最快": "fastest"},
}
CHINESE_NUMBER = "那?[个颗座棵辆条艘朵只]"


def meant(scene, text, language):
    """The numbers of the things that a phrase means, and whether the wording is for one, for two, or for several."""
    return (_english if language == "en" else _chinese)(scene, text)


def _english(scene, text):
    first = re.fullmatch(
        rf"the (?:({ENGLISH_FIRSTS}) )?(.+?)(?: furthest to the (left|right)| moving (fastest))?", text
    )
    if first and any(first.group(1, 3, 4)):
        word = next(group for group in first.group(1, 3, 4) if group)
        candidates, number = english_noun(scene, first[2])
        assert number == "one"
        return {_first(scene, {"left": "leftmost", "right": "rightmost"}.get(word, word), candidates)}, "one"
    for pattern, test in ENGLISH_TESTS.items():
        if found := re.fullmatch(f"(.+?) {pattern}", text):
            candidates, number = english_noun(scene, found[1])
            return {thing for thing in candidates if judge(scene, thing, test, found.groups()[1:])}, number
    if found := re.fullmatch(f"(.+?) ({ENGLISH_RELATIONS}) (the .+)", text):
        candidates, number = english_noun(scene, found[1])
        relation = found[3] or {"partly": "behind", "in": "in front", "moving": "passing"}.get(
            found[2].split()[0], found[2]
        )
        relation = "passing" if relation.startswith("passing") else relation
        anchors, _ = english_noun(scene, found[4])
        assert len(anchors) == 1, text
        (anchor,) = anchors
        return {thing for thing in candidates - {anchor} if relates(scene, thing, relation, anchor)}, number
    return english_noun(scene, text)


def english_noun(scene, text):
    """The things of which a noun is true, and its grammatical number."""
    head = re.fullmatch(r"(the two |both |all the |all |every |the |an? |another )?(.+)", text)
    *adjectives, last = head[2].split()
    if last in ("boat", "boats") and adjectives and adjectives[-1] == "sailing":
        adjectives, last = adjectives[:-1], f"sailing {last}"
    is_plural = last in ENGLISH_PLURALS or last in ("objects", "things")
    kind = ENGLISH_PLURALS.get(last) if is_plural else ENGLISH_KINDS.get(last)
    assert kind or last.removesuffix("s") in ("object", "thing"), text
    wanted = dict(ENGLISH_WORDS[word] for word in adjectives) | ({"kind": kind} if kind else {})
    number = "two" if head[1] in ("the two ", "both ") else "many" if is_plural or head[1] == "every " else "one"
    assert head[1] != "every " or not is_plural
    return _having(scene, wanted), number


def _chinese(scene, text):
    for pattern, word in CHINESE_FIRSTS.items():
        if found := re.fullmatch(f"{pattern}的(.+)", text):
            return {_first(scene, word, chinese_noun(scene, found[1])[0])}, "one"
    for pattern, (test, values) in CHINESE_TESTS.items():
        if found := re.fullmatch(f"(?:{pattern})的(.+)", text):
            candidates, number = chinese_noun(scene, found[1])
            return {thing for thing in candidates if judge(scene, thing, test, values)}, number
    for pattern, relation in CHINESE_RELATIONS.items():
        if found := re.fullmatch(f"(?:{pattern})的(.+)", text):
            *anchors, noun = (group for group in found.groups() if group)
            (anchor,), _ = chinese_noun(scene, anchors[0])
            candidates, number = chinese_noun(scene, noun)
            return {thing for thing in candidates - {anchor} if relates(scene, thing, relation, anchor)}, number
    return chinese_noun(scene, text)


def chinese_noun(scene, text):
    """The things of which a noun is true, and its grammatical number."""
    head = re.match(f"(所有|全部)|(两{CHINESE_NUMBER})|(另?一{CHINESE_NUMBER})|(那{CHINESE_NUMBER})", text)
    rest = text[head.end() :] if head else text
    number = "many" if head and head[1] else "two" if head and head[2] else "one"
    kind = max((word for word in CHINESE_KINDS if rest.endswith(word)), key=len)
    wanted = {"kind": CHINESE_KINDS[kind]} if CHINESE_KINDS[kind] else {}
    rest = rest.removesuffix(kind)
    while rest:
        word = max((word for word in CHINESE_WORDS if rest.startswith(word)), key=len)
        wanted |= [CHINESE_WORDS[word]]
        rest = rest.removeprefix(word)
    return _having(scene, wanted), number


def _having(scene, wanted):
    return {
        number
        for number, thing in enumerate(scene.things)
        if all(getattr(thing, name) == value for name, value in wanted.items())
    }


def centre(scene, thing, frame=0):
    """Of what is seen, in pixels."""
    y, x = np.nonzero(scene.visible[thing, frame])
    return np.array([x.min() + x.max() + 1, y.min() + y.max() + 1]) / 2


def way(scene, thing):
    """How the middle of a thing's box moves from the first to the last frame, in shares of the shorter side."""
    middles = scene.whole_boxes[thing].reshape(-1, 2, 2).mean(axis=1)
    return (middles[-1] - middles[0]) / min(scene.size)


def judge(scene, thing, test, values):
    """Whether something is true of one thing."""
    names = {"upper": "top", "lower": "bottom", "rising": "up", "sinking": "down"}
    values = [names.get(value, value) for value in values if value]
    whole, seen = scene.whole[thing].any(axis=(1, 2)), scene.visible[thing].any(axis=(1, 2))
    growth = np.sqrt(scene.areas[thing, -1] / scene.areas[thing, 0])
    if test in ("half", "corner"):
        x, y = centre(scene, thing) / scene.size[::-1]
        limit = 0.5 if test == "half" else 0.4
        depth = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}
        return all(depth[value] < limit for value in values)
    if test == "middle":
        return bool((abs(centre(scene, thing) / scene.size[::-1] - 0.5) < 0.16).all())
    if test == "goes":
        return way(scene, thing) @ {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[values[0]] > 0.08
    return {
        "moves": np.hypot(*way(scene, thing)) > 0.07,
        "stays": np.hypot(*way(scene, thing)) < 0.07,
        "turns": abs(scene.poses[thing][-1].angle - scene.poses[thing][0].angle) > 1,
        "grows": growth > 1.25,
        "shrinks": growth < 0.8,
        "leaves": seen[0] and not whole[-1],
        "enters": seen[-1] and not whole[0],
        "is hidden": bool((whole & ~seen).any()),
    }[test]


def relates(scene, thing, relation, anchor):
    """Whether a thing stands in a relation to another."""
    dx, dy = centre(scene, thing) - centre(scene, anchor) if relation != "passing" else (0, 0)
    overlap = (scene.whole[thing] & scene.whole[anchor]).any()
    return {
        "left": dx < 0,
        "right": dx > 0,
        "above": dy < 0,
        "below": dy > 0,
        "behind": overlap and thing < anchor,
        "in front": overlap and thing > anchor,
        "passing": overlap and thing < anchor,
    }[relation]


def _first(scene, word, candidates):
    assert len(candidates) > 1
    measures = {
        "leftmost": lambda thing: -centre(scene, thing)[0],
        "rightmost": lambda thing: centre(scene, thing)[0],
        "topmost": lambda thing: -centre(scene, thing)[1],
        "highest": lambda thing: -centre(scene, thing)[1],
        "bottommost": lambda thing: centre(scene, thing)[1],
        "lowest": lambda thing: centre(scene, thing)[1],
        "largest": lambda thing: scene.areas[thing, 0],
        "biggest": lambda thing: scene.areas[thing, 0],
        "smallest": lambda thing: -scene.areas[thing, 0],
        "fastest": lambda thing: np.hypot(*way(scene, thing)),
    }
    return max(candidates, key=measures[word])
