"""A stand-in for the Hugging Face Hub on this machine: what its client asks of it to pull and to push models."""

import base64
import hashlib
import json
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".zip", ".pkl", ".png")
"""Suffixes of files that are kept by their SHA-256, as git-lfs does."""


@dataclass
class Repo:
    """
    A model repo.

    :param commits: files by commit, the newest last
    :param private: whether it shows itself only with a token of its organization
    :param gated: whether its files are given only to those who were let in
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        """:return: the SHA-1 of a new commit with exactly these files"""
        content = b"".join(name.encode() + data for name, data in sorted(files.items()))
        sha = hashlib.sha1(str(len(self.commits)).encode() + content).hexdigest()
        self.commits[sha] = dict(files)
        return sha

    def resolve(self, revision: str) -> str | None:
        """:return: the commit that a revision names"""
        if revision == "main":
            return list(self.commits)[-1]
        return revision if revision in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        """Those of the newest commit."""
        return self.commits[self.resolve("main")]


class HubServer(ThreadingHTTPServer):
    """
    Serves repos from memory until it is closed. Faults are switched on by its attributes:

    - ``cut``: contents of files whose name ends so end in the middle, and the connection with them
    - ``status``: every request is answered with this status
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, list[str]] = {}  # and the organizations that they may write to
        self.large: dict[str, bytes] = {}
        self.cut = ""
        self.status: int | None = None
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repo: str, files: dict[str, bytes], **kwargs: bool) -> str:
        """:return: the SHA-1 of a commit with these files, in a repo made if need be"""
        return self.repos.setdefault(repo, Repo(**kwargs)).commit(files)

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self):
        self._answer("HEAD")

    def do_GET(self):
        self._answer("GET")

    def do_POST(self):
        self._answer("POST")

    def do_PUT(self):
        self._answer("PUT")

    def log_message(self, *args):
        pass

    # ------------------------------------------------------------ routing

    def _answer(self, method: str) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.server.requests.append(" ".join(filter(None, (method, path, self.headers.get("Range")))))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.query = parse_qs(url.query)
        if self.server.status is not None:
            return self._error(self.server.status, "Oops", "out of order")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            return self._error(401, None, "Invalid credentials in Authorization header")
        self.organizations = self.server.tokens.get(token) if token else None
        for pattern, handle in self._ROUTES[method]:
            if match := re.fullmatch(pattern, path):
                return handle(self, *match.groups())
        return self._error(404, None, f"no such route: {path}")

    def _repo(self, name: str) -> Repo | None:
        """The repo if it shows itself; the Hub does not tell the nameless whether there is a private one."""
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and _organization(name) not in (self.organizations or ())):
            if self.organizations is None:
                return self._error(401, "RepoNotFound", "Invalid username or password.")
            return self._error(404, "RepoNotFound", "Repository not found")
        return repo

    def _may_write(self, organization: str) -> bool:
        if self.organizations is None:
            self._error(401, None, "Invalid username or password.")
        elif organization not in self.organizations:
            self._error(403, None, f"You don't have the rights to write to {organization}")
        return organization in (self.organizations or ())

    # ------------------------------------------------------------ reading

    def _list_models(self) -> None:
        author = self.query.get("author", [""])[0]
        names = [name for name, repo in self.server.repos.items() if not repo.private and name.startswith(f"{author}/")]
        self._json([{"id": name, "modelId": name} for name in names])

    def _model(self, name: str, revision: str | None = None) -> None:
        if (repo := self._repo(name)) is None:
            return
        if (sha := repo.resolve(revision or "main")) is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        self._json({"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def _tree(self, name: str, revision: str) -> None:
        if (repo := self._repo(name)) is not None:
            self._json([_tree_entry(path, data) for path, data in repo.commits[repo.resolve(revision)].items()])

    def _file(self, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(name)) is None:
            return
        if repo.gated:
            return self._error(401 if self.organizations is None else 403, "GatedRepo", "Access is restricted")
        if (sha := repo.resolve(revision)) is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if path not in repo.commits[sha]:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        self._send_file(
            repo.commits[sha][path], {"X-Repo-Commit": sha, "ETag": f'"{_etag(path, repo.commits[sha][path])}"'}
        )

    def _send_file(self, data: bytes, headers: dict[str, str]) -> None:
        start = int(re.match(r"bytes=(\d+)", self.headers.get("Range", "bytes=0")).group(1))
        self.send_response(206 if start else 200)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        for key, value in {**headers, "Content-Length": str(len(data) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            cut = bool(self.server.cut) and self.path.endswith(self.server.cut)
            end = len(data) // 2 if cut else len(data)
            self.wfile.write(data[start : max(start, end)])
            self.close_connection = cut

    def _whoami(self) -> None:
        if self.organizations is None:
            return self._error(401, None, "Invalid username or password.")
        self._json({"type": "user", "name": "someone", "orgs": [{"name": name} for name in self.organizations]})

    # ------------------------------------------------------------ writing

    def _create(self) -> None:
        wanted = json.loads(self.body)
        if self._may_write(wanted["organization"]):
            name = f"{wanted['organization']}/{wanted['name']}"
            exists = name in self.server.repos
            if not exists:
                self.server.add(name, {".gitattributes": b""}, private=wanted.get("visibility") == "private")
            self._json({"url": f"{self.server.url}/{name}", "name": name}, 409 if exists else 200)

    def _preupload(self, name: str, revision: str) -> None:
        if self._repo(name) is not None and self._may_write(_organization(name)):
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
            self._json({"files": [{"path": p, "uploadMode": modes[p], "shouldIgnore": False} for p in paths]})

    def _batch(self, name: str) -> None:
        objects = [{**wanted, "actions": self._upload_action(wanted)} for wanted in json.loads(self.body)["objects"]]
        self._json({"transfer": "basic", "objects": objects})

    def _upload_action(self, wanted: dict) -> dict:
        return {"upload": {"href": f"{self.server.url}/large/{wanted['oid']}"}}

    def _put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large[oid] = self.body
        self._json({})

    def _commit(self, name: str, revision: str) -> None:
        if (repo := self._repo(name)) is None or not self._may_write(_organization(name)):
            return
        files = dict(repo.files)
        for line in self.body.decode().splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}"})

    def _validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    # ------------------------------------------------------------ answers

    def _json(self, content, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        headers = {**(headers or {}), "X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), {"Content-Type": "application/json", **headers})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        with suppress(ConnectionError):
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    _ROUTES = {  # noqa: RUF012
        "GET": [
            (r"/api/models", _list_models),
            (r"/api/models/([^/]+/[^/]+)", _model),
            (r"/api/models/([^/]+/[^/]+)/revision/(.+)", _model),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", _tree),
            (r"/api/whoami-v2", _whoami),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _file),
        ],
        "HEAD": [(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _file)],
        "POST": [
            (r"/api/repos/create", _create),
            (r"/api/validate-yaml", _validate),
            (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", _preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", _commit),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _batch),
        ],
        "PUT": [(r"/large/([0-9a-f]{64})", _put)],
    }


def _organization(name: str) -> str:
    return name.partition("/")[0]


def _etag(path: str, data: bytes) -> str:
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _tree_entry(path: str, data: bytes) -> dict:
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    entry: dict = {"type": "file", "oid": blob, "size": len(data), "path": path}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry
