"""Adapters on a hub: downloaded through the hub's own library and cache.

| address | what it names |
|---|---|
| `hf://user/name` | `adapter.safetensors` of a Hugging Face repository |
| `hf://user/name@revision` | the same at a branch, tag or commit |
| `hf://user/name/folder/file.safetensors` | another file of it |
| `kaggle://user/model/framework/variation[/version]` | `adapter.safetensors` there |

`huggingface_hub` and `kagglehub` are loaded when an address needs them. A file that was
downloaded once is read from their caches without a network.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from keras_randlora.tools import local_path

ADAPTER_NAME = "adapter.safetensors"
CARD_NAME = "README.md"
PEFT_NAMES = ("adapter_config.json", "adapter_model.safetensors")
_KAGGLE_PARTS = 4  # user, model, framework, variation


class HubAddress(NamedTuple):
    """A place on a hub.

    Attributes:
        hub: `"hf"` or `"kaggle"`.
        repository: `user/name`, on Kaggle `user/model/framework/variation[/version]`.
        revision: Branch, tag or commit; `None` for the newest.
        inside: Path of a file or folder in it, `""` for none.
    """

    hub: str
    repository: str
    revision: str | None = None
    inside: str = ""

    @classmethod
    def parsed(cls, text: str) -> HubAddress | None:
        """Return the address that `text` is, `None` if it names no hub.

        Raises:
            ValueError: It names a hub and is no address there.
        """
        hub, separator, rest = text.partition("://")
        if not separator or hub not in ("hf", "kaggle"):
            return None
        parts = rest.split("/")
        if hub == "kaggle":
            whole = parts[: _KAGGLE_PARTS + 1]
            if len(whole) > _KAGGLE_PARTS and not whole[-1].isdigit():
                whole = whole[:_KAGGLE_PARTS]
            if len(whole) < _KAGGLE_PARTS or not all(parts):
                raise ValueError(
                    "An address on Kaggle is 'kaggle://user/model/framework/variation' "
                    f"with an optional '/version'. Received: '{text}'."
                )
            return cls(hub, "/".join(whole), inside="/".join(parts[len(whole) :]))
        match = re.fullmatch(r"([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?", rest)
        if match is None:
            raise ValueError(
                "An address on Hugging Face is 'hf://user/name', with an optional "
                f"'@revision' and '/file'. Received: '{text}'."
            )
        return cls(hub, match[1], match[2], match[3] or "")


def fetched_file(path: str | os.PathLike[str]) -> Path:
    """Return the local path of an adapter file, downloaded if it is on a hub.

    Args:
        path: A local path, or an address of the table above.

    Raises:
        ValueError: It is no address of a hub and no local path.
        FileNotFoundError: The hub has no such repository, revision or file.
        PermissionError: The account may not read it.
        ConnectionError: The hub cannot be reached, and the cache does not have it.
        ImportError: The hub's library is not installed.
    """
    address = HubAddress.parsed(os.fspath(path))
    if address is None:
        return local_path(path)
    name = address.inside or ADAPTER_NAME
    with _explained(str(path)):
        if address.hub == "kaggle":
            return Path(_kagglehub().model_download(address.repository, name))
        found = _hugging_face().hf_hub_download(
            address.repository, name, revision=address.revision
        )
    return Path(found)


def fetched_folder(path: str | os.PathLike[str]) -> Path:
    """Return the local path of a PEFT folder, downloaded if it is on a hub.

    Args:
        path: A local path, or an address of the table above, with a folder if need be.

    Raises:
        OSError, ValueError, ImportError: See `fetched_file`.
    """
    address = HubAddress.parsed(os.fspath(path))
    if address is None:
        return local_path(path)
    with _explained(str(path)):
        if address.hub == "kaggle":
            place = Path(_kagglehub().model_download(address.repository))
        else:
            patterns = [f"{address.inside}/{name}".lstrip("/") for name in PEFT_NAMES]
            place = Path(
                _hugging_face().snapshot_download(
                    address.repository,
                    revision=address.revision,
                    allow_patterns=patterns,
                )
            )
    return place / address.inside


def upload_files(uri: str, files: dict[str, bytes], message: str) -> str:
    """Upload files to a repository, which is made if need be, in one commit.

    A model card that is there already stays as it is.

    Args:
        uri: `hf://user/name[@branch]`, or `kaggle://user/model/framework/variation`.
        files: Content by name.
        message: Describes the commit.

    Returns:
        Where the files are, for people to open.

    Raises:
        OSError, ValueError, ImportError: See `fetched_file`.
    """
    address = HubAddress.parsed(uri)
    if address is None or address.inside:
        raise ValueError(
            "Adapters are uploaded to 'hf://user/name' or "
            f"'kaggle://user/model/framework/variation'. Received: '{uri}'."
        )
    with _explained(uri):
        if address.hub == "kaggle":
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    (Path(folder) / name).write_bytes(content)
                _kagglehub().model_upload(
                    address.repository, folder, version_notes=message
                )
            return f"https://www.kaggle.com/models/{address.repository}"
        return _committed(address, files, message)


def _committed(address: HubAddress, files: dict[str, bytes], message: str) -> str:
    from huggingface_hub import CommitOperationAdd

    hub = _hugging_face()
    hub.create_repo(address.repository, exist_ok=True)
    there = hub.file_exists(address.repository, CARD_NAME, revision=address.revision)
    operations = [
        CommitOperationAdd(name, content)
        for name, content in files.items()
        if name != CARD_NAME or not there
    ]
    commit = hub.create_commit(
        address.repository,
        operations,
        commit_message=message,
        revision=address.revision,
    )
    return str(commit.repo_url)


def _hugging_face() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(_missing("hf", "huggingface_hub")) from error
    return HfApi()


def _kagglehub() -> Any:
    try:
        import kagglehub
    except ImportError as error:
        raise ImportError(_missing("kaggle", "kagglehub")) from error
    return kagglehub


def _missing(hub: str, package: str) -> str:
    return (
        f"An address '{hub}://' needs the package {package}, which is not installed: "
        f"pip install {package}"
    )


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn what the hubs' libraries raise into one sentence with the remedy."""
    try:
        yield
    except (ImportError, PermissionError, ConnectionError):
        raise
    except Exception as error:
        for name, explain in _EXPLANATIONS.items():
            if any(kind.__name__ == name for kind in type(error).__mro__):
                raise explain(where, error) from error
        raise


def _no_place(where: str, error: Exception) -> Exception:
    status = _status(error)
    if status in (401, 403):
        return PermissionError(
            f"The hub shows '{where}' to none or to other accounts only: check the "
            "name, or log in with `hf auth login` (Kaggle: `kagglehub.login()`) and "
            "accept the licence on its page."
        )
    return FileNotFoundError(f"There is no '{where}' on the hub: {_first_line(error)}")


def _not_cached(where: str, error: Exception) -> Exception:
    return ConnectionError(
        f"'{where}' is not in the local cache, and the hub cannot be reached: "
        f"{_first_line(error)}"
    )


def _no_network(where: str, error: Exception) -> Exception:
    return ConnectionError(
        f"The hub cannot be reached for '{where}': {_first_line(error)}"
    )


def _not_allowed(where: str, error: Exception) -> Exception:
    status = _status(error)
    if status in (401, 403):
        return PermissionError(
            f"The hub refuses '{where}' (status {status}): log in with an account that "
            "may write there: `hf auth login` (Kaggle: `kagglehub.login()`)."
        )
    if status == 404:
        return _no_place(where, error)
    return ConnectionError(f"The hub failed on '{where}': {_first_line(error)}")


def _no_name(where: str, error: Exception) -> Exception:
    return ValueError(f"'{where}' is no address on the hub: {_first_line(error)}")


def _status(error: Exception) -> int | None:
    """Return the status of the hub's answer, `None` without one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# By name of the class, the more special ones first: the libraries need not be there.
_EXPLANATIONS: dict[str, Callable[[str, Exception], Exception]] = {
    "HFValidationError": _no_name,
    "GatedRepoError": _no_place,
    "RepositoryNotFoundError": _no_place,
    "RevisionNotFoundError": _no_place,
    "RemoteEntryNotFoundError": _no_place,
    "LocalTokenNotFoundError": _not_allowed,
    "LocalEntryNotFoundError": _not_cached,
    "HfHubHTTPError": _not_allowed,
    "KaggleApiHTTPError": _not_allowed,
    "TransportError": _no_network,
    "RequestException": _no_network,
}
