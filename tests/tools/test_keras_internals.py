"""Each private name of Keras that we rely on does what we rely on."""

import ast
import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy, assert_close
from keras import layers
from versions import NEEDS_SCHEDULE_FREE, needs_mode, since

from keras_randlora.tools import keras_internals as internals
from keras_randlora.tools.keras_internals import reliances

NOT_PRIVATE = {"_C", "_replace"}  # a module of torch; of named tuples


def dense(**options):
    layer = layers.Dense(4, name="d", **options)
    layer.build((None, 6))
    return layer


def model_of(*held):
    return keras.Sequential([keras.Input((6,)), *held], name="model")


def test_versions_are_numbers():
    assert internals.version_numbers("3.16.0.dev2026102704") == (3, 16)
    assert internals.version_of_keras() == internals.version_numbers(keras.__version__)
    assert (3, 12) <= internals.version_of_keras() < (4, 0)


def test_the_kernel_is_the_variable():
    layer = dense()
    assert internals.kernel_variable(layer) is layer.kernel


def test_own_variables_are_not_the_childrens():
    model = model_of(dense())
    assert internals.own_variables(model) == []
    own = internals.own_variables(model.layers[0])
    assert [v.name for v in own] == ["kernel", "bias"]
    own[0].trainable = False
    assert internals.own_trainable_variables(model.layers[0]) == own


def test_a_layers_own_flag_is_set_alone():
    model = model_of(dense())
    internals.set_own_flag(model, False)
    assert not internals.own_flag(model) and internals.own_flag(model.layers[0])


def test_children_and_all_layers_below():
    inner = model_of(dense())
    outer = keras.Sequential([keras.Input((6,)), inner, layers.Dense(2, name="e")])
    assert [c.name for c in internals.children(outer) if c.built][-2:] == ["model", "e"]
    below = internals.layers_below(outer)
    assert below[0] is outer and inner.layers[0] in below
    assert internals.is_complete(outer)


def test_graph_models_write_their_layers():
    class Subclass(keras.Model):
        def call(self, x):
            return x

    assert internals.writes_its_layers(model_of(dense()))
    inputs = keras.Input((6,))
    functional = keras.Model(inputs, layers.Dense(2)(inputs))
    assert internals.writes_its_layers(functional)
    assert not internals.writes_its_layers(Subclass())
    assert internals.has_called_its_layers(functional)
    assert not internals.has_called_its_layers(Subclass())


def test_state_is_added_and_taken_off_within_unlocked():
    layer, child = dense(), dense()
    with pytest.raises(ValueError):
        layer.child = child
    with internals.unlocked(layer):
        layer.child = child
    assert child in internals.children(layer)
    internals.list_variables_anew(layer)
    with internals.unlocked(layer):
        internals.untrack(layer, child)
        del layer.child
    assert internals.children(layer) == []


def test_a_path_begins_with_the_parents():
    layer = layers.Dense(2, name="child")
    internals.set_parent_path(layer, "parent/d")
    layer.build((None, 3))
    assert layer.kernel.path == "parent/d/child/kernel"


def test_a_kernel_is_added_first():
    layer = dense()
    bias = layer.bias
    with internals.unlocked(layer):
        del layer._kernel
        internals.add_kernel(layer, (6, 4))
    assert internals.own_variables(layer) == [layer.kernel, bias]
    assert layer.kernel.path == "d/kernel" and not np.any(as_numpy(layer.kernel))


def test_autocast_is_taken_off_a_variable_and_done_by_hand():
    class Reader(layers.Layer):
        def build(self, shape):
            self.weight = self.add_weight(shape=(2,), name="weight")
            internals.set_autocast(self.weight, False)

        def call(self, x):
            value = keras.ops.convert_to_tensor(self.weight)
            self.seen = (value.dtype, internals.autocast(value).dtype)
            return x

    reader = Reader(dtype="mixed_bfloat16")
    reader(np.ones((1, 2), "float32"))
    seen = [keras.backend.standardize_dtype(dtype) for dtype in reader.seen]
    assert seen == ["float32", "bfloat16"]


def test_there_is_no_layout_without_a_distribution():
    if BACKEND == "jax":
        assert not internals.has_layout(dense().kernel)
    if BACKEND == "tensorflow":
        assert internals.strategy_of(model_of(dense())) is None


@since((3, 12) if BACKEND == "jax" else (3, 15), f"`keras.distribution` on {BACKEND}")
def test_a_distribution_tells_its_layout_map():
    mesh = keras.distribution.DeviceMesh((1,), ("model",), ["cpu:0"])
    layout_map = keras.distribution.LayoutMap(mesh)
    distribution = keras.distribution.ModelParallel(layout_map=layout_map)
    assert internals.layout_map_of(distribution) is layout_map
    data = keras.distribution.DataParallel(devices=["cpu:0"])
    assert internals.layout_map_of(data) is None


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
def test_one_process_has_no_coordinator():
    assert internals.coordinator() is None  # one that has is in test_several_hosts.py


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
def test_a_variable_gives_out_another_value_for_a_while():
    variable = dense().kernel
    own, other = variable.value, np.ones((6, 4), "float32")
    with internals.held_as(variable, other):
        assert variable.value is other
        assert keras.ops.convert_to_numpy(variable).sum() == 24
    assert variable.value is own


def test_children_are_ordered():
    model = keras.Sequential([layers.Dense(2, name=name) for name in "ab"])
    places = {"a": 1, "b": 0}
    internals.sort_children(model, lambda child: places.get(child.name, -1))
    assert [child.name for child in internals.children(model)][-2:] == ["b", "a"]


@pytest.mark.skipif(BACKEND != "torch", reason="torch's tensors count writes")
def test_a_write_changes_the_version():
    variable = dense().kernel
    before = internals.version_of(variable.value)
    variable.assign(np.ones((6, 4)))
    assert internals.version_of(variable.value) > before


@pytest.mark.skipif(BACKEND != "torch", reason="torch.func is torch's")
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)
def test_transforms_are_seen_where_they_are_at_work():
    import torch

    seen = []

    def look(x):
        seen.append((internals.in_forward_mode(), internals.is_transformed()))
        return x.sum()

    x = torch.ones(3)
    look(x)
    torch.func.grad(look)(x)
    torch.func.vmap(look)(x)
    torch.func.jvp(look, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        look(x)
    look(x)
    none, reverse, forward = (False, False), (False, True), (True, True)
    assert seen == [none, reverse, reverse, forward, forward, none]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's registry")
def test_a_graphs_gradient_is_replaced():
    import tensorflow as tf

    @tf.custom_gradient
    def double(x):
        return 2.0 * x, lambda gradient: 2.0 * gradient

    def gradients(tensors, gradient):
        return (7.0 * gradient * tensors[0],)

    @tf.function
    def function(x):
        outputs = double(x)
        internals.replace_gradient(outputs, gradients)
        return outputs

    x = tf.constant(3.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = function(x)
    assert float(outputs) == 6.0
    assert float(tape.gradient(outputs, x)) == 21.0


def quantized(mode):
    """Return a `Dense`, an `EinsumDense` and the shapes of their kernels."""
    einsum = layers.EinsumDense("abc,cde->abde", (None, 3, 5), name="e")
    einsum.build((None, 2, 7))
    plain = layers.Dense(5, name="d")
    plain.build((None, 7))
    for layer in (plain, einsum):
        layer.quantize(mode)
    return (plain, (7, 5)), (einsum, (7, 3, 5))


def test_packed_kernels():
    for layer, shape in quantized("int4"):
        packing = internals.int4_packing(layer)
        assert packing.shape == shape
        packed = internals.kernel_variable(layer).value
        unpacked = keras.quantizers.unpack_int4(packed, packing.length, packing.axis)
        expected = (7, np.prod(shape) // 7) if packing.as_matrix else shape
        assert tuple(unpacked.shape) == expected
        assert not packing.block or internals.has_int4_blocks()


@needs_mode("int4, blocks")
def test_blocks_are_told():
    assert internals.has_int4_blocks()
    config = keras.quantizers.Int4QuantizationConfig
    for size, expected in ((-1, None), (None, None), (4, 4)):
        layer = dense()
        layer.quantize(config=config(block_size=size))
        assert internals.int4_packing(layer).block == expected


def test_scales_and_rounding_of_int8():
    (plain, _), (einsum, shape) = quantized("int8")
    assert internals.scale_for_kernel(plain) is None
    scale = internals.scale_for_kernel(einsum)(einsum.kernel_scale.value)
    assert np.broadcast_shapes(tuple(scale.shape), shape) == shape
    x = np.random.default_rng(0).standard_normal((2, 3, 7)).astype("float32")
    for layer in (plain, einsum):
        integers, steps = internals.rounding_of(layer)(keras.ops.convert_to_tensor(x))
        assert tuple(steps.shape) == (2, 3, 1)
        assert_close(as_numpy(integers) / as_numpy(steps), x, 0.01)
    plain.inputs_quantizer = None
    assert internals.rounding_of(plain) is None


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_layer_is_quantized_as_another_is(mode):
    for given, _ in quantized(mode):
        alike = type(given).from_config(given.get_config() | {"dtype": "float32"})
        alike.build_from_config(given.get_build_config())
        alike.quantize(**internals.quantize_options(given))
        shapes = [[w.shape for w in layer.weights] for layer in (given, alike)]
        assert shapes[0] == shapes[1] and alike.dtype_policy == given.dtype_policy
        internals.mark_as_float(given)
        assert not given._is_quantized
        internals.forget_quantize_options(given)
        assert getattr(given, "quantization_config", None) is None


def test_a_check_comes_before_quantizing(monkeypatch):
    asked = {"_check_quantize_args": lambda self, *args: None}
    kind = type("Checked", (keras.Model,), asked)
    monkeypatch.setattr(keras, "Model", kind)
    internals.check_before_quantizing(lambda model: (_ for _ in ()).throw(KeyError()))
    with pytest.raises(KeyError):
        kind()._check_quantize_args("int8", "float32")


def test_embeddings_are_a_variable():
    layer = layers.Embedding(3, 2)
    layer.build()
    assert internals.embeddings_variable(layer) is layer.embeddings


def test_attention_layers_tell_their_heads():
    assert internals.heads_of(layers.MultiHeadAttention(5, 2)) == 5
    assert internals.heads_of(layers.Dense(2)) is None
    assert internals.asks_for_fused_attention(layers.Dense(2)) is None


def test_surroundings_are_set_up_again():
    before = internals.surroundings()
    assert set(before) == set(internals.CALL_SURROUNDINGS)
    with internals.within({"autocast_scope": "here"}):
        assert internals.surroundings()["autocast_scope"] == "here"
    assert internals.surroundings() == before


def test_a_stateless_scope_is_seen():
    variable = dense().kernel
    assert not internals.in_stateless_scope() and internals.known_values() == {}
    value = keras.ops.ones((6, 4))
    with keras.StatelessScope(state_mapping=[(variable, value)]):
        assert internals.in_stateless_scope()
        assert list(internals.known_values()) == [id(variable)]


def test_variables_without_values_are_not_waited_for():
    with internals.without_values():
        dense()
    inputs = keras.Input((6,))
    keras.Model(inputs, layers.Dense(2)(inputs))  # would fill them in


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.AdamW(1e-3),
        lambda: keras.optimizers.SGD(1e-3, momentum=0.9, use_ema=True),
        lambda: keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-3)),
    ],
    ids=["AdamW", "SGD", "accumulated", "scaled"],
)
def test_an_optimizer_forgets_its_state(optimizer):
    model, other = model_of(dense()), model_of(dense())
    fresh, used = optimizer(), optimizer()
    fresh.build(other.trainable_variables)
    used.build(model.trainable_variables)
    internals.forget_state(used)
    assert not used.built
    internals.forget_state(used)
    used.build(other.trainable_variables)
    shapes = [[v.shape for v in o.variables] for o in (fresh, used)]
    assert shapes[0] == shapes[1]
    assert len(internals.rate_variables(used)) == len(internals.rate_variables(fresh))
    if BACKEND == "jax" and "Scale" in type(used).__name__:
        return  # it is applied in compiled steps only
    gradients = [np.ones(v.shape, "float32") for v in other.trainable_variables]
    used.apply(list(map(keras.ops.convert_to_tensor, gradients)))


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_an_optimizer_holds_of_each_variable(wrapped):
    def built(optimizer):
        if wrapped:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(variables)
        return optimizer

    variables = model_of(dense()).trainable_variables
    averaged = built(keras.optimizers.SGD(0.1, use_ema=True))
    waiting = built(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    for pairs, name in (
        (internals.averages_of(averaged), "average"),
        (internals.accumulators_of(waiting), "gradient_accumulator"),
    ):
        assert [variable for variable, _ in pairs] == variables
        assert [of.name.endswith(name) for _, of in pairs] == [True, True]
    assert internals.averages_of(waiting) == internals.accumulators_of(averaged) == []
    assert internals.averages_of(keras.optimizers.SGD(0.1, use_ema=True)) == []


@NEEDS_SCHEDULE_FREE
def test_the_sequence_that_schedule_free_averages():
    variables = model_of(dense()).trainable_variables
    free = keras.optimizers.ScheduleFreeAdamW(0.1)
    free.build(variables)
    held = internals.averages_of(free)
    assert [variable for variable, _ in held] == variables
    assert [of.name.endswith("momentum") for _, of in held] == [True, True]
    assert internals.accumulators_of(free) == []


def test_muon_asks_before_it_takes_a_variable_for_a_matrix(monkeypatch):
    asked = keras.optimizers.Muon._should_use_adamw
    plain = getattr(asked, "__wrapped__", asked)
    monkeypatch.setattr(keras.optimizers.Muon, "_should_use_adamw", plain)
    internals.spare_from_muon(lambda variable: "e/" in variable.path)
    muon = keras.optimizers.Muon(0.1, name="muon")
    other = layers.Dense(2, name="e")
    other.build((None, 3))
    kernels = [dense().kernel, other.kernel]
    muon.build(kernels)
    held = [v.path for v in muon.variables if v.path.endswith("velocity")]
    assert held == ["muon/e_kernel_velocity"]


def test_a_schedule_is_told_from_a_rate():
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 10)
    assert internals.schedule_of(keras.optimizers.SGD(schedule)) is schedule
    assert internals.schedule_of(keras.optimizers.SGD(0.1)) is None
    assert internals.rate_variables(keras.optimizers.SGD(schedule)) == []


def test_states_of_random_generators():
    model = model_of(layers.Dropout(0.5), dense())
    (state,) = internals.seed_states(model)
    assert state.shape == (2,)
    assert internals.seed_states(dense()) == []


def test_a_layer_is_run_through_another_call():
    layer, calls = dense(), []

    def call(original, *args, **kwargs):
        calls.append(1)
        return original

    internals.set_rematerialized(layer, call)
    layer(np.ones((1, 6), "float32"))
    internals.set_rematerialized(layer, None)
    layer(np.ones((1, 6), "float32"))
    assert calls == [1]
    internals.forget_losses(layer)


def test_the_inputs_of_a_model_are_named():
    (spec,) = internals.input_signature(model_of(dense()))
    assert spec.shape == (None, 6) and spec.dtype == "float32"


@pytest.mark.skipif(BACKEND != "torch", reason="of torch's tracer")
@pytest.mark.parametrize("before", [True, False])
def test_the_tracer_is_quiet(before):
    import torch

    at_first = torch._C._jit_is_onnx_log_enabled()
    torch._C._jit_set_onnx_log_enabled(before)
    try:
        with internals.quiet_tracer():
            assert not torch._C._jit_is_onnx_log_enabled()
        assert torch._C._jit_is_onnx_log_enabled() == before
    finally:
        torch._C._jit_set_onnx_log_enabled(at_first)


def test_every_function_is_tested():
    functions = [
        name
        for name, function in vars(internals).items()
        if inspect.isfunction(function)
        and function.__module__.startswith(internals.__name__)
        and name[0] != "_"
    ]
    source = inspect.getsource(inspect.getmodule(test_every_function_is_tested))
    assert [name for name in functions if f"internals.{name}(" not in source] == []


def test_every_private_name_is_a_reliance():
    """What is read of others in this room, also from `keras.src`, is in the table."""
    told = {name for r in reliances.RELIANCES for name in r.names.split()}
    told.update(reliances.OPTIONAL)
    owners = " ".join(reliance.owner for reliance in reliances.RELIANCES)
    for path in Path(internals.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr[0] == "_":
                known = node.attr.startswith("__") or node.attr in told | NOT_PRIVATE
                assert known, f"{path.name}: {node.attr}"
            if isinstance(node, ast.ImportFrom) and "keras.src" in (node.module or ""):
                assert node.module in owners, path
                if node.module != "keras.src.backend.common":
                    assert {alias.name for alias in node.names} <= told, path


@pytest.mark.parametrize("reliance", reliances.RELIANCES, ids=lambda r: r.owner)
def test_a_name_is_missed_where_it_is_not(reliance):
    """An invented name is never found, and each name where it should be is."""
    if reliance.backend not in (None, BACKEND):
        pytest.skip(f"of {reliance.backend}, which would be loaded")
    invented = reliance._replace(names="_never_was")
    assert reliances.missing_names(invented) == ["_never_was"]
    if reliances.concerns_us(reliance):
        assert reliances.missing_names(reliance) == []


def test_each_keras_has_its_reliances(monkeypatch):
    packed = {
        "3.12.0": "_int4_pack_axis",
        "3.14.1": "original_kernel_shape",
        "3.16.0.dev2026102704": "_quantized_weight",
    }
    for version, name in packed.items():
        monkeypatch.setattr(keras, "__version__", version)
        known = [r for r in reliances.RELIANCES if reliances.concerns_us(r)]
        names = {name for reliance in known for name in reliance.names.split()}
        assert names & set(packed.values()) == {name}


def test_a_missing_name_is_one_sentence():
    gone = reliances.Reliance("keras.layers.Layer", "_trainable _gone", "flags")
    later, foreign = gone._replace(since=(3, 99)), gone._replace(backend="numpy")
    reliances.require((later, foreign))
    message = (
        "keras_randlora relies on `keras.layers.Layer._gone` (flags), which Keras "
        f"{keras.__version__} with the backend {BACKEND} does not have. Install a "
        "version of keras_randlora that knows this Keras, or an older Keras."
    )
    with pytest.raises(ImportError, match=re.escape(message)):
        reliances.require((gone,))
    nowhere = gone._replace(owner="keras.src.nowhere.Gone")
    with pytest.raises(ImportError, match="`keras.src.nowhere.Gone._trainable`"):
        reliances.require((nowhere,))
