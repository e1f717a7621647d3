"""Adapters on a hub: a server of Hugging Face's protocol on the loopback address."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import PRIVATE, TOKEN, serving

import keras_randlora as kr
from keras_randlora.files import hub as hub_module
from keras_randlora.files import read_adapter
from keras_randlora.files.hub import HubAddress, fetched_file
from keras_randlora.files.model_card import model_card

pytestmark = [
    pytest.mark.any_backend,
    pytest.mark.long_setup,
    pytest.mark.usefixtures("quick_processes"),
]
WORKER = Path(__file__).parents[1] / "hub_worker.py"
REPOSITORY = "hf://user/tiny"

ADDRESSES = {
    "hf://user/name": HubAddress("hf", "user/name"),
    "hf://user/name@v1": HubAddress("hf", "user/name", "v1"),
    "hf://user/name@v1/a/b.safetensors": HubAddress(
        "hf", "user/name", "v1", "a/b.safetensors"
    ),
    "hf://user/name/folder": HubAddress("hf", "user/name", None, "folder"),
    "kaggle://u/gemma/keras/tiny": HubAddress("kaggle", "u/gemma/keras/tiny"),
    "kaggle://u/gemma/keras/tiny/3": HubAddress("kaggle", "u/gemma/keras/tiny/3"),
    "kaggle://u/gemma/keras/tiny/3/a.safetensors": HubAddress(
        "kaggle", "u/gemma/keras/tiny/3", None, "a.safetensors"
    ),
    "adapter.safetensors": None,
    "gs://bucket/adapter.safetensors": None,
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses_are_read(text):
    assert HubAddress.parsed(text) == ADDRESSES[text]


@pytest.mark.parametrize("text", ["hf://name", "hf://user/", "hf://user/name@"])
def test_what_is_no_address_on_hugging_face_is_refused(text):
    with pytest.raises(ValueError, match="An address on Hugging Face is 'hf://user/na"):
        fetched_file(text)


@pytest.mark.parametrize("text", ["kaggle://user/model", "kaggle://user//keras/x"])
def test_what_is_no_address_on_kaggle_is_refused(text):
    with pytest.raises(ValueError, match="An address on Kaggle is 'kaggle://user/mod"):
        fetched_file(text)


def test_other_schemes_are_refused_as_before():
    with pytest.raises(ValueError, match="local disks only, not on 'gs://'"):
        kr.load_adapter(None, "gs://bucket/adapter.safetensors")


class Kaggle:
    """Stands for `kagglehub`, with its files in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []
        self.uploaded = {}

    def model_download(self, handle, path=None):
        self.asked.append((handle, path))
        return str(self.folder / path) if path else str(self.folder)

    def model_upload(self, handle, folder, version_notes=""):
        self.uploaded[handle] = {p.name: p.read_bytes() for p in Path(folder).iterdir()}


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    fake = Kaggle(tmp_path)
    monkeypatch.setattr(hub_module, "_kagglehub", lambda: fake)
    return fake


def test_kaggle_is_asked_for_the_adapter_of_a_variation(kaggle, tmp_path):
    found = fetched_file("kaggle://u/gemma/keras/tiny/3")
    assert found == tmp_path / "adapter.safetensors"
    assert kaggle.asked == [("u/gemma/keras/tiny/3", "adapter.safetensors")]


def test_an_upload_to_kaggle_has_adapter_and_card(kaggle, local):
    uri = "kaggle://u/gemma/keras/tiny"
    page = kr.upload_adapter(uri, local, base_preset="gemma3_1b")
    assert page == "https://www.kaggle.com/models/u/gemma/keras/tiny"
    files = kaggle.uploaded["u/gemma/keras/tiny"]
    assert files["adapter.safetensors"] == local.read_bytes()
    assert (
        b'kr.load_adapter(model, "kaggle://u/gemma/keras/tiny")' in files["README.md"]
    )


def test_saving_to_a_hub_names_the_way():
    with pytest.raises(
        ValueError, match=r"then `upload_adapter\('hf://user/tiny', 'ada"
    ):
        kr.files.adapter_file.checked_suffix(REPOSITORY)


class Worker:
    """A process with its own cache and account that talks to the server."""

    def __init__(self, folder, endpoint, token):
        environment = {
            **os.environ,
            "PYTHONPATH": str(WORKER.parents[1]),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        environment.pop("HF_TOKEN", None)
        if token:
            environment["HF_TOKEN"] = token
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(WORKER), str(folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.printed = []

    def __call__(self, *step):
        self.process.stdin.write(json.dumps(step) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
            self.printed.append(line)
        raise RuntimeError("the worker ended")

    def value(self, *step):
        answer = self(*step)
        assert "value" in answer, answer
        return answer["value"]


@contextlib.contextmanager
def working(folder, endpoint, token=TOKEN):
    worker = Worker(folder, endpoint, token)
    try:
        yield worker
    finally:
        worker.process.stdin.close()
        worker.process.wait(60)
        worker.process.stdout.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub():
    with serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def worker(hub, folder):
    with working(folder, hub.address) as worker:
        worker.value("save")
        yield worker


@pytest.fixture(scope="module")
def uploaded(worker):
    """Upload the adapter and return the address of the page."""
    card = {"base_preset": "gemma3_1b", "data": "nine stories", "metrics": {"loss": 1}}
    return worker.value("upload", REPOSITORY, card)


@pytest.fixture(scope="module")
def local(worker, folder):
    return folder / "local.safetensors"


def test_an_upload_is_one_commit_with_a_card(uploaded, hub, local):
    assert uploaded.startswith(f"{hub.address}/user/tiny")
    (files,) = hub.repositories["user/tiny"]
    assert sorted(files) == ["README.md", "adapter.safetensors"]
    assert files["adapter.safetensors"] == local.read_bytes()
    card = files["README.md"].decode()
    for text in (
        "library_name: keras-randlora",
        "# tiny",
        "a Functional of 143 parameters (`gemma3_1b`)",
        "Training data: nine stories.",
        "| loss | 1 |",
        'kr.load_adapter(model, "hf://user/tiny")',
        "| `rank` | `2` |",
    ):
        assert text in card, card


def test_what_was_uploaded_is_loaded_by_its_address(uploaded, worker):
    assert worker.value("load", REPOSITORY)
    assert worker.value("load", f"{REPOSITORY}/adapter.safetensors")
    assert worker.value("merge", REPOSITORY)
    assert worker.value("info", REPOSITORY) == 0
    assert "3 adapted layers" in worker.printed[-1]


def test_a_revision_is_what_it_was(uploaded, worker, hub):
    revision = hub.files("user/tiny", "main")[1]
    assert worker.value("command", REPOSITORY) == 0
    first, last = hub.repositories["user/tiny"]
    assert last["README.md"] == first["README.md"], "a card that is there stays"
    assert worker.value("load", f"{REPOSITORY}@{revision}")
    missing = worker("load", f"{REPOSITORY}@v9")
    assert missing["error"] == "FileNotFoundError"
    assert "There is no 'hf://user/tiny@v9' on the hub" in missing["text"]


def test_a_peft_folder_is_loaded_by_its_address(worker):
    worker.value("upload_peft", "hf://user/peft")
    assert worker.value("load_peft", "hf://user/peft") > 0


def test_without_a_network_the_cache_serves(uploaded, worker, hub, folder):
    assert worker.value("load", REPOSITORY)
    with working(folder, "http://127.0.0.1:9") as offline:
        assert offline.value("load", REPOSITORY)
        missing = offline("load", "hf://user/never")
    assert missing["error"] == "ConnectionError"
    assert "'hf://user/never' is not in the local cache" in missing["text"]


def test_what_is_not_there_is_named(uploaded, worker):
    for address in ("hf://user/none", f"{REPOSITORY}/other.safetensors"):
        missing = worker("load", address)
        assert missing["error"] == "FileNotFoundError"
        assert f"There is no '{address}' on the hub" in missing["text"]


def test_without_an_account_private_files_and_uploads_are_refused(hub, folder, worker):
    hub.repositories[PRIVATE] = [{"adapter.safetensors": b"secret"}]
    with working(folder, hub.address, token=None) as stranger:
        hidden = stranger("load", f"hf://{PRIVATE}")
        refused = stranger("upload", "hf://user/mine")
    assert hidden["error"] == refused["error"] == "PermissionError"
    assert "log in" in hidden["text"]
    assert "log in" in refused["text"]
    assert "user/mine" not in hub.repositories


def test_a_refused_commit_leaves_nothing(hub, worker):
    hub.fail_commits = True
    try:
        refused = worker("upload", "hf://user/readonly")
    finally:
        hub.fail_commits = False
    assert refused["error"] == "PermissionError"
    assert "may write there" in refused["text"]
    assert hub.repositories["user/readonly"] == []


def test_a_card_without_more_is_whole(local):
    card = model_card(read_adapter(local), REPOSITORY)
    assert "None" not in card
    assert 'from_preset("the preset of its base")' in card


def test_what_is_no_adapter_is_not_uploaded(hub, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not an adapter")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        kr.upload_adapter("hf://user/broken", tmp_path / "x.safetensors")
    assert "user/broken" not in hub.repositories
