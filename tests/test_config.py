from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from segue import config
from segue.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Optim:
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int | None = None
    schedule: Literal["cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr is {self.lr}, expected more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    name: str
    steps: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    optim: Optim
    model: Path = Path("demo")
    resume: bool = False
    title: str = ""
    stages: tuple[Stage, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    final: Stage | None = None


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


MINIMAL = "optim: {lr: 1}\n"


def test_every_kind_of_field_is_read(write):
    recipe = config.load(
        Recipe,
        write(
            "optim: {lr: 2e-5, betas: [0.9, 1], warmup: 10, schedule: constant}\n"
            "model: models/one\nresume: true\ntitle: größer\n"
            "stages: [{name: align}, {name: all, steps: 3}]\n"
            "weights: {mask: 2, dice: 0.5}\nfinal: {name: last}\n"
        ),
    )
    assert recipe == Recipe(
        optim=Optim(lr=2e-5, betas=(0.9, 1.0), warmup=10, schedule="constant"),
        model=Path("models/one"),
        resume=True,
        title="größer",
        stages=(Stage(name="align"), Stage(name="all", steps=3)),
        weights={"mask": 2.0, "dice": 0.5},
        final=Stage(name="last"),
    )
    assert type(recipe.optim.betas[1]) is float and type(recipe.weights["mask"]) is float


@pytest.mark.parametrize("text", ["2e-5", "2.0e-5", "0.00002", "2E-5", "+.2e-4"])
def test_a_rate_is_a_number_however_it_is_written(write, text):
    assert config.load(Recipe, write(f"optim: {{lr: {text}}}")).optim.lr == pytest.approx(2e-5)


def test_keys_left_out_take_their_defaults(write):
    assert config.load(Recipe, write(MINIMAL)) == Recipe(optim=Optim(lr=1.0))


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(optim=Optim(lr=2e-5)),
        Recipe(optim=Optim(lr=1.0, warmup=3), title="2e-5", model=Path("a b/c"), weights={"x": 1e-30}),
        Recipe(optim=Optim(lr=3.0), title="yes", stages=(Stage(name="null", steps=-2),), final=Stage(name="größer: #")),
    ],
)
def test_what_is_dumped_loads_as_an_equal_value(write, recipe):
    assert config.load(Recipe, write(config.dump(recipe))) == recipe


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr=2e-5", Recipe(optim=Optim(lr=2e-5))),
        ("model=other", Recipe(optim=Optim(lr=1.0), model=Path("other"))),
        ("title='a=b'", Recipe(optim=Optim(lr=1.0), title="a=b")),
        ("weights.mask=3", Recipe(optim=Optim(lr=1.0), weights={"mask": 3.0})),
        ("stages=[{name: one}]", Recipe(optim=Optim(lr=1.0), stages=(Stage(name="one"),))),
        ("final.name=end", Recipe(optim=Optim(lr=1.0), final=Stage(name="end"))),
        ("final=null", Recipe(optim=Optim(lr=1.0))),
        ("optim={lr: 5}", Recipe(optim=Optim(lr=5.0))),
    ],
)
def test_an_override_sets_one_value(write, override, expected):
    assert config.load(Recipe, write(MINIMAL), [override]) == expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    rate: float = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"

    RENAMED: ClassVar = {"lr": "rate", "schedule": {"flat": "constant"}}


@pytest.mark.parametrize(("text", "told"), [("lr: 2", "lr is called rate now"), ("schedule: flat", "flat is called")])
def test_an_old_name_is_read_and_told(write, caplog, text, told):
    assert config.load(Moved, write(text)) == (Moved(rate=2.0) if "lr" in text else Moved(schedule="constant"))
    assert [told in record.getMessage() for record in caplog.records] == [True]


def test_an_old_name_beside_the_new_one_is_unknown(write):
    with pytest.raises(ConfigError, match="unknown key 'lr'"):
        config.load(Moved, write("lr: 1\nrate: 2"))


def test_the_last_override_wins(write):
    assert config.load(Recipe, write(MINIMAL), ["optim.lr=2", "optim.lr=3"]).optim.lr == 3.0


def test_a_file_overrides_its_base_key_by_key(write):
    write("optim: {lr: 1, warmup: 5}\nweights: {mask: 2}\nstages: [{name: a}, {name: b}]\n", "base.yaml")
    recipe = config.load(
        Recipe, write("base: ../base.yaml\noptim: {lr: 3}\nweights: {dice: 1}\nstages: [{name: c}]\n", "sizes/big.yaml")
    )
    assert recipe.optim == Optim(lr=3.0, warmup=5)
    assert recipe.weights == {"mask": 2.0, "dice": 1.0}
    assert recipe.stages == (Stage(name="c"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: fast}", "optim.lr is 'fast', expected a number"),
        ("optim: {lr: '1.0'}", "optim.lr is '1.0', expected a number"),
        ("optim: {lr: true}", "optim.lr is True, expected a number"),
        ("optim: {lr: 1" + "0" * 400 + "}", "which is larger than any number here"),
        ("optim: {lr: null}", "optim.lr is None, expected a number"),
        (
            "optim: {lr: 1, lrs: 2}",
            "unknown key 'optim.lrs'; did you mean 'lr'? Known here: lr, betas, warmup, schedule",
        ),
        ("optim: {lr: 1}\nstage: []", "unknown key 'stage'; did you mean 'stages'?"),
        ("optim: {lr: 1}\n7: 1", "unknown key '7'. Known here: optim"),
        ("optim: {}", "missing optim.lr; no default"),
        ("", "missing optim; no default"),
        ("optim: 3", "optim is 3, expected a mapping with the keys lr, betas"),
        ("optim: {lr: 1, betas: [1]}", "optim.betas is [1], expected a list of 2 values"),
        ("optim: {lr: 1, betas: [1, x]}", "optim.betas[1] is 'x', expected a number"),
        ("optim: {lr: 1, warmup: 1.5}", "optim.warmup is 1.5, expected a whole number"),
        ("optim: {lr: 1, schedule: cosin}", "optim.schedule is 'cosin', expected one of 'cosine', 'constant'"),
        ("optim: {lr: 1}\nresume: 1", "resume is 1, expected true or false"),
        ("optim: {lr: 1}\ntitle: 5", "title is 5, expected text"),
        ("optim: {lr: 1}\nmodel: 5", "model is 5, expected a path"),
        ("optim: {lr: 1}\nstages: all", "stages is 'all', expected a list"),
        ("optim: {lr: 1}\nstages: [{name: a}, {steps: 1}]", "missing stages[1].name"),
        ("optim: {lr: 1}\nweights: [1]", "weights is [1], expected a mapping"),
        ("optim: {lr: 1}\nweights: {1: 1}", "weights is {1: 1}, expected a mapping with text keys"),
        ("optim: {lr: 1}\nweights: {mask: high}", "weights.mask is 'high', expected a number"),
        ("optim: {lr: -1}", "optim: lr is -1.0, expected more than 0"),
        ("optim: {lr: 1, lr: 2}", "key 'lr' stands twice in one mapping (line 1)"),
        ("optim: {lr: 1", "is not valid YAML: expected"),
        ("optim: !!python/name:os.system", "is not valid YAML: could not determine a constructor"),
        ("optim: {lr: 1, warmup: 010}", "010 (line 1) would be 8; write 8, or quote it"),
        ("optim: {lr: 1, warmup: 1:30}", "1:30 (line 1) would be 90"),
        ("title: 2024-13-45", "is not valid YAML: month must be in"),
        ("- 1", "holds [1], expected a mapping"),
        ("base: nowhere.yaml", "nowhere.yaml: No such file or directory; give a YAML file"),
        ("base: [a, b]", "base is ['a', 'b'], expected one path"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(write, text, message):
    with pytest.raises(ConfigError) as caught:
        config.load(Recipe, write(text))
    assert message in str(caught.value)
    assert "recipe.yaml" in str(caught.value) or "nowhere.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "'optim.lr' is not of the form key.subkey=value"),
        ("=1", "'=1' is not of the form"),
        ("optim..lr=1", "'optim..lr=1' is not of the form"),
        ("optim.lr.high=1", "--set optim.lr.high=1: there is no key 'high' in 1"),
        ("stages.0.name=x", "there is no key '0' in []; set the whole value"),
        ("optim.lr=[1", "--set optim.lr=[1 is not valid YAML"),
        ("optim.lr=fast", "recipe.yaml --set optim.lr=fast: optim.lr is 'fast', expected a number"),
    ],
)
def test_a_mistake_in_an_override_quotes_it(write, override, message):
    with pytest.raises(ConfigError) as caught:
        config.load(Recipe, write(MINIMAL + "stages: []\n"), [override])
    assert message in str(caught.value)


def test_a_base_of_a_base_is_refused(write):
    write(MINIMAL, "a.yaml")
    write("base: a.yaml", "b.yaml")
    with pytest.raises(ConfigError, match="its base b.yaml has a base itself"):
        config.load(Recipe, write("base: b.yaml"))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read .*: its text is no UTF-8"):
        config.load(Recipe, tmp_path / "recipe.yaml")


def test_a_field_that_yaml_cannot_express_is_a_bug_of_ours(write):
    @dataclass(frozen=True)
    class Wrong:
        when: set[int]

    with pytest.raises(TypeError, match="when is declared as"):
        config.load(Wrong, write("when: [1]"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    options: dict[str, bool | int | float | str | None] = field(default_factory=dict)


def test_where_several_plain_kinds_may_stand_a_value_keeps_its_own(write):
    free = config.load(Free, write("options: {a: true, b: 1, c: 1.5, d: word, e: null}\n"))
    assert free.options == {"a": True, "b": 1, "c": 1.5, "d": "word", "e": None}
    assert [type(value) for value in free.options.values()] == [bool, int, float, str, type(None)]


def test_a_list_is_none_of_the_plain_kinds(write):
    with pytest.raises(ConfigError, match=r"options\.a is \[1\], expected true or false or a whole number"):
        config.load(Free, write("options: {a: [1]}\n"))


def test_an_override_reaches_into_a_list_by_number(write):
    path = write(MINIMAL + "stages: [{name: align}, {name: all, steps: 3}]\n")
    recipe = config.load(Recipe, path, ["stages.1.steps=5"])
    assert [stage.steps for stage in recipe.stages] == [1, 5]
    with pytest.raises(ConfigError, match="there is no key '2' in"):
        config.load(Recipe, path, ["stages.2.steps=5"])
