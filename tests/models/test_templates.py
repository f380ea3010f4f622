import pytest

from segue.errors import CheckpointError, ConfigError
from segue.models.templates import TEMPLATES, opening, stop_check, template

IM_USER = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
PHI_USER = "<|user|>\nhello<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("name", "user", "answer_end", "stops"),
    [
        ("qwen_chat", IM_USER, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
        ("internlm2_chat", IM_USER, "<|im_end|>", ("<|im_end|>",)),
        ("phi3_chat", PHI_USER, "<|end|>", ("<|end|>",)),
    ],
)
def test_a_template_has_exactly_the_strings_its_checkpoints_were_trained_with(name, user, answer_end, stops):
    chat = template(name)
    assert chat.user.replace("{text}", "hello") == user
    assert (chat.answer_end, chat.stops, chat.separator) == (answer_end, stops, "\n")


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("qwen_chat", "<|im_start|>system\nbe kind<|im_end|>\n"),
        ("internlm2_chat", "<|im_start|>system\nbe kind<|im_end|>\n"),
        ("phi3_chat", "<|system|>\nbe kind<|end|>\n"),
    ],
)
def test_a_template_has_a_system_turn_for_whoever_wants_one(name, system):
    assert template(name).system.replace("{text}", "be kind") == system


def test_a_template_name_may_be_spelled_with_hyphens():
    assert template("internlm2-chat") is TEMPLATES["internlm2_chat"]


def test_an_unknown_template_is_refused_with_the_known_names():
    with pytest.raises(ConfigError, match=r"'vicuna'.*qwen_chat, .*internlm2_chat, phi3_chat"):
        template("vicuna")


@pytest.fixture
def ends(byte_tokenizer):
    """Whether an answer of this text is over under a template; the text is tokenised as the model would write it."""

    def judge(name, text, eos_ids=()):
        ids = byte_tokenizer.encode(text, add_special_tokens=False)
        return stop_check(byte_tokenizer, template(name), eos_ids)(ids)

    return judge


@pytest.mark.parametrize(
    ("name", "text", "is_over"),
    [
        ("qwen_chat", "Sure, [SEG].<|im_end|>", True),
        ("qwen_chat", "Sure, [SEG].<|endoftext|>", True),
        ("qwen_chat", "Sure, [SEG].", False),
        ("qwen_chat", "", False),
        ("internlm2_chat", "done<|im_end|>", True),
        ("internlm2_chat", "done<|endoftext|>", False),
        ("phi3_chat", "done<|end|>", True),
        ("phi3_chat", "[SEG].<|end|>", True),
        ("phi3_chat", "日本.<|end|>", True),
        ("phi3_chat", "done<|end|", False),
        ("phi3_chat", "done<|end", False),
        ("phi3_chat", "done<|im_end|>", False),
        ("phi3_chat", "word " * 50 + "<|end|>", True),
    ],
)
def test_an_answer_is_over_at_its_templates_stop_string(ends, name, text, is_over):
    assert ends(name, text) == is_over


def test_a_multi_token_stop_is_found_where_its_pieces_merged_with_their_neighbours(byte_tokenizer, ends):
    pieces = byte_tokenizer.tokenize("[SEG].<|end|>\n")
    assert pieces == ["[SEG]", ".<", "|", "end", "|>Ċ"]  # no piece begins or ends where the stop string does
    assert ends("phi3_chat", "[SEG].<|end|>\n")


def test_a_multi_token_stop_is_found_where_it_is_spelled_letter_by_letter(byte_tokenizer):
    ids = [number for letter in "It is <|end|>" for number in byte_tokenizer.encode(letter, add_special_tokens=False)]
    is_over = stop_check(byte_tokenizer, template("phi3_chat"), ())
    assert [is_over(ids[:length]) for length in (0, len(ids) - 1, len(ids))] == [False, False, True]


def test_the_end_of_sequence_token_ends_an_answer_under_any_template(ends, byte_tokenizer):
    eos = byte_tokenizer.eos_token_id
    assert ends("phi3_chat", "done<|im_end|>", (eos,))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "answer",
    [
        "It is [SEG].<|im_end|> and on",
        "Sure, [SEG].<|end|>\nmore",
        "a<|en d|><|end|>",
        "a <|end|>",
        "ünï <|<|end|>|>",
        "x<|endoftext|>y",
        "no end at all",
    ],
)
def test_parity_stop_text_is_noticed_at_the_same_token_as_in_the_whole_decoded_text(byte_tokenizer, name, answer):
    ids = byte_tokenizer.encode(answer, add_special_tokens=False)
    chat = template(name)
    is_over = stop_check(byte_tokenizer, chat, ())

    def upstream(generated):
        text = byte_tokenizer.decode(generated, skip_special_tokens=False).replace("\r\n", "")
        return any(stop in text for stop in chat.stops)

    first = [next((n for n in range(1, len(ids) + 1) if judge(ids[:n])), None) for judge in (is_over, upstream)]
    assert first[0] == first[1]


class Rendered:
    """A tokenizer whose chat template gives a fixed text, or fails."""

    def __init__(self, text):
        self.text = text

    def apply_chat_template(self, conversation, *, tokenize, add_generation_prompt):
        if isinstance(self.text, Exception):
            raise self.text
        return self.text


QUESTION = "<|im_start|>user\n<image>a question<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("before", ["", "<|im_start|>system\nBe kind.<|im_end|>\n"])
def test_what_a_checkpoints_template_puts_before_a_question_is_its_opening(before):
    assert opening(Rendered(before + QUESTION), template("qwen_chat"), "<image>") == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<|im_start|>user\na question<|im_end|>\n<|im_start|>assistant\n", "expected it to end in"),
        (QUESTION + "<think>\n", "expected it to end in"),
        (ValueError("only text, please"), r"cannot be rendered \(only text, please\)"),
    ],
)
def test_a_checkpoints_template_that_asks_in_another_way_is_refused(text, words):
    with pytest.raises(CheckpointError, match=words):
        opening(Rendered(text), template("qwen_chat"), "<image>")
