"""A server of Hugging Face's protocol on the loopback address, files in memory.

It knows what `huggingface_hub` asks for a small file: a repository, one commit of
regular files, their names, and their content. Commits are counted.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_ofthetests"
PRIVATE = "user/private"


class Hub:
    """What the server holds.

    Attributes:
        repositories: The commits of each, as files by name; the last one is `main`.
        fail_commits: Whether a commit ends in an error of the server.
    """

    def __init__(self):
        self.repositories = {}
        self.fail_commits = False
        self.address = ""

    def files(self, repository, revision):
        """Return the files of a revision and its hash, `None` if there is none."""
        commits = self.repositories.get(repository, [])
        hashes = [_hash(repository, number) for number in range(len(commits))]
        if revision == "main" and commits:
            return commits[-1], hashes[-1]
        if revision in hashes:
            return commits[hashes.index(revision)], revision
        return None


def _hash(repository, number):
    return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()


@contextlib.contextmanager
def serving():
    """Run the server and give its `Hub`."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format, *arguments):
        pass

    def do_HEAD(self):
        self._file()

    def do_GET(self):
        if not self.path.startswith("/api/"):
            return self._file()
        match = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/?]+)(?:\?.*)?", self.path
        )
        if match is None:
            return self._answer(404, {"error": self.path})
        repository, what, revision = match.groups()
        found = self._found(repository, revision)
        if found is None:
            return None
        files, sha = found
        if what == "tree":
            return self._answer(
                200,
                [
                    {"type": "file", "path": n, "size": len(c), "oid": _etag(c)}
                    for n, c in files.items()
                ],
            )
        siblings = [{"rfilename": name} for name in files]
        return self._answer(200, {"id": repository, "sha": sha, "siblings": siblings})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.repositories:
                return self._answer(409, {"error": "exists", "url": self._page(name)})
            self.hub.repositories[name] = []
            return self._answer(200, {"url": self._page(name), "name": name})
        if self.path == "/api/validate-yaml":  # of the model card
            return self._answer(200, {"errors": [], "warnings": []})
        match = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path
        )
        if match is None:
            return self._answer(404, {"error": self.path})
        repository, what = match.groups()
        if what == "preupload":
            asked = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in asked
            ]
            return self._answer(200, {"files": modes})
        if self.hub.fail_commits:
            return self._answer(403, {"error": "This account may not write here."})
        commits = self.hub.repositories[repository]
        files = dict(commits[-1]) if commits else {}
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                value = line["value"]
                files[value["path"]] = base64.b64decode(value["content"])
        commits.append(files)
        sha = _hash(repository, len(commits) - 1)
        url = f"{self._page(repository)}/commit/{sha}"
        return self._answer(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def _file(self):
        repository, revision, name = re.fullmatch(
            r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path
        ).groups()
        found = self._found(repository, revision)
        if found is None:
            return None
        files, sha = found
        if name not in files:
            return self._answer(404, {}, {"X-Error-Code": "EntryNotFound"})
        content = files[name]
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": sha}
        return self._send(200, content, headers)

    def _found(self, repository, revision):
        hidden = repository == PRIVATE
        if hidden and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {}, {"X-Error-Code": "RepoNotFound"})
        elif repository not in self.hub.repositories:
            self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        elif (found := self.hub.files(repository, revision)) is not None:
            return found
        elif self.hub.repositories[repository]:
            self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        else:
            self._answer(404, {}, {"X-Error-Code": "EntryNotFound"})
        return None

    def _page(self, repository):
        return f"{self.hub.address}/{repository}"

    def _answer(self, status, content, headers=None):
        self._send(status, json.dumps(content).encode(), headers or {})

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(content):
    return hashlib.sha1(content).hexdigest()
