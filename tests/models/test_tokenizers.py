import io
import json

import pytest
import sentencepiece

from segue.errors import CheckpointError
from segue.models.tokenizers import check_length, load_chat_template, load_tokenizer, save_tokenizer, single_id

TEXTS = [
    "Please segment the cat.",
    "  two  spaces, tabs\tand\nlines\n\n",
    "naïve café, 日本語 and 😀 in one",
    "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\nWhere?<|im_end|>\n",
    "It is [SEG], and <p> a dog </p> [SEG].",
    "",
]
ADDED = ["<img>", "</img>", "<IMG_CONTEXT>", "[SEG]", "<p>", "</p>", "<vp>", "</vp>"]


@pytest.fixture(scope="module")
def sentencepiece_bytes():
    """Trains a small SentencePiece model in memory."""

    def train(**options):
        lines = [
            f"the quick brown fox number {number} jumps over the lazy dog, please segment it" for number in range(60)
        ]
        written = io.BytesIO()
        settings = {"model_type": "bpe", "byte_fallback": True, "vocab_size": 330, "add_dummy_prefix": False}
        settings |= {"remove_extra_whitespaces": False, "normalization_rule_name": "identity", "minloglevel": 9}
        settings |= {"user_defined_symbols": ["<|im_start|>", "<|im_end|>"]}
        trainer = sentencepiece.SentencePieceTrainer
        trainer.train(sentence_iterator=iter(lines), model_writer=written, **settings | options)
        return written.getvalue()

    return train


@pytest.fixture
def internlm2(tmp_path, sentencepiece_bytes):
    """Writes a folder in InternLM2's layout, with added tokens from the first free id on."""

    def write(added=None, **options):
        model = sentencepiece_bytes(**options)
        (tmp_path / "tokenizer.model").write_bytes(model)
        reader = sentencepiece.SentencePieceProcessor(model_proto=model)
        first = reader.vocab_size()
        numbers = {token: first + number for number, token in enumerate(ADDED)} if added is None else added(first)
        (tmp_path / "added_tokens.json").write_text(json.dumps(numbers))
        settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return tmp_path, reader

    return write


def test_a_tokenizer_file_is_read_as_it_was_written(byte_tokenizer, tmp_path):
    save_tokenizer(byte_tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    for text in TEXTS:
        ids = byte_tokenizer.encode(text, add_special_tokens=False)
        assert loaded.encode(text, add_special_tokens=False) == ids
        assert loaded.decode(ids, skip_special_tokens=False) == text
    assert (loaded.eos_token, loaded.pad_token, len(loaded)) == ("<|im_end|>", "<|endoftext|>", len(byte_tokenizer))


def test_nothing_is_added_around_a_text(byte_tokenizer):
    assert byte_tokenizer.encode("[SEG]", add_special_tokens=True) == byte_tokenizer.encode(
        "[SEG]", add_special_tokens=False
    )


def test_a_qwen_vocabulary_with_merges_gives_the_ids_of_its_slow_tokenizer(tmp_path, byte_tokenizer):
    vocabulary = {token: number for token, number in byte_tokenizer.get_vocab().items() if number < 262}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n. <\n< |\n| >\ne n\nen d\n")
    decoder = {
        str(number): {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
        for token, number in byte_tokenizer.get_added_vocab().items()
    }
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("[SEG].<|end|>", add_special_tokens=False) == byte_tokenizer.encode("[SEG].<|end|>")
    assert loaded.eos_token_id == byte_tokenizer.eos_token_id


@pytest.mark.parametrize(
    "text", ["please segment the dog", "日本語 😀 ünï", "  two  spaces\nline", "", "jumps over it"]
)
@pytest.mark.parametrize("add_dummy_prefix", [False, True])
def test_a_sentencepiece_model_gives_the_ids_of_its_own_library(internlm2, text, add_dummy_prefix):
    folder, reader = internlm2(add_dummy_prefix=add_dummy_prefix)
    loaded = load_tokenizer(folder)
    assert loaded.encode(text, add_special_tokens=False) == reader.encode(text)
    assert loaded.decode(reader.encode(text), skip_special_tokens=False).lstrip(" ") == text.lstrip(" ")


def test_a_sentencepiece_model_keeps_special_and_added_tokens_whole(internlm2):
    folder, reader = internlm2()
    loaded = load_tokenizer(folder)
    text = "<|im_start|>the fox<img><IMG_CONTEXT></img>[SEG]<|im_end|>"
    seg = reader.vocab_size() + ADDED.index("[SEG]")
    ids = loaded.encode(text, add_special_tokens=False)
    assert [ids[0], ids[-2], ids[-1]] == [reader.piece_to_id("<|im_start|>"), seg, reader.piece_to_id("<|im_end|>")]
    assert loaded.decode(ids, skip_special_tokens=False) == text
    assert (loaded.bos_token_id, loaded.eos_token_id) == (reader.bos_id(), reader.eos_id())
    assert len(loaded) == reader.vocab_size() + len(ADDED)


@pytest.mark.parametrize(
    "numbers",
    [lambda first: {"[SEG]": first + 1}, lambda first: {"[SEG]": first, "<p>": first + 2}],
)
def test_added_tokens_with_gaps_are_refused(internlm2, numbers):
    folder, _ = internlm2(added=numbers)
    with pytest.raises(CheckpointError, match="without gaps"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "options", [{"model_type": "unigram", "vocab_size": 300}, {"byte_fallback": False, "vocab_size": 90}]
)
def test_a_sentencepiece_model_of_another_kind_is_refused(internlm2, options):
    folder, _ = internlm2(**options)
    with pytest.raises(CheckpointError, match="byte fallback"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer"),
        ({"vocab.json": "{}"}, "no tokenizer"),
        ({"tokenizer.json": "{}"}, "cannot be read"),
        ({"tokenizer.json": "not json"}, "cannot be read"),
        ({"tokenizer.model": "not a model"}, "cannot be read"),
        ({"vocab.json": "[]", "merges.txt": ""}, "is empty"),
    ],
)
def test_missing_or_broken_tokenizer_files_are_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path)


def test_a_token_that_must_be_one_token_is_found_by_name(byte_tokenizer):
    rows = len(byte_tokenizer)
    assert single_id(byte_tokenizer, "[SEG]", rows) == byte_tokenizer.convert_tokens_to_ids("[SEG]")


@pytest.mark.parametrize(
    ("token", "rows", "message"),
    [
        ("[MASK]", 999, r"'\[MASK\]' as \["),
        ("", 999, r"as \[\]"),
        ("[SEG]", 268, "has id 268 and the model 268 embedding rows"),
    ],
)
def test_a_split_unknown_or_rowless_token_is_refused(byte_tokenizer, token, rows, message):
    with pytest.raises(CheckpointError, match=message):
        single_id(byte_tokenizer, token, rows)


def test_an_unknown_token_is_refused_where_it_maps_to_unk():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "cat": 1}, unk_token="<unk>"))
    with pytest.raises(CheckpointError, match="reads '\\[SEG\\]' as \\[0\\]"):
        single_id(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), "[SEG]", 2)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({"tokenizer_config.json": "{}"}, None),
        ({"tokenizer_config.json": '{"chat_template": "old"}'}, "old"),
        (
            {"tokenizer_config.json": '{"chat_template": "old"}', "chat_template.json": '{"chat_template": "newer"}'},
            "newer",
        ),
        ({"chat_template.json": '{"chat_template": "newer"}', "chat_template.jinja": "newest"}, "newest"),
        ({"tokenizer_config.json": '{"chat_template": [{"name": "default"}]}'}, None),
    ],
)
def test_a_chat_template_is_found_wherever_the_library_keeps_one(files, found, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert load_chat_template(tmp_path) == found


def test_a_chat_template_that_is_no_text_is_a_user_error(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(CheckpointError, match="chat_template.jinja cannot be read"):
        load_chat_template(tmp_path)


def test_more_tokens_than_embedding_rows_are_refused(byte_tokenizer, tmp_path):
    check_length(byte_tokenizer, len(byte_tokenizer), tmp_path)
    with pytest.raises(CheckpointError, match="take the tokenizer of these weights"):
        check_length(byte_tokenizer, len(byte_tokenizer) - 1, tmp_path)
