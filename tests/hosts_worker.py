"""One of two processes that hold a model together, for `test_several_hosts.py`.

Usage: python hosts_worker.py FOLDER PORT PROCESS [VICTIM], under KERAS_BACKEND=jax and
with XLA_FLAGS that simulate two devices. What process i finds goes to
FOLDER/facts_i.json. With a VICTIM, that process is killed in the middle of a save.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import keras
import mlir_context
import numpy as np
from keras import layers
from keras.distribution import DataParallel, DeviceMesh, LayoutMap, ModelParallel

import keras_randlora as kr
from keras_randlora.files import adapter as saving
from keras_randlora.files import adapter_file
from keras_randlora.files import optimizer as optimizer_files
from keras_randlora.layers import divided
from keras_randlora.tools import assign, hosts, hosts_of, to_numpy, undistributed

BATCH, LENGTH, VOCABULARY, STEPS, RANK = 8, 4, 16, 3, 3
WIDTH, INNER = 8, 12
RUNS = ("data", "model", "sharded")
SPREAD = ("model", "sharded")  # kernels in parts
ADDRESSES = ("query", "inner")


def build(name="model"):
    """Return a compiled tiny language model; every kernel divides by four."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH, name="embedding")(inputs)
    x = layers.EinsumDense("btd,dnh->btnh", (None, 4, 3), bias_axes="nh", name="query")(
        x
    )
    x = layers.Reshape((LENGTH, INNER), name="reshape")(x)
    x = layers.Dense(WIDTH, activation="tanh", name="inner")(x)
    x = layers.Dropout(0.25, seed=3, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(VOCABULARY, name="head")(x), name=name)


def adapted(**options):
    """Return the model with an adapter, compiled."""
    model = build()
    options = {"rank": RANK, "targets": list(ADDRESSES), "also_train": "head"} | options
    model.enable_randlora(**options)
    compile_model(model)
    return model


def compile_model(model):
    """Compile with an optimizer that has moments."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)


def batch():
    """Return the inputs and labels of one batch, the whole of it."""
    tokens = np.random.default_rng(11).integers(0, VOCABULARY, (BATCH, LENGTH + 1))
    return tokens[:, :-1].astype("int32"), tokens[:, 1:].astype("int32")


def distribution(run):
    """Return how a run is spread over the two processes."""
    if run == "data":
        return DataParallel(auto_shard_dataset=False)
    mesh = DeviceMesh((1, 4), ("batch", "model"))
    base_map = LayoutMap(mesh)
    # Before Keras 3.14 a pattern without the `$` also matches `kernel_scale`.
    base_map["embedding/embeddings$"] = (None, "model")
    base_map["query/kernel$"] = (None, "model", None)
    base_map["inner/kernel$"] = ("model", None)
    base_map["head/kernel$"] = (None, "model")
    shard_over = "model" if run == "sharded" else None
    return ModelParallel(
        layout_map=kr.layout_map(base_map, shard_over=shard_over),
        batch_dim_name="batch",
        auto_shard_dataset=False,
    )


def part(run, array):
    """Return this process's rows of a batch: half where the batch is divided."""
    if run != "data":
        return array
    rows = len(array) // jax.process_count()
    return array[jax.process_index() * rows :][:rows]


def fit(model, run=None, steps=STEPS, callbacks=()):
    """Train on the same batch for some epochs of one step; return the losses."""
    x, y = (part(run, array) if run else array for array in batch())
    history = model.fit(
        x,
        y,
        batch_size=len(x),
        epochs=steps,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )
    return history.history


def digest(arrays):
    """Return a checksum of a dictionary of arrays."""
    found = hashlib.sha256()
    for path, array in sorted(arrays.items()):
        found.update(path.encode() + array.tobytes())
    return found.hexdigest()


def same(ours, theirs):
    """Return whether two dictionaries hold the same arrays, bit for bit."""
    assert ours.keys() == theirs.keys()
    return all(np.array_equal(ours[path], theirs[path]) for path in ours)


def furthest(ours, theirs):
    """Return the largest difference between the arrays of two dictionaries."""
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[path] - theirs[path]).max()) for path in ours)


def kernels(model):
    """Return the kernels that stand in the adapted layers, whole."""
    return {name: to_numpy(model.get_layer(name)._kernel) for name in ADDRESSES}


def layouts(model):
    """Return how the variables of a model and its optimizer lie."""
    variables = [*model.variables, *model.optimizer.variables]
    return [str(getattr(v.value.sharding, "spec", None)) for v in variables]


@contextlib.contextmanager
def counted(module):
    """Count the files that a module writes."""
    count = [0]
    write = module.write_atomically

    def one_more(path, data):
        count[0] += 1
        write(path, data)

    module.write_atomically = one_more
    try:
        yield count
    finally:
        module.write_atomically = write


def refusal(call, *arguments, **options):
    """Return the error of a call."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


class Checks:
    """What is found of one run; each method is called in both processes."""

    def __init__(self, run, folder):
        self.run, self.folder = run, folder / run
        self.folder.mkdir(exist_ok=True)
        self.alone = adapted()
        self.expected = fit(self.alone)["loss"]

    def path(self, name):
        """Return the path of a file of the run."""
        return self.folder / name

    def facts(self):
        """Return what is found."""
        with distribution(self.run).scope():
            self.model = adapted()
            found = {"losses": fit(self.model, self.run)["loss"]}
            found["losses alone"] = self.expected
            for check in (
                self.values,
                self.files,
                self.base,
                self.resumed,
                self.callbacks,
                self.reports,
                self.merges,
            ):
                found |= check()
        return found

    def values(self):
        """Read, set and compare what was trained."""
        model, got = self.model, kr.get_adapter(self.model)
        doubled = {path: 2 * array for path, array in got.items()}
        kr.set_adapter(model, doubled)
        found = {
            "adapter": digest(got),
            "from alone": furthest(got, kr.get_adapter(self.alone)),
            "set": same(kr.get_adapter(model), doubled),
            "divided": len(hosts_of(model.variables, divided=True).processes),
        }
        kr.set_adapter(model, got)
        kr.set_adapter(self.alone, got)
        return found

    def files(self):
        """Save and load, in both processes."""
        model, path = self.model, self.path("new/adapter.safetensors")
        with counted(adapter_file) as written:
            kr.save_adapter(model, path)
        read = adapter_file.read_adapter(path).tensors
        fresh = build()
        kr.load_adapter(fresh, path)
        compile_model(fresh)
        names = {address: address for address in (*ADDRESSES, "head")}
        kr.peft.save(model, self.path("peft"), name_map=names)
        from_peft = build()
        kr.peft.load(from_peft, self.path("peft"), name_map=names)
        got = kr.get_adapter(model)
        return {
            "written": written[0],
            "complete": same(read, got),
            "loaded": same(kr.get_adapter(fresh), got),
            "loaded layouts": layouts(fresh)[: len(fresh.variables)]
            == layouts(model)[: len(fresh.variables)],
            "peft": same(kr.get_adapter(from_peft), got),
        }

    def base(self):
        """Compute with the adapters off and on."""
        x = batch()[0]
        plain = to_numpy(build()(x))
        tuned = to_numpy(self.model(x))
        trained = build()  # the base with the head, which stays
        for name in ("kernel", "bias"):
            head = getattr(self.layer(trained, "head"), name)
            assign(head, kr.get_adapter(self.model)[f"head/{name}"])
        with kr.base_only(self.model):
            off = to_numpy(self.model(x))
        return {
            "base only": np.array_equal(off, to_numpy(trained(x))),
            "on again": np.array_equal(to_numpy(self.model(x)), tuned),
            "tuned": float(np.abs(tuned - plain).max()),
        }

    def resumed(self):
        """Go on from two files, bit for bit."""
        model = self.model
        adapter, state = self.path("a.safetensors"), self.path("o.safetensors")
        kr.save_adapter(model, adapter)
        with counted(optimizer_files) as written:
            kr.save_optimizer(model, state)
        fresh = build()
        kr.load_adapter(fresh, adapter)
        compile_model(fresh)
        kr.load_optimizer(fresh, state)
        found = {"resumed layouts": layouts(fresh) == layouts(model)}
        fit(model, self.run, 2)
        fit(fresh, self.run, 2)
        found["resumed"] = same(kr.get_adapter(fresh), kr.get_adapter(model))
        found["optimizer files"] = written[0]
        kr.set_adapter(self.alone, kr.get_adapter(model))
        return found

    def callbacks(self):
        """Train with the callbacks of the package."""
        template = self.path("run/a-{epoch}.safetensors")
        checkpoint = kr.RandLoRACheckpoint(
            template, "loss", keep_last=1, with_optimizer=True
        )
        logger = kr.RandLoRALogger()
        logs = fit(self.model, self.run, 2, [checkpoint, logger])
        # What is deleted is so by one process, which the others do not wait for.
        kr.save_adapter(self.model, self.path("later.safetensors"))
        newest = checkpoint.newest()
        kr.set_adapter(self.alone, kr.get_adapter(self.model))
        alone = [
            kr.analysis.update_matrix(self.layer(self.alone, n)) for n in ADDRESSES
        ]
        return {
            "files of the run": sorted(os.listdir(template.parent)),
            "newest": [newest.path.name, newest.moment.epoch, newest.moment.step],
            "norms": [record.norm for record in logger.records[-2:]],
            "norms alone": [float(np.linalg.norm(matrix)) for matrix in alone],
            "logs": sorted(logs),
        }

    def reports(self):
        """Print and analyse."""
        inner, alone = self.layer(self.model), self.layer(self.alone)
        return {
            "summary": str(kr.summary(self.model)) == str(kr.summary(self.alone)),
            "spectrum": [
                kr.analysis.update_spectrum(layer).tolist() for layer in (inner, alone)
            ],
            "kernels": furthest(
                kr.analysis.kernels(self.model), kr.analysis.kernels(self.alone)
            ),
            "updates": sorted(kr.analysis.updates(self.model)),
        }

    def merges(self):
        """Merge for a block, into an artefact, into another model, for good."""
        model, run = self.model, self.run
        before, places = kernels(model), layouts(model)
        expected = {n: to_numpy(self.layer(self.alone, n).kernel) for n in ADDRESSES}
        with kr.merged(model):
            within = furthest(kernels(model), expected)
        found = {
            "merged": within,
            "restored": same(kernels(model), before) and layouts(model) == places,
        }
        kr.export_merged(model, self.path("m.keras"), format="keras", verbose=False)
        with undistributed():
            artefact = keras.saving.load_model(self.path("m.keras"))
            found["exported"] = furthest(kernels(artefact), expected)
        combined = build()
        kr.merge_adapters(combined, {self.path("later.safetensors"): 1.0})
        found["combined"] = furthest(kernels(combined), expected)
        if run in SPREAD:
            merge, arguments = divided.merger(self.layer(model))
            found["program"] = merge.lower(*arguments).compile().as_text()
        variable = self.layer(model)._kernel
        place = variable.value.sharding
        kr.merge_randlora(model)
        found["in place"] = (
            self.layer(model).kernel is variable and variable.value.sharding == place
        )
        found["for good"] = furthest(kernels(model), expected)
        return found

    @staticmethod
    def layer(model, name="inner"):
        """Return a layer."""
        return model.get_layer(name)


def orbax(folder):
    """Save with Orbax and go on, under the numbers that Keras gives to optimizers."""
    path = folder / "orbax"
    model = adapted()
    checkpoint = keras.callbacks.OrbaxCheckpoint(path, save_on_background=False)
    fit(model, "sharded", 2, [checkpoint])
    fresh = adapted()
    fresh.load_weights(path)
    found = {
        "layouts": layouts(fresh) == layouts(model),
        "renumbered": fresh.optimizer.name != model.optimizer.name,
        "loaded": same(kr.get_adapter(fresh), kr.get_adapter(model)),
    }
    np.savez(folder / f"saved_{jax.process_index()}.npz", **kr.get_adapter(model))
    for one in (model, fresh):
        fit(one, "sharded", 2)
    found["resumed"] = same(kr.get_adapter(fresh), kr.get_adapter(model))
    np.savez(folder / f"resumed_{jax.process_index()}.npz", **kr.get_adapter(model))
    return found


def quantized(folder):
    """Train on int8 kernels in parts, and merge in both ways."""
    path = folder / "int8.weights.h5"
    with undistributed():
        whole = build()
        whole.quantize("int8")
        configuration = json.dumps(whole.get_config())
        if jax.process_index() == 0:
            whole.save_weights(path)
    hosts_of(build().variables).told("the file is there", "")
    found = {}
    for dequantize in (False, True):
        model = keras.Model.from_config(json.loads(configuration))
        model.load_weights(path)
        model.enable_randlora(RANK, list(ADDRESSES))
        compile_model(model)
        found["loss"] = fit(model, "sharded", 1)["loss"]
        adapter = kr.get_adapter(model)
        with undistributed():
            alone = keras.Model.from_config(json.loads(configuration))
            alone.load_weights(path)
            alone.enable_randlora(RANK, list(ADDRESSES))
            kr.set_adapter(alone, adapter)
            kr.merge_randlora(alone, dequantize=dequantize)
        before = kernels(model)
        with kr.merged(model):
            changed = not same(kernels(model), before)
        found["restored"] = changed and same(kernels(model), before)
        kr.merge_randlora(model, dequantize=dequantize)
        found[f"merged {dequantize}"] = furthest(kernels(model), kernels(alone))
    return found


def refusals(folder):
    """Return what is said where the processes do not do the same."""
    model, first = adapted(), jax.process_index() == 0
    path = folder / "adapter.safetensors"
    kr.save_adapter(model, path)
    state = kr.get_adapter(model)
    found = {
        "save": refusal(model.save, folder / "model.keras"),
        "save_weights": refusal(model.save_weights, folder / "model.weights.h5"),
    }
    other = {p: array + (0 if first else 1) for p, array in state.items()}
    found["another state"] = refusal(kr.set_adapter, model, other)
    lacking = dict(state) if first else {}
    found["a lacking state"] = refusal(kr.set_adapter, model, lacking)
    mine = folder / f"{jax.process_index()}.safetensors"
    if first:
        mine.write_bytes(path.read_bytes())
    found["a lacking file"] = refusal(kr.load_adapter, model, mine)
    link = folder / f"link_{jax.process_index()}.safetensors"
    model.get_layer("inner").randlora.lambda_.assign(np.ones((RANK, 3), "float32"))
    kr.save_adapter(model, folder / "changed.safetensors")
    link.symlink_to(path if first else folder / "changed.safetensors")
    found["another file"] = refusal(kr.load_adapter, model, link)
    kr.set_adapter(model, state)
    if first:
        (folder / "folder.safetensors" / "x").mkdir(parents=True)
    found["no place"] = refusal(kr.save_adapter, model, folder / "folder.safetensors")
    taken = folder / "taken.keras"
    if first:
        taken.write_text("former")
    found["taken"] = refusal(kr.export_merged, model, taken, "keras", verbose=False)
    found["adapted still"] = same(kr.get_adapter(model), state)
    hosts.PATIENCE = 1
    if first:
        found["alone"] = refusal(kr.save_adapter, model, folder / "alone.safetensors")
    else:
        time.sleep(2)
    hosts.PATIENCE = 60
    kr.save_adapter(model, folder / "after.safetensors")
    found["after"] = (folder / "after.safetensors").is_file()
    found["unchanged"] = same(kr.get_adapter(model), state)
    return found


def merging_memory():
    """Return what merging a large kernel takes on a device, in kernels, and how."""
    found = {}
    side, rank = 512, 24  # n * r is 528, so that B is no kernel in shape
    for basis in ("uniform", "sparse", "kronecker"):
        for axes in ((None, "model"), ("model", None)):
            base_map = LayoutMap(DeviceMesh((1, 4), ("batch", "model")))
            base_map["large/kernel"] = axes
            spread = ModelParallel(
                layout_map=kr.layout_map(base_map, shard_over="model"),
                batch_dim_name="batch",
                auto_shard_dataset=False,
            )
            with spread.scope():
                inputs = keras.Input((side,))
                outputs = layers.Dense(side, name="large")(inputs)
                model = keras.Model(inputs, outputs)
                model.enable_randlora(rank, "large", basis=basis)
                merge, arguments = divided.merger(model.get_layer("large"))
                program = merge.lower(*arguments).compile()
            taken = program.memory_analysis().temp_size_in_bytes / (4 * side * side)
            found[f"{basis} {axes}"] = [taken, f"[{side},{side}]" in program.as_text()]
    return found


def die_while_saving(folder, victim):
    """Save, then save again and be killed when the new file is to take its place."""
    with distribution("sharded").scope():
        model = adapted()
        path = folder / "adapter.safetensors"
        kr.save_adapter(model, path)
        np.savez(folder / f"former_{jax.process_index()}.npz", **kr.get_adapter(model))
        state = {p: array + 1 for p, array in kr.get_adapter(model).items()}
        kr.set_adapter(model, state)
        if jax.process_index() == victim:

            def die(*arguments):
                os.kill(os.getpid(), signal.SIGKILL)

            os.replace = die
            saving.base_of = base_of if victim == 0 else die
        kr.save_adapter(model, path)
    print("saved as if nothing were", flush=True)


base_of = saving.base_of


def main(folder, port, process, victim=None):
    """Join the other process, and write what is found."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if victim is not None:
        # Keras's function does not pass on how soon a dead process is noticed.
        jax.distributed.initialize(
            f"localhost:{port}", 2, process, heartbeat_timeout_seconds=10
        )
        die_while_saving(folder, victim)
        return
    keras.distribution.initialize(f"localhost:{port}", 2, process)
    hosts.PATIENCE = 60
    facts = {run: Checks(run, folder).facts() for run in RUNS}
    with distribution("sharded").scope():
        if hasattr(keras.callbacks, "OrbaxCheckpoint"):
            facts["orbax"] = orbax(folder)
        facts["quantized"] = quantized(folder)
        facts["refusals"] = refusals(folder)
    facts["memory"] = merging_memory()
    (folder / f"facts_{process}.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    mlir_context.keep_one()
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
