"""The loss of `fit` and `evaluate` on records, against a sum written by hand."""

import json

import keras
import keras_hub
import numpy as np
import pytest
import tiny_presets
from versions import NEEDS_LASTING_TOKENIZERS

import keras_randlora as kr

# keras-hub hands a `tf.data.Dataset` to `fit`, which warns about its own default.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
    NEEDS_LASTING_TOKENIZERS,
]

RECORDS = [
    {"prompt": "the full rank ", "completion": "of an update"},
    {"prompt": "random ", "completion": "bases and trainable diagonals"},
    {"prompt": "the ", "completion": "bases"},
]
SIZES = dict(
    num_layers=1, num_query_heads=2, num_key_value_heads=1, hidden_dim=8,
    intermediate_dim=12,
)  # fmt: skip


def byte_pairs(kind):
    """Return a byte-pair tokenizer of letters with the tokens of ChatML."""
    letters = [*"abcdefghijklmnopqrstuvwxyzĠĊ", "th"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    return kind(vocabulary=vocabulary, merges=["t h"], unsplittable_tokens=special)


def with_text(name, tokenizer, **sizes):
    """Return a causal language model of one block."""
    models = keras_hub.models
    keras.utils.set_random_seed(0)
    backbone = getattr(models, f"{name}Backbone")(
        vocabulary_size=tokenizer.vocabulary_size(), **sizes
    )
    preprocessor = getattr(models, f"{name}CausalLMPreprocessor")(tokenizer)
    return getattr(models, f"{name}CausalLM")(backbone, preprocessor=preprocessor)


def mistral():
    tokenizer = keras_hub.models.MistralTokenizer(proto=tiny_presets.words())
    return with_text("Mistral", tokenizer, **SIZES)


def gpt2():
    sizes = dict(num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=12)
    tokenizer = byte_pairs(keras_hub.models.GPT2Tokenizer)
    return with_text("GPT2", tokenizer, dropout=0.0, max_sequence_length=64, **sizes)


def qwen():
    return with_text("Qwen", byte_pairs(keras_hub.models.QwenTokenizer), **SIZES)


FAMILIES = {
    "gemma": tiny_presets.tiny_gemma,
    "llama": tiny_presets.tiny_llama,
    "mistral": mistral,
    "gpt2": gpt2,
    "qwen": qwen,
}


@pytest.fixture(scope="module")
def models():
    """Return a function that gives a model of a family, the same one each time."""
    built = {}

    def build(family):
        if family not in built:
            built[family] = FAMILIES[family]()
        return built[family]

    return build


def compiled(model, learning_rate=0.0):
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    return model


def loss_by_hand(model, records):
    """Return the mean loss of the tokens of all answers, one after the other."""
    tokenizer = model.preprocessor.tokenizer
    texts = []
    for record in records:
        start = getattr(tokenizer, "start_token_id", None)
        prompt, answer = (
            [int(i) for i in tokenizer.tokenize(record[key])]
            for key in ("prompt", "completion")
        )
        prompt = [i for i in (start, *prompt) if i is not None]
        texts.append((len(prompt), [*prompt, *answer, tokenizer.end_token_id]))
    ids = np.ones((len(texts), max(len(text) for _, text in texts)), "int32")
    mask = np.zeros_like(ids)
    for row, (_, text) in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    inputs = {"token_ids": ids, "padding_mask": mask}
    logits = keras.Model.predict_on_batch(model, inputs).astype("float64")
    losses = []
    for row, (first, text) in enumerate(texts):
        for place in range(first, len(text)):
            scores = logits[row, place - 1]
            losses.append(np.log(np.exp(scores).sum()) - scores[text[place]])
    return np.mean(losses)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_mean_over_the_answers(models, family):
    model = compiled(models(family))
    expected = loss_by_hand(model, RECORDS)
    data = kr.instruction_data(model, RECORDS, batch_size=3)
    history = model.fit(data, verbose=0).history
    assert history["loss"] == pytest.approx([expected], rel=1e-5)


def test_neither_batches_nor_padding_change_the_loss(models):
    model = compiled(models("llama"))
    expected = loss_by_hand(model, RECORDS)
    data = kr.instruction_data(model, RECORDS, batch_size=2)  # batches of two and one
    assert model.evaluate(data, verbose=0) == pytest.approx(expected, rel=1e-5)
    wider = kr.instruction_data(model, RECORDS, batch_size=3, sequence_length=60)
    fresh = compiled(tiny_presets.tiny_llama())  # the same weights
    assert fresh.evaluate(wider, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_a_trained_adapter_has_the_loss_of_its_answers():
    model = tiny_presets.tiny_llama()
    kr.enable_randlora(model, rank=2, targets="all-linear")
    data = kr.instruction_data(model, RECORDS, batch_size=3)
    fit = compiled(model, 0.005).fit
    history = fit(data, validation_data=data, epochs=2, verbose=0).history
    expected = loss_by_hand(model, RECORDS)
    assert history["val_loss"][-1] == pytest.approx(expected, rel=1e-5)
    assert history["loss"][0] != pytest.approx(expected, rel=1e-5)


def test_text_still_goes_through_the_preprocessor():
    model = compiled(tiny_presets.tiny_llama())
    kr.instruction_data(model, RECORDS)
    kr.instruction_data(model, RECORDS)  # lets tokens pass once only
    texts = model.evaluate(tiny_presets.TEXTS, verbose=0)
    tokens = model.preprocessor(tiny_presets.TEXTS)
    model.preprocessor, preprocessor = None, model.preprocessor
    try:
        x, y, weights = (keras.tree.map_structure(np.asarray, part) for part in tokens)
        expected = model.evaluate(x, y, sample_weight=weights, verbose=0)
    finally:
        model.preprocessor = preprocessor
    assert texts == pytest.approx(expected, rel=1e-6)


def rows(data):
    """Return the token ids of all rows, in their order."""
    batches = [as_ints(inputs["token_ids"]) for inputs, _, _ in data]
    return [tuple(row) for batch in batches for row in batch]


def as_ints(tensor):
    return np.asarray(tensor).tolist()


def test_every_epoch_has_its_own_order(models):
    model = models("llama")
    words = " ".join(tiny_presets.TEXTS[:2]).split()
    records = [{"prompt": a, "completion": b} for a in words[:4] for b in words[:4]]
    data = kr.instruction_data(model, records, batch_size=4, seed=3)
    first, second = rows(data), rows(data)
    assert sorted(first) == sorted(second) and first != second
    again = kr.instruction_data(model, records, batch_size=4, seed=3)
    assert [rows(again), rows(again)] == [first, second]
    kept = kr.instruction_data(model, records, batch_size=4, shuffle=False)
    assert rows(kept) == rows(kept) and sorted(rows(kept)) == sorted(first)


def ids(model, text):
    return [int(i) for i in model.preprocessor.tokenizer.tokenize(text)]


def only(data):
    """Return inputs, targets and weights of the only row."""
    ((inputs, targets, weights),) = list(data)
    return *(as_ints(inputs[k])[0] for k in sorted(inputs)), *(
        as_ints(x)[0] for x in (targets, weights)
    )


def test_rows_of_a_conversation(models):
    """ChatML ends a turn with a token of its own, and the text with the end token."""
    model = models("qwen")
    messages = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    record = {"messages": [{"role": r, "content": c} for r, c in messages]}
    data = kr.instruction_data(model, [record], sequence_length=70)
    mask, tokens, targets, weights = only(data)
    first = ids(model, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")
    second = ids(model, "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")
    answers = ids(model, "b<|im_end|>"), ids(model, "d<|im_end|>")
    assert len(answers[0]) == 2
    end = model.preprocessor.tokenizer.end_token_id
    whole = [*first, *answers[0], *second, *answers[1], end]
    learned = [0] * len(first) + [1] * 2 + [0] * len(second) + [1] * 3
    count = len(whole) - 1
    assert tokens[:count] == whole[:-1] and targets[:count] == whole[1:]
    assert mask == [1] * len(whole) + [0] * (70 - len(whole))
    assert [int(weight > 0) for weight in weights] == learned[1:] + [0] * (70 - count)
    assert np.mean(weights) == pytest.approx(1)


def test_the_prompt_is_what_precedes_an_answer(models):
    for family in ("llama", "qwen"):
        model = models(family)
        for form in (
            {"instruction": "the full", "input": "rank", "output": "of"},
            {"prompt": "the full rank", "completion": "of"},
        ):
            _, tokens, targets, weights = only(kr.instruction_data(model, [form]))
            learned = [w > 0 for w in weights].index(True)
            prompt = kr.instruction_prompt(model, form)
            seen = model.preprocessor.generate_preprocess([prompt], sequence_length=400)
            count = int(np.sum(as_ints(seen["padding_mask"])))
            assert as_ints(seen["token_ids"])[0][:count] == tokens[: learned + 1]
            assert targets[learned : learned + 1] == ids(model, "of")[:1]
            asked = {k: v for k, v in form.items() if k not in ("output", "completion")}
            assert kr.instruction_prompt(model, asked) == prompt
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    expected = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    for messages in (talk, talk[:1]):
        found = kr.instruction_prompt(model, {"messages": messages})
        assert found == expected
    assert kr.instruction_prompt(model, "as it is") == "as it is"


def test_a_start_token_in_the_template_is_not_doubled(models, monkeypatch):
    """SmolLM2 starts a text with ChatML's first token."""
    model = models("qwen")
    tokenizer = model.preprocessor.tokenizer
    (start,) = ids(model, "<|im_start|>")
    monkeypatch.setattr(tokenizer, "start_token_id", start)
    record = {"prompt": "a", "completion": "b"}
    data = kr.instruction_data(model, [record], template="chatml")
    _, tokens, _, _ = only(data)
    assert tokens[:2] == [start, *ids(model, "user")[:1]]
    prompt = kr.instruction_prompt(model, record, template="chatml")
    assert prompt.startswith("user\na<|im_end|>")


def test_long_records_are_cut_with_a_warning(models, monkeypatch):
    model = models("llama")
    with pytest.warns(UserWarning, match="2 of 3 records .* 1 of them have no answer"):
        data = kr.instruction_data(model, RECORDS, sequence_length=3, shuffle=False)
    assert [len(row) for row in rows(data)] == [3, 3]
    with pytest.raises(ValueError, match="sequence_length=1: .* prompt has 2 tokens"):
        kr.instruction_data(model, RECORDS, sequence_length=1)
    monkeypatch.setattr(model.preprocessor, "sequence_length", 4)
    with pytest.warns(UserWarning, match="longer than sequence_length=4"):
        data = kr.instruction_data(model, RECORDS)
    assert {len(row) for row in rows(data)} == {4}


def test_a_file_of_records(models, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    model = models("llama")
    found, expected = (
        kr.instruction_data(model, records, shuffle=False)
        for records in (path, RECORDS)
    )
    assert rows(found) == rows(expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"template": "vicuna"}, "`template` must be one of .*template='vicuna'"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"sequence_length": -1}, "`sequence_length` must be a positive integer"),
        (
            {"records": ["a text"], "template": "chatml"},
            r"^records\[0\]: a text has no question and answer for template='chatml'",
        ),
        (
            {"records": [{"messages": [{"role": "assistant", "content": "a"}]}]},
            "Messages need a template, and the vocabulary of LlamaTokenizer",
        ),
    ],
)
def test_options_are_checked(models, options, message):
    with pytest.raises(ValueError, match=message):
        kr.instruction_data(models("llama"), **{"records": RECORDS, **options})


def test_a_model_without_text_is_refused():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match="causal language model .* preprocessor=None"):
        kr.instruction_data(model, RECORDS)
