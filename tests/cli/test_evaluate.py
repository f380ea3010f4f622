"""`segue evaluate` on the command line."""

import json
from pathlib import Path

import pytest
from asked import Bright, write_folder
from typer.testing import CliRunner

from segue import loading
from segue.cli.main import application
from segue.files import alone


@pytest.fixture
def evaluate(monkeypatch):
    """Runs `segue evaluate ...`; a model is named by the brightness that it finds."""

    def load(model, **_):
        return Bright(level=int(Path(model).name), name=model, broken=("dragon",))

    monkeypatch.setattr(loading, "load", load)

    def run(*words):
        return CliRunner().invoke(application(), ["evaluate", *map(str, words)], catch_exceptions=False)

    return run


@pytest.fixture
def mine(tmp_path):
    return write_folder(tmp_path / "mine")


def test_a_folder_of_ones_own_is_scored_and_reported(evaluate, mine, tmp_path):
    done = evaluate("bright/100", "--on", mine, "--phrase", "square", "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    (made,) = json.loads(done.stdout)
    assert made["figures"]["dice"] == 1.0 and made["n"] == 6
    written = {path.name for path in (tmp_path / "out" / "mine_test").iterdir()}
    assert written == {"run.json", "rows.jsonl", "report.json", "report.md", "report.html", "rows.csv", "timings.json"}
    assert "6 of 6 rows, model bright/100-100" in done.stderr
    assert done.stderr.count("is read as mask pictures (test/masks)") == 1
    assert done.stderr.startswith("reading the rows of ") and done.stderr.count("reading the rows of ") == 1


def test_the_same_command_goes_on_and_overwriting_begins_anew(evaluate, mine, tmp_path):
    words = ("bright/100", "--on", mine, "--phrase", "square", "-o", tmp_path / "out")
    assert evaluate(*words, "--limit", 2).exit_code == 0
    assert "2 of 6 are done already" in " ".join(evaluate(*words).stderr.split())
    other = evaluate("bright/200", *words[1:])
    assert other.exit_code == 2 and "holds rows of another run" in other.stderr
    assert evaluate("bright/200", *words[1:], "--overwrite").exit_code == 0


# the second is a training run's
@pytest.mark.parametrize("record", [None, '{"processes": 1, "device": "cpu"}', "{", "3"])
def test_overwriting_spares_what_is_no_evaluation(evaluate, mine, tmp_path, record):
    (tmp_path / "out/mine_test").mkdir(parents=True)
    (tmp_path / "out/mine_test/thesis.txt").write_text("")
    if record is not None:
        (tmp_path / "out/mine_test/run.json").write_text(record)
    done = evaluate("bright/100", "--on", mine, "--phrase", "square", "-o", tmp_path / "out", "--overwrite")
    assert done.exit_code == 2 and "is not overwritten" in done.stderr
    assert (tmp_path / "out/mine_test/thesis.txt").exists()
    assert (tmp_path / "out/mine_test/thesis.txt").exists()


def test_the_last_shard_writes_the_report(evaluate, mine, tmp_path):
    words = ("bright/100", "--on", mine, "--phrase", "square", "-o", tmp_path / "out")
    first = evaluate(*words, "--shard", "1/2")
    assert first.exit_code == 0 and "3 rows are other shards' work" in first.stderr
    assert not (tmp_path / "out/mine_test/report.json").exists()
    assert evaluate(*words, "--shard", "0/2").exit_code == 0
    assert json.loads((tmp_path / "out/mine_test/report.json").read_text())["n"] == 6


@pytest.mark.parametrize(("allowed", "code"), [(0, 2), (1, 0)])
def test_failed_rows_are_told_and_decide_the_exit_code(evaluate, mine, tmp_path, allowed, code):
    (mine / "test/images/patient0/1.png").write_bytes(b"damaged")
    done = evaluate("bright/100", "--on", mine, "--phrase", "square", "-o", tmp_path / "out", "--max-failures", allowed)
    assert done.exit_code == code and "1 rows failed and are in no figure" in done.stderr


def test_answers_are_scored_again_without_a_model(evaluate, mine, tmp_path, monkeypatch):
    evaluate("bright/100", "--on", mine, "--phrase", "square", "-o", tmp_path / "out")
    out = tmp_path / "out/mine_test"
    before = (out / "report.json").read_bytes()
    (out / "report.json").unlink()
    monkeypatch.setattr(loading, "load", None)
    assert evaluate("--rescore", out).exit_code == 0
    assert (out / "report.json").read_bytes() == before
    mine.rename(tmp_path / "moved")
    assert evaluate("--rescore", out).exit_code == 2
    for words in (("--data", tmp_path / "moved"), ()):
        assert evaluate("--rescore", out, *words).exit_code == 0, "the run remembers where its data are"


def test_options_of_a_cache_without_one_are_told(evaluate, mine, tmp_path):
    words = ("bright/100", "--on", mine, "--phrase", "square", "-o", tmp_path / "out", "--limit", 1)
    assert "no effect without --cache" in evaluate(*words, "--cache-format", "int8").stderr
    assert "no effect" not in evaluate(*words).stderr


def test_two_runs_are_compared(evaluate, mine, tmp_path):
    for level in ("100", "250"):
        evaluate(f"bright/{level}", "--on", mine, "--phrase", "square", "-o", tmp_path / level)
    runs = [tmp_path / level / "mine_test" for level in ("100", "250")]
    (first, *_) = json.loads(evaluate("compare", *runs, "--json").stdout)
    assert (first["figure"], first["difference"], first["p"]) == ("dice", -1.0, 0.25), "there are three groups"
    assert "may be luck" in evaluate("compare", *runs).stdout
    same = evaluate("compare", runs[0], runs[0])
    assert same.exit_code == 2 and "the same weights" in same.stderr


def test_benchmarks_are_listed(evaluate):
    names = {one["name"] for one in json.loads(evaluate("list", "--json").stdout)}
    assert {"scenes_test", "refcoco_val", "mevis_u", "mme"} <= names
    assert "scenes_test" in evaluate("list").stdout


def test_a_benchmark_that_cannot_be_run_keeps_no_other_from_it(evaluate, mine, tmp_path):
    (tmp_path / "none").mkdir()
    both = f"{tmp_path / 'none'},{mine}"
    done = evaluate("bright/100", "--on", both, "--phrase", "square", "-o", tmp_path / "out", "--json")
    assert (done.exit_code, [made["n"] for made in json.loads(done.stdout)]) == (2, [6])
    assert "error: none_test: " in done.stderr and "not evaluated: none_test; once" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("demo",), "say which model, on what, and where to"),
        (("demo", "--on", "nothing_val", "-o", "out"), "no benchmark and no folder 'nothing_val'"),
        (("demo", "--on", "scenes_test", "-o", "out", "--split", "val"), "split are for folders of your own"),
        (("demo", "--rescore", "out"), "leave MODEL away"),
        (("--rescore", "out", "--protocol", "upstream", "--workers", "2"), "leave --protocol, --workers away"),
        (("--rescore", "out", "--threshold", "0.3", "--raw"), "leave --raw, --threshold away"),
        (("--rescore", "out", "--device", "cuda", "--overwrite"), "leave --device, --overwrite away"),
        (("--rescore", "nowhere"), "holds no evaluation"),
        (("compare", "nowhere", "else"), "holds no evaluation"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(evaluate, words, message):
    done = evaluate(*words)
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_overwriting_spares_what_other_shards_do_and_a_run_at_work(evaluate, mine, tmp_path):
    words = ("bright/100", "--on", mine, "--phrase", "square", "-o", tmp_path / "out")
    evaluate(*words, "--shard", "1/2")
    rows = tmp_path / "out/mine_test/rows-1-of-2.jsonl"
    done = evaluate(*words, "--shard", "0/2", "--overwrite")
    assert done.exit_code == 2 and "what other shards have answered" in done.stderr and rows.is_file()
    with alone(rows):
        done = evaluate(*words, "--overwrite")
    assert done.exit_code == 2 and "another run is writing" in done.stderr and rows.is_file()


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "0/0"])
def test_a_shard_is_one_of_several(evaluate, mine, tmp_path, shard):
    done = evaluate("bright/100", "--on", mine, "--phrase", "square", "-o", tmp_path / "out", "--shard", shard)
    assert done.exit_code == 2 and "is no shard" in done.stderr
