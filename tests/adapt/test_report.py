"""Counts: literal numbers of known models, and the printed table."""

import keras
import numpy as np
import pytest
from keras import layers
from models import EXAMPLES, attention, cnn

import keras_randlora as kr
from keras_randlora.tools.markup import html_table


def dense(inputs, outputs, **options):
    """Return the report of one adapted `Dense` with bias."""
    model = keras.Sequential([keras.Input((inputs,)), layers.Dense(outputs, name="d")])
    return kr.enable_randlora(model, targets="d", **options)


# inputs, outputs, options → bases n, trainable n·(r + s), bytes of the stored bases
# A (r, s) and B (l, n·r): float32 4 bytes an entry, ternary 1.
COUNTS = {
    "wide to narrow": (6, 4, dict(rank=2), 2, 12, 4 * (2 * 4 + 6 * 4)),
    "narrow to wide": (4, 6, dict(rank=2), 2, 12, 4 * (2 * 4 + 6 * 4)),
    "rank not dividing": (10, 7, dict(rank=3), 3, 30, 4 * (3 * 7 + 10 * 9)),
    "square": (5, 5, dict(rank=2), 3, 21, 4 * (2 * 5 + 5 * 6)),
    "rank one": (6, 4, dict(rank=1), 4, 20, 4 * (1 * 4 + 6 * 4)),
    "rank of the smaller side": (6, 4, dict(rank=4), 1, 8, 4 * (4 * 4 + 6 * 4)),
    "rank above it": (6, 4, dict(rank=9), 1, 13, 4 * (9 * 4 + 6 * 9)),
    "fewer bases": (6, 4, dict(rank=1, num_bases=3), 3, 15, 4 * (1 * 4 + 6 * 3)),
    "int8": (6, 4, dict(rank=2, basis="binary"), 2, 12, 2 * 4 + 6 * 4),
    "regenerated": (6, 4, dict(rank=2, basis_storage="regenerated"), 2, 12, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    inputs, outputs, options, num_bases, trainable, basis_bytes = COUNTS[name]
    report = dense(inputs, outputs, **options)
    assert report.layers == (
        kr.LayerReport(
            path="d",
            kernel_shape=(inputs, outputs),
            inputs=inputs,
            outputs=outputs,
            rank=options["rank"],
            num_bases=num_bases,
            trainable=trainable,
            compute="auto",
        ),
    )
    total = inputs * outputs + outputs
    assert report == kr.Report(
        report.layers, trainable, trainable, total, basis_bytes, 4 * trainable, 1.0
    )
    assert report.share == trainable / total
    assert report.adapter_bytes == 4 * trainable


def test_bases_are_shared_by_all_layers():
    model = EXAMPLES["mlp"].build()  # kernels 6×10, 10×5, 5×3
    report = kr.enable_randlora(model, rank=2, targets="all-linear")
    assert [layer.trainable for layer in report.layers] == [24, 21, 10]
    assert report.adapter == 55
    assert report.total == 60 + 10 + 50 + 5 + 15 + 3
    # A (2, 6) and B (10, 6) serve all three.
    assert report.basis_bytes == 4 * (12 + 60)


def test_einsum_kernels_are_counted_as_matrices():
    report = kr.enable_randlora(attention(), rank=4, targets=["query", "*_output"])
    query, output = report.layers
    assert (query.path, query.name) == ("mixer/query", "query")
    assert (query.kernel_shape, query.inputs, query.outputs) == ((8, 2, 3), 8, 6)
    assert (output.kernel_shape, output.inputs, output.outputs) == ((2, 3, 8), 6, 8)
    assert (query.num_bases, query.trainable) == (2, 20)


def test_what_is_trained_beside_counts_as_trainable():
    options = dict(train_bias="adapted", also_train=["head", "batch_norm"])
    report = kr.enable_randlora(cnn(), rank=2, targets="dense", **options)
    assert report.adapter == 4 * (2 + 7)
    # The bias of "dense", the head's kernel and bias, the norm's gamma and beta.
    assert report.trainable == report.adapter + 7 + (21 + 3) + (4 + 4)
    conv, norm, hidden, head = 3 * 3 * 3 * 4 + 4, 4 * 4, 36 * 7 + 7, 21 + 3
    assert report.total == conv + norm + hidden + head


def test_the_table():
    model = EXAMPLES["llama3"].build()
    report = kr.enable_randlora(model, rank=3, targets=["query", "key", "*gate_dense"])
    assert str(report).splitlines() == [
        "layers                                   kernel              rank  bases"
        "     trainable  compute",
        "query × 2                                (16, 4, 4)             3      6"
        "           228  auto",
        "key × 2                                  (16, 2, 4)             3      3"
        "            66  auto",
        "feedforward_gate_dense × 2               (16, 20)               3      6"
        "           228  auto",
        "6 adapted layers, 522 parameters of λ and γ; 522 trainable in all, 12.219% of "
        "4,272.",
        "Adapts 40.7% of the weights used in matmuls.",
        "Adapter file 2.09 kB, stored bases 1.63 kB.",
    ]


def test_one_layer_in_the_table():
    assert str(dense(6, 4, rank=2)).splitlines()[1:] == [
        "d                                        (6, 4)                 2      2"
        "            12  auto",
        "1 adapted layers, 12 parameters of λ and γ; 12 trainable in all, 42.857% of "
        "28.",
        "Adapts 100.0% of the weights used in matmuls.",
        "Adapter file 48 B, stored bases 128 B.",
    ]


def test_the_table_of_a_notebook():
    model = EXAMPLES["mlp"].build()
    page = kr.enable_randlora(model, 2, "all-linear")._repr_html_()
    assert page.count("<tr>") == 1 + 3  # titles and layers
    assert '<td style="text-align: left">hidden_1</td>' in page
    assert "parameters of λ and γ" in page


def test_cells_of_a_notebooks_table():
    page = html_table(("<x>",), [("<b>",), (1234,), (0.5,)], ["a & b"])
    assert "<th>&lt;x&gt;</th>" in page
    assert '<td style="text-align: left">&lt;b&gt;</td>' in page
    assert '<td style="text-align: right">1,234</td>' in page
    assert '<td style="text-align: right">0.500</td>' in page
    assert page.endswith("<p>a &amp; b</p>")


def test_the_table_tells_how_the_product_was_taken():
    model = EXAMPLES["mlp"].build()  # kernels 6×10, 10×5, 5×3
    kr.enable_randlora(model, rank=2, targets="all-linear")
    assert [layer.way for layer in kr.summary(model).layers] == [None] * 3
    model(np.zeros((1, 6), "float32"))
    assert [layer.way for layer in kr.summary(model).layers] == ["factored"] * 3
    model(np.zeros((500, 6), "float32"))
    report = kr.summary(model)
    assert [layer.way for layer in report.layers] == ["materialized"] * 3
    assert [layer.compute for layer in report.layers] == ["auto"] * 3
    rows = str(report).splitlines()[:-3]
    assert [row.split()[-1] for row in rows] == ["compute"] + ["materialized"] * 3


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2_500_000, "2.5 MB")],
)
def test_bytes_in_the_table(count, text):
    report = kr.Report(
        layers=(), adapter=0, trainable=0, total=1, basis_bytes=count, adapter_bytes=0
    )
    assert str(report).endswith(f"stored bases {text}.")


def test_summary_is_the_report_at_any_time():
    model = EXAMPLES["mlp"].build()
    report = kr.enable_randlora(model, rank=2, targets=["hidden_1", "head"])
    assert kr.summary(model) == report
    assert model.randlora_summary() == report


def test_a_plain_model_has_no_summary():
    message = "Model 'mlp' has no layer adapted by RandLoRA. Call `enable_randlora"
    with pytest.raises(ValueError, match=message):
        kr.summary(EXAMPLES["mlp"].build())
