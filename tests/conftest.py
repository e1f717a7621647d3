"""One backend a session, named by KERAS_BACKEND, and no PyTorch beside another one."""

import gc
import itertools
import os
import shutil
import sys

import forks
import pytest
import xla_flags
import xla_programs

os.environ.setdefault("KERAS_BACKEND", "jax")
# Friendly to small machines, where a worker of pytest-xdist has one core, and XLA
# compiles many small programs; what the environment already says counts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", xla_flags.of_installed())
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# OpenVINO else forks processes that tell its makers of each conversion.
os.environ.setdefault("CI", "true")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# Many tests compile the same programs; XLA does so once. The first process of a run
# makes the folder, workers and subprocesses inherit it.
if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    _programs = None
else:
    _programs = xla_programs.folder_of_run()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_programs)
# Else the folder's path is part of a program's key.
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# What tests start as programs of their own are forks of one process.
_forks = forks.folder_of_run()

# Garbage is collected between tests alone, see `_quick_collection`.
_TESTS, TESTS_OF_A_COLLECTION = itertools.count(1), 150
gc.disable()
# Python counts the frozen objects one by one, half a million in each test.
_count_frozen, gc.get_freeze_count = gc.get_freeze_count, lambda: 500_000
PASSED = pytest.StashKey[bool]()


def pytest_configure(config):
    """Prepare the backend in each process that runs tests, which takes seconds."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # the workers do
    import keras

    if keras.backend.backend() == "tensorflow":
        import quick_tracing
        import tensorflow as tf

        quick_tracing.build_optimizers_first()
        # As for XLA: most graphs run once, which no optimizer of graphs pays for.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if keras.backend.backend() == "jax":
        import mlir_context

        mlir_context.keep_one()


def torch_is_foreign():
    """Whether PyTorch is loaded beside another backend.

    The other two cannot be held to this: where they are installed Keras loads JAX when
    imported, and TensorFlow when it saves a model or sets the random seed.
    """
    import keras

    return "torch" in sys.modules and keras.backend.backend() != "torch"


@pytest.fixture(scope="session")
def seed():
    """Give the seed that every test starts with."""
    return 1337


@pytest.fixture
def in_strips(monkeypatch):
    """Form the updates of small kernels in strips, as those of wide ones."""
    from keras_randlora.update import strips

    monkeypatch.setattr(strips, "FEWEST_ENTRIES", 0)
    monkeypatch.setattr(strips, "FEWEST_COLUMNS", 1)
    monkeypatch.setattr(strips, "SMALLEST_COMPILED_SIDE", 0)
    monkeypatch.setattr(strips, "STRIP_OF_UPDATE", 300)
    monkeypatch.setattr(strips, "STRIP_OF_GRADIENT", 600)


@pytest.fixture(scope="module", autouse=True)
def _no_graph_is_kept():
    """Forget the gradients that TensorFlow registers: for ever, with their graphs."""
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        yield
        return
    from tensorflow.python.framework import ops

    registered = ops.gradient_registry._registry
    before = set(registered)
    yield
    for name in registered.keys() - before:
        registered.pop(name, None)


@pytest.fixture(autouse=True)
def _quick_collection(_isolated):
    """Keep the garbage collector from the frameworks and from what former tests left.

    That is half a million objects. Adapting looks through all that it knows for models,
    and Keras collects all garbage whenever it quantizes.
    """
    if next(_TESTS) % TESTS_OF_A_COLLECTION == 0:
        gc.unfreeze()
        gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def quick_processes():
    """Start programs of Python as forks of one that has loaded the frameworks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", forks.python())
        yield


@pytest.fixture
def nothing_frozen(monkeypatch):
    """Undo `_quick_collection` for one test."""
    monkeypatch.setattr(gc, "get_freeze_count", _count_frozen)
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture(autouse=True)
def _isolated(seed):
    """Seed each test, and fail the first one that loads PyTorch beside another."""
    import keras

    keras.utils.set_random_seed(seed)  # loads TensorFlow
    before = torch_is_foreign()
    yield
    loaded = torch_is_foreign() and not before
    assert not loaded, f"the test loaded torch under {keras.backend.backend()}"


def pytest_collection_modifyitems(items):
    """Put files with a long setup first: a worker at its end steals from the end."""
    items.sort(key=lambda item: item.get_closest_marker("long_setup") is None)


def pytest_collection_finish(session):
    """Stop before the first test if the wrong backend runs or torch came along."""
    import keras

    requested, running = os.environ["KERAS_BACKEND"], keras.backend.backend()
    if running != requested:
        pytest.exit(f"KERAS_BACKEND={requested}, but Keras runs on {running}", 3)
    if torch_is_foreign():
        pytest.exit(f"a test module or plugin loaded torch under {running}", 3)


def pytest_sessionfinish(session, exitstatus):
    """Note whether the run passed, for `pytest_unconfigure`."""
    session.config.stash[PASSED] = exitstatus == 0


def pytest_unconfigure(config):
    """Keep the compiled programs of a run that passed; its workers have ended."""
    if _forks is not None:
        shutil.rmtree(_forks)
    if _programs is not None:
        xla_programs.end_run(_programs, config.stash.get(PASSED, False))
