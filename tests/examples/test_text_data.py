"""Tests of `examples/text_data.py` with a tokenizer whose tokens are characters."""

import json

import numpy as np
import pytest
from text_data import (
    Document,
    TextDataError,
    alpaca_prompt,
    load_documents,
    pack,
    split,
)

pytestmark = pytest.mark.any_backend

START, END = 1, 2


class CharacterTokenizer:
    """One token a character, its code point."""

    start_token_id = START
    end_token_id = END

    def tokenize(self, inputs):
        return [ord(character) for character in inputs]


class BareTokenizer:
    """The same without a start or an end token."""

    tokenize = CharacterTokenizer.tokenize


def codes(text):
    return [ord(character) for character in text]


def plain(*texts):
    return [Document("", text) for text in texts]


def write(folder, name, content):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


# Reading.


def test_default_documents_are_pythons_help_topics():
    documents = load_documents()
    assert len(documents) > 50
    assert all(document.prompt == "" for document in documents)
    assert any("nonlocal" in document.text for document in documents)
    assert sum(len(document.text) for document in documents) > 200_000


def test_plain_text_is_one_document(tmp_path):
    path = write(tmp_path, "story.txt", "Once upon a time.\n\nThe end, naïve.\n")
    assert load_documents(path) == plain("Once upon a time.\n\nThe end, naïve.\n")


def test_alpaca_lines(tmp_path):
    lines = [
        {"instruction": "Add.", "input": "1 + 1", "output": "2"},
        {"instruction": "Greet.", "input": "", "output": "Hello."},
        {"instruction": "Wave.", "output": "o/"},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
    assert load_documents(write(tmp_path, "data.jsonl", text)) == [
        Document(
            "Below is an instruction that describes a task, paired with an input that "
            "provides further context. Write a response that appropriately completes "
            "the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 + 1\n\n"
            "### Response:\n",
            "2",
        ),
        Document(
            "Below is an instruction that describes a task. Write a response that "
            "appropriately completes the request.\n\n### Instruction:\nGreet.\n\n"
            "### Response:\n",
            "Hello.",
        ),
        Document(alpaca_prompt("Wave."), "o/"),
    ]


def test_alpaca_list_equals_lines(tmp_path):
    records = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(3)]
    as_list = write(tmp_path, "list.json", json.dumps(records, indent=2))
    as_lines = write(tmp_path, "lines.json", "\n".join(map(json.dumps, records)))
    assert load_documents(as_list) == load_documents(as_lines)
    assert len(load_documents(as_list)) == 3


def test_braces_in_an_instruction_are_text():
    assert "{input} {}" in alpaca_prompt("Format {input} {}.")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", " \n", r"empty\.txt is empty"),
        ("empty.jsonl", "", r"empty\.jsonl is empty"),
        (
            "bad.jsonl",
            '{"instruction": "a", "output": "b"}\n\n{"instruction": ',
            r"bad\.jsonl, line 3: not valid JSON",
        ),
        ("cut.json", '[{"instruction": "a", ', r"cut\.json: not valid JSON"),
        ("list.jsonl", '"text"', r"line 1: expected a JSON object. Received: str"),
        (
            "chat.jsonl",
            '{"prompt": "a", "answer": "b"}',
            r"line 1: .*`instruction` and `output`\. Received: answer, prompt",
        ),
        (
            "list.json",
            '[{"instruction": "a", "output": "b"}, {"output": "b"}]',
            r"list\.json, record 2: .*Received: output",
        ),
        (
            "number.jsonl",
            '{"instruction": "a", "output": 3}',
            r"line 1: `instruction`, `input`, `output` must be text",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    with pytest.raises(TextDataError, match=message):
        load_documents(write(tmp_path, name, content))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(TextDataError, match=r"nowhere\.txt: No such file"):
        load_documents(tmp_path / "nowhere.txt")


def test_folder_is_refused(tmp_path):
    with pytest.raises(TextDataError, match="Is a directory"):
        load_documents(tmp_path)


def test_other_encodings_are_refused(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(TextDataError, match=r"latin\.txt: it is not UTF-8 text"):
        load_documents(path)


# Splitting.


def test_every_tenth_document_is_held_out():
    documents = plain(*(f"text {i}" for i in range(25)))
    training, held_out = split(documents)
    assert held_out == plain("text 9", "text 19")
    assert [d for d in documents if d not in held_out] == training


def test_of_few_documents_the_last_is_held_out():
    training, held_out = split(plain("a", "b", "c"))
    assert training == plain("a", "b")
    assert held_out == plain("c")


def test_one_document_is_cut_between_words_near_its_end():
    words = " ".join(f"w{i}" for i in range(1000))
    (training,), (held_out,) = split(plain(words), held_out=0.2)
    assert training.text + held_out.text == words
    assert training.text.endswith(" ")
    assert len(held_out.text) / len(words) == pytest.approx(0.2, abs=0.01)


def test_paragraphs_held_out_are_removed_from_training():
    documents = plain("A\n\nshared\n\nB", "shared", "C\n\nshared\n\nD")
    training, held_out = split(documents, held_out=0.5)
    assert held_out == plain("shared")
    assert training == plain("A\n\nB", "C\n\nD")


def test_records_held_out_are_removed_from_training():
    same = Document("question", "answer")
    other = Document("question", "another answer")
    training, held_out = split([same, other, same])
    assert held_out == [same]
    assert training == [other]


def test_help_topics_held_out_are_never_trained_on():
    training, held_out = split(load_documents(), held_out=0.2)
    trained = {p for d in training for p in d.text.split("\n\n")}
    assert held_out
    assert not trained & {p for d in held_out for p in d.text.split("\n\n")}


@pytest.mark.parametrize("documents", [plain("word"), [Document("prompt", "a b")]])
def test_nothing_to_hold_out(documents):
    with pytest.raises(TextDataError, match="Nothing can be held out"):
        split(documents)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 0.6])
def test_bad_fraction(fraction):
    with pytest.raises(TextDataError, match=f"Received: held_out={fraction}"):
        split(plain("a b", "c d"), held_out=fraction)


# Packing.


def test_windows_predict_the_next_token():
    windows = pack(plain("abc", "defg"), CharacterTokenizer(), length=4)
    # The stream is a b c END d e f g END: two windows of four, END left over.
    np.testing.assert_array_equal(
        windows.token_ids, [[START, *codes("abc")], [START, *codes("def")]]
    )
    np.testing.assert_array_equal(
        windows.targets, [[*codes("abc"), END], codes("defg")]
    )
    np.testing.assert_array_equal(windows.weights, np.ones((2, 4)))


def test_windows_without_start_and_end_tokens():
    windows = pack(plain("abcd", "efghij"), BareTokenizer(), length=4)
    np.testing.assert_array_equal(windows.token_ids, [codes("abcd"), codes("fghi")])
    np.testing.assert_array_equal(windows.targets, [codes("bcde"), codes("ghij")])


def test_only_answers_are_learned():
    windows = pack([Document("ask", "yes")] * 2, CharacterTokenizer(), length=7)
    np.testing.assert_array_equal(windows.targets, [[*codes("askyes"), END]] * 2)
    np.testing.assert_array_equal(windows.weights, [[0, 0, 0, 1, 1, 1, 1]] * 2)


def test_windows_without_an_answer_are_dropped():
    documents = [Document("x" * 8, "yes")] * 2
    windows = pack(documents, CharacterTokenizer(), length=4)
    # 8 prompt tokens fill two windows; the answer and its END fill the third.
    np.testing.assert_array_equal(windows.targets, [[*codes("yes"), END]] * 2)


def test_window_types_and_inputs():
    windows = pack(plain("abcdefgh"), CharacterTokenizer(), length=3)
    assert windows.token_ids.dtype == windows.targets.dtype == np.int32
    assert windows.weights.dtype == np.float32
    assert set(windows.inputs) == {"token_ids", "padding_mask"}
    np.testing.assert_array_equal(windows.inputs["padding_mask"], np.ones((3, 3)))


def test_spread_takes_windows_evenly():
    windows = pack(plain("abcdefghi"), CharacterTokenizer(), length=1)
    chosen = windows.spread(4)
    np.testing.assert_array_equal(chosen.targets[:, 0], [*codes("adg"), END])
    assert len(windows.spread(100).targets) == 10


@pytest.mark.parametrize(
    ("documents", "received"),
    [
        ([], r"0 document\(s\), 0 tokens"),
        (plain("short"), r"1 document\(s\), 6 tokens"),
        ([Document("x" * 40, "yes")], r"1 document\(s\), 44 tokens"),
    ],
)
def test_too_little_text(documents, received):
    message = rf"window of 16 tokens .* Received: {received}\. Give more text"
    with pytest.raises(TextDataError, match=message):
        pack(documents, CharacterTokenizer(), length=16)
