"""Forms of records, templates around them, and errors that name the record."""

import json

import pytest

from keras_randlora.data.records import read_records
from keras_randlora.data.templates import TEMPLATES, Turn
from keras_randlora.data.tokens import joined

pytestmark = pytest.mark.any_backend

ASKED = [Turn("user", "Which metal is liquid?"), Turn("assistant", "Mercury")]


def turns(*records):
    return [record.turns for record in read_records(list(records))]


def marked(template, conversation):
    """Return the text of a conversation with [what is learned] and | for the end."""
    text = ""
    for piece in joined(TEMPLATES[template].pieces(conversation)):
        text += f"[{piece.text}]" if piece.learned else piece.text
        text += "|" if piece.ends else ""
    return text


def test_every_form_says_the_same():
    question, answer = (turn.content for turn in ASKED)
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    found = turns(
        {"instruction": question, "output": answer, "input": None, "text": "no"},
        {"prompt": question, "completion": answer},
        {"prompt": question, "response": answer, "id": 3},
        {"messages": messages},
    )
    assert found == [ASKED] * 4
    assert turns("plain", {"text": "plain"}) == [[Turn("assistant", "plain")]] * 2
    (asked, _), *_ = turns({"instruction": "Add.", "input": "1 + 1", "output": "2"})
    assert asked == Turn("user", "Add.", "1 + 1")


def test_columns_are_records():
    columns = {"prompts": ["a", "b"], "responses": ["c", "d"]}
    expected = turns({"prompt": "a", "response": "c"}, {"prompt": "b", "response": "d"})
    assert [record.turns for record in read_records(columns)] == expected


def test_files(tmp_path):
    records = [{"prompt": "a", "completion": "b"}, {"text": "naïve"}]
    as_list, as_lines = tmp_path / "list.json", tmp_path / "lines.jsonl"
    as_list.write_text(json.dumps(records), "utf-8")
    as_lines.write_text("\n\n".join(map(json.dumps, records)) + "\n", "utf-8")
    for source in (as_list, str(as_lines)):
        assert [r.turns for r in read_records(source)] == turns(*records)


@pytest.mark.parametrize(
    "records, message",
    [
        (
            [{"prompt": "a", "completion": "b"}, {"question": "a", "answer": "b"}],
            r"^records\[1\]: .*Received the keys: 'question', 'answer'\.",
        ),
        ([{"instruction": "a"}], r"^records\[0\]: .*Received the keys: 'instruction'"),
        ([{}], "Received the keys: none"),
        ([3], r"^records\[0\]: a record is a mapping or a text. Received: int"),
        ([{"prompt": "a", "completion": 3}], "`completion` must be .* completion=3"),
        ([{"messages": "hello"}], "must be a list of messages. Received: str"),
        (
            [{"messages": [{"role": "user"}]}],
            r"^records\[0\], messages\[0\]: .*Received: \['role'\]",
        ),
        (
            [{"messages": [{"role": "tool", "content": "a"}]}],
            r"messages\[0\]: `role` must be one of .*Received: role='tool'",
        ),
        (
            [{"messages": [{"role": "user", "content": "a"}]}],
            r"'assistant' to learn. Received the roles: \['user'\]",
        ),
        ([], "at least one record"),
        ({"prompts": ["a", "b"], "responses": ["c"]}, "'prompts': 2, 'responses': 1"),
        ({"prompt": "a", "completion": "b"}, r"pass a single record as \[record\]"),
    ],
)
def test_a_bad_record_is_named_with_its_keys(records, message):
    with pytest.raises(ValueError, match=message):
        read_records(records)


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": ')
    with pytest.raises(ValueError, match=r"data\.jsonl, line 3: not valid JSON"):
        read_records(path)
    path.write_text('{"text": "a"}\n{"question": "a"}')
    with pytest.raises(ValueError, match=r"data\.jsonl, line 2: .*'question'"):
        read_records(path)
    with pytest.raises(ValueError, match="ends in '.json' or '.jsonl'"):
        read_records(tmp_path / "data.csv")
    with pytest.raises(TypeError, match="Received: records='data.csv'"):
        read_records("data.csv")


TALK = [Turn("system", "Be brief."), *ASKED, Turn("user", "Sure?")]
TALK += [Turn("assistant", "Yes.")]


@pytest.mark.parametrize(
    "template, text",
    [
        (
            "alpaca",
            "Be brief.\n\n### Instruction:\nWhich metal is liquid?\n\n"
            "### Response:\n[Mercury]|\n\n### Instruction:\nSure?\n\n"
            "### Response:\n[Yes.]|",
        ),
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nWhich metal is liquid?<|im_end|>\n"
            "<|im_start|>assistant\n[Mercury<|im_end|>]\n"
            "<|im_start|>user\nSure?<|im_end|>\n"
            "<|im_start|>assistant\n[Yes.<|im_end|>]",
        ),
        (
            "gemma",
            "<start_of_turn>user\nBe brief.\n\nWhich metal is liquid?<end_of_turn>\n"
            "<start_of_turn>model\n[Mercury<end_of_turn>]\n"
            "<start_of_turn>user\nSure?<end_of_turn>\n"
            "<start_of_turn>model\n[Yes.<end_of_turn>]",
        ),
        (
            "llama3",
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n"
            "Which metal is liquid?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[Mercury<|eot_id|>]"
            "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[Yes.<|eot_id|>]",
        ),
        (
            "mistral",
            "[INST] Be brief.\n\nWhich metal is liquid? [/INST][Mercury]|"
            "[INST] Sure? [/INST][Yes.]|",
        ),
    ],
)
def test_conversations(template, text):
    assert marked(template, TALK) == text


def test_the_alpaca_preamble_says_whether_there_is_an_input():
    plain = marked("alpaca", [Turn("user", "Add."), Turn("assistant", "2")])
    assert plain == (
        "Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\nAdd.\n\n"
        "### Response:\n[2]|"
    )
    about = [Turn("user", "Add {content}.", "1 {context}"), Turn("assistant", "2")]
    assert marked("alpaca", about) == (
        "Below is an instruction that describes a task, paired with an input that "
        "provides further context. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nAdd {content}.\n\n### Input:\n1 {context}\n\n"
        "### Response:\n[2]|"
    )
    assert "Add {content}.\n\n1 {context}<|im_end|>" in marked("chatml", about)
