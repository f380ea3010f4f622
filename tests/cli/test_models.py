"""`segue models`."""

import json


def test_the_table_says_what_people_choose_by(run_segue):
    text = run_segue("models").stdout
    for words in ("ByteDance/Sa2VA-4B", "3.942 B", "apache-2.0 + qwen-research", "82.4/77.6/79.7", "consistent"):
        assert words in text


def test_json_has_every_figure(run_segue):
    models = {one["name"]: one for one in json.loads(run_segue("models", "--json").stdout)}
    one, other = models["Sa2VA-4B"], models["Sa2VA-i-1B"]
    assert (one["name"], one["repository"], one["parameters"]) == ("Sa2VA-4B", "ByteDance/Sa2VA-4B", 3941809714)
    assert one["release"]["scores"]["refcoco"] == 82.4 and one["weights"]["bf16"] > one["weights"]["int8"]
    assert other["policy"] == "consistent" and other["release"]["licence"] is None
