import json
from dataclasses import replace

import pytest
import torch

from segue import loading
from segue.errors import ConfigError
from segue.train import batch_stream
from segue.train.batch_stream import BatchStream, ShardSpec, mixture_of, parts_of, step_seed
from segue.train.examples import RowMaker


@pytest.fixture
def stream(make_recipe, official_folder):
    def make(shard, **changes):
        recipe = make_recipe(**changes)
        loaded = loading.load(official_folder)
        maker = RowMaker(processor=loaded.processor, side=loaded.model.grounder.side, max_tiles=1)
        return BatchStream(mixture_of(recipe.data, recipe, recipe.output), maker, shard)

    return make


def test_processes_share_a_step_and_leave_nothing_out():
    shares = [ShardSpec(rank, 2, batch=3, accumulation=2) for rank in range(2)]
    taken = [
        place for step in range(2) for micro in range(2) for shard in shares for place in shard.positions(step, micro)
    ]
    assert taken == list(range(24))


def test_what_a_process_reads_is_its_part_of_what_one_process_would_read(stream):
    alone = stream(ShardSpec(0, 1, batch=1, accumulation=2))
    pair = [stream(ShardSpec(rank, 2, batch=1, accumulation=1)) for rank in range(2)]
    one = [alone[number].ids[0] for number in range(4)]
    two = [part[step].ids[0] for step in range(2) for part in pair]
    assert one == two


def test_there_are_never_more_workers_than_cores(stream, monkeypatch):
    monkeypatch.setattr(batch_stream, "own_cores", lambda: 1)
    monkeypatch.setattr(batch_stream, "DataLoader", lambda *_, **given: [given])
    (given,) = stream(ShardSpec(0, 1, batch=1, accumulation=1)).batches(0, 1, workers=8)
    assert given["num_workers"] == 1


def test_a_batch_depends_on_its_number_alone(stream):
    shard = ShardSpec(0, 1, batch=2, accumulation=1)
    one, other = stream(shard), stream(shard)
    for number in (3, 0):
        first, second = one[number], other[number]
        assert first.ids == second.ids
        assert torch.equal(first.batch.batch.input_ids, second.batch.batch.input_ids)


def test_bad_rows_are_left_out_and_a_batch_of_nothing_else_is_none(stream, make_recipe, draw, tmp_path):
    folder = draw(tmp_path / "mine")
    for number in range(3):
        (folder / "images" / f"{number}.png").write_bytes(b"no image")
    source = replace(make_recipe().data[0], root=folder)
    made = stream(ShardSpec(0, 1, batch=1, accumulation=1), data=(source,), on_bad_sample="skip", ceiling=0.9)
    batches = [made[number].batch for number in range(4)]
    assert sum(batch is None for batch in batches) == 3
    assert made.spare().batch.input_ids.shape[0] == 1


def test_an_error_comes_back_as_a_value(stream, make_recipe, draw, tmp_path):
    folder = draw(tmp_path / "mine")
    (folder / "images" / "2.png").write_bytes(b"no image")
    made = stream(ShardSpec(0, 1, batch=4, accumulation=1), data=(replace(make_recipe().data[0], root=folder),))
    assert "2.png" in str(made[0].error)


def test_the_same_dataset_twice_gets_numbers(make_recipe):
    source = make_recipe().data[0]
    assert [part.name for part in parts_of([source, source])] == ["folder:mine/all", "folder:mine/all#2"]


def test_an_unknown_option_names_the_dataset(make_recipe):
    with pytest.raises(ConfigError, match="dataset 'folder' at .* cannot take the options colour"):
        parts_of([replace(make_recipe().data[0], options={"colour": 1})])


def test_chance_differs_by_every_number():
    numbers = [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1)]
    assert len({step_seed(*each) for each in numbers}) == len(numbers)
    assert json.dumps(step_seed(*numbers[0]))
