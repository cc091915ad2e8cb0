"""The HTTP side of the loopback Hub."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.vulcan.hub.faults import FaultQueue
from tests.vulcan.hub.repository import Blob, PullRequest, Refused, Repository

WHEN = "2026-01-01T00:00:00.000Z"
LARGE = (".parquet", ".png")
"""Files that go to large-file storage."""


@dataclass(frozen=True)
class Logged:
    """One request, and what was answered (0: the connection was dropped)."""

    method: str
    path: str
    status: int


@dataclass
class Answer:
    """What a route returns."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, content: Any, status: int = 200, **headers: str) -> Answer:
        return cls(
            json.dumps(content).encode(),
            status,
            {"Content-Type": "application/json; charset=utf-8", **headers},
        )


class LoopbackHub:
    """The server; a context manager.

    Examples
    --------
    >>> with LoopbackHub() as hub:  # doctest: +SKIP
    ...     hub.create("me/forge")
    ...     HfApi(endpoint=hub.endpoint, token="hf_test")
    """

    def __init__(self, *, token: str | None = None) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults = FaultQueue()
        self.log: list[Logged] = []
        self.token = token
        """If given, the only token that may write."""
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def create(self, name: str) -> Repository:
        """A new data-set repository."""
        self.repositories[name] = Repository(name)
        return self.repositories[name]

    def repository(self, name: str) -> Repository:
        if name not in self.repositories:
            raise Refused(404, "Repository Not Found", "RepoNotFound")
        return self.repositories[name]

    def count(self, pattern: str) -> int:
        """How many requests matched so far."""
        with self._lock:
            return sum(1 for one in self.log if re.search(pattern, f"{one.method} {one.path}"))

    def write_down(self, method: str, path: str, status: int) -> None:
        with self._lock:
            self.log.append(Logged(method, path, status))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed leaves a broken pipe; that is its affair."""


@dataclass
class Request:
    """What a route is given."""

    hub: LoopbackHub
    match: re.Match[str]
    query: dict[str, list[str]]
    headers: Any
    body: bytes

    @property
    def repository(self) -> Repository:
        return self.hub.repository(self.match["id"])

    @property
    def revision(self) -> str:
        return unquote(self.match.groupdict().get("rev") or "main")

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")


Route = Callable[[Request], Answer]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
ID = r"(?P<id>[^/]+/[^/]+)"


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    """Register a function for requests of this form."""

    def register(function: Route) -> Route:
        ROUTES.append((method, re.compile(pattern + "$"), function))
        return function

    return register


# ---------------------------------------------------------------- writing


@route("POST", rf"/api/datasets/{ID}/preupload/(?P<rev>[^/]+)")
def _preupload(request: Request) -> Answer:
    asked = json.loads(request.body)["files"]
    if len(asked) > 256:
        raise Refused(413, "at most 256 files a call")
    files = request.repository.at(request.revision).files
    return Answer.json({"files": [_upload_mode(one["path"], files.get(one["path"])) for one in asked]})


def _upload_mode(path: str, existing: Blob | None) -> dict[str, Any]:
    mode = "lfs" if path.endswith(LARGE) else "regular"
    found = {"path": path, "uploadMode": mode, "shouldIgnore": False}
    return found if existing is None else {**found, "oid": existing.oid}


@route("POST", rf"/datasets/{ID}\.git/info/lfs/objects/batch")
def _lfs_batch(request: Request) -> Answer:
    asked = json.loads(request.body)["objects"]
    if len(asked) > 256:
        raise Refused(413, "at most 256 objects a call")
    known = request.repository.objects
    objects = []
    for one in asked:
        entry = dict(one)
        if one["oid"] not in known:
            base = f"{request.hub.endpoint}/lfs/{request.match['id']}/{one['oid']}"
            entry["actions"] = {"upload": {"href": base}, "verify": {"href": f"{base}/verify"}}
        objects.append(entry)
    return Answer.json({"transfer": "basic", "objects": objects})


@route("PUT", rf"/lfs/{ID}/(?P<oid>[0-9a-f]+)")
def _lfs_put(request: Request) -> Answer:
    if Blob(request.body, True).sha256 != request.match["oid"]:
        raise Refused(400, "the bytes do not have that sha256")
    request.repository.objects[request.match["oid"]] = request.body
    return Answer()


@route("POST", rf"/lfs/{ID}/(?P<oid>[0-9a-f]+)/verify")
def _lfs_verify(request: Request) -> Answer:
    asked = json.loads(request.body)
    if len(request.repository.objects.get(asked["oid"], b"")) != asked["size"]:
        raise Refused(404, "no such object")
    return Answer.json({})


@route("POST", rf"/api/datasets/{ID}/commit/(?P<rev>[^/]+)")
def _commit(request: Request) -> Answer:
    repository = request.repository
    header: dict[str, Any] = {}
    changes: dict[str, Blob | None] = {}
    for line in request.body.splitlines():
        entry = json.loads(line)
        key, value = entry["key"], entry["value"]
        if key == "header":
            header = value
        elif key == "file":
            changes[value["path"]] = Blob(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if value["oid"] not in repository.objects:
                raise Refused(400, f"{value['path']}: the object {value['oid']} was never uploaded")
            changes[value["path"]] = Blob(repository.objects[value["oid"]], True)
        else:
            changes[value["path"]] = None
    oid, pull = repository.commit(
        request.revision, header["summary"], changes, header.get("parentCommit"), request.flag("create_pr")
    )
    url = f"{request.hub.endpoint}/datasets/{repository.name}"
    content = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
    if pull is not None:
        content["pullRequestUrl"] = f"{url}/discussions/{pull.number}"
    return Answer.json(content)


@route("POST", "/api/repos/create")
def _create(request: Request) -> Answer:
    asked = json.loads(request.body)
    name = f"{asked.get('organization') or 'me'}/{asked['name']}"
    if name in request.hub.repositories:
        raise Refused(409, "You already created this dataset repo")
    request.hub.create(name)
    return Answer.json({"url": f"{request.hub.endpoint}/datasets/{name}"})


@route("POST", "/api/validate-yaml")
def _validate(request: Request) -> Answer:
    return Answer.json({"errors": [], "warnings": []})


# ---------------------------------------------------------------- pull requests


def _discussion(repository: Repository, pull: PullRequest) -> dict[str, Any]:
    return {
        "num": pull.number,
        "title": pull.title,
        "status": pull.status,
        "author": {"name": "me"},
        "createdAt": WHEN,
        "repo": {"name": repository.name, "type": "dataset"},
        "isPullRequest": True,
        "changes": {"base": "refs/heads/main", "mergeCommitId": pull.merge_oid},
        "filesWithConflicts": [],
        "events": [],
        "diff": "",
    }


@route("POST", rf"/api/datasets/{ID}/discussions")
def _open_pull(request: Request) -> Answer:
    asked = json.loads(request.body)
    pull = request.repository.open_pull(asked["title"], asked["description"])
    return Answer.json(_discussion(request.repository, pull))


@route("GET", rf"/api/datasets/{ID}/discussions")
def _list_pulls(request: Request) -> Answer:
    repository = request.repository
    wanted = request.query.get("status", ["all"])[0]
    states = {"open": ("open", "draft"), "closed": ("closed", "merged")}.get(wanted)
    found = [
        _discussion(repository, p) for p in repository.pulls.values() if not states or p.status in states
    ]
    return Answer.json({"discussions": found, "count": len(found), "start": 0})


@route("GET", rf"/api/datasets/{ID}/discussions/(?P<num>\d+)")
def _pull(request: Request) -> Answer:
    pull = request.repository.pulls.get(int(request.match["num"]))
    if pull is None:
        raise Refused(404, "there is no such discussion")
    return Answer.json(_discussion(request.repository, pull))


# ---------------------------------------------------------------- reading


@route("GET", "/api/whoami-v2")
def _whoami(request: Request) -> Answer:
    return Answer.json({"name": "me", "type": "user", "orgs": [], "auth": {}})


@route("GET", rf"/api/datasets/{ID}(/revision/(?P<rev>[^/]+))?")
def _info(request: Request) -> Answer:
    repository, commit = request.repository, request.repository.at(request.revision)
    content = {
        "_id": "0",
        "id": repository.name,
        "author": "me",
        "sha": commit.oid,
        "lastModified": WHEN,
        "createdAt": WHEN,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
    }
    return Answer.json(content)


@route("GET", rf"/api/datasets/{ID}/refs")
def _refs(request: Request) -> Answer:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
        for name, oid in request.repository.refs.items()
        if not name.startswith("refs/")
    ]
    return Answer.json({"branches": branches, "converts": [], "tags": []})


def _entry(path: str, blob: Blob, expand: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob.git_oid, "size": len(blob.data)}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
    if expand:
        entry["lastCommit"] = {"id": "0" * 40, "title": "a commit", "date": WHEN}
    return entry


def _folder(path: str, expand: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    if expand:
        entry["lastCommit"] = {"id": "0" * 40, "title": "a commit", "date": WHEN}
    return entry


@route("GET", rf"/api/datasets/{ID}/tree/(?P<rev>[^/]+)(/(?P<path>.*))?")
def _tree(request: Request) -> Answer:
    repository, revision = request.repository, request.revision
    folder = unquote(request.match["path"] or "").strip("/")
    start = f"{folder}/" if folder else ""
    recursive, expand = request.flag("recursive"), request.flag("expand")
    found = [_folder(p, expand) for p in repository.folders(revision) if p.startswith(start)]
    found += [
        _entry(p, b, expand) for p, b in sorted(repository.at(revision).files.items()) if p.startswith(start)
    ]
    if folder and not found:
        raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    if not recursive:
        found = [entry for entry in found if "/" not in entry["path"][len(start) :]]
    return Answer.json(found)


@route("POST", rf"/api/datasets/{ID}/paths-info/(?P<rev>[^/]+)")
def _paths_info(request: Request) -> Answer:
    asked = parse_qs(request.body.decode())
    expand = asked.get("expand", [""])[0].lower() in ("1", "true")
    if len(asked.get("paths", [])) > 1000:
        raise Refused(413, "too many parameters")
    files = request.repository.at(request.revision).files
    folders = set(request.repository.folders(request.revision))
    found = [_entry(p, files[p], expand) for p in asked.get("paths", []) if p in files]
    return Answer.json(found + [_folder(p, expand) for p in asked.get("paths", []) if p in folders])


@route("GET", rf"/datasets/{ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
@route("HEAD", rf"/datasets/{ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
def _resolve(request: Request) -> Answer:
    commit, path = request.repository.at(request.revision), unquote(request.match["path"])
    blob = commit.files.get(path)
    if blob is None:
        raise Refused(404, f"{path} does not exist", "EntryNotFound")
    headers = {"ETag": f'"{blob.oid}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if span is None:
        return Answer(blob.data, 200, headers)
    first, last = int(span[1]), int(span[2] or len(blob.data) - 1)
    part = blob.data[first : last + 1]
    headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(blob.data)}"
    return Answer(part, 206, headers)


# ---------------------------------------------------------------- the handler


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            """Say nothing: every request is in ``hub.log``."""

        def do_GET(self) -> None:
            self._serve()

        do_HEAD = do_POST = do_PUT = do_GET

        def _serve(self) -> None:
            body = self._body()
            fault = hub.faults.strike(f"{self.command} {self.path}")
            if fault is not None and fault.hook is not None:
                fault.hook()
            answer = None
            if fault is None or fault.after:
                answer = self._answer(body)
            if fault is not None:
                answer = None if fault.drop else Answer(fault.body(), fault.status, dict(fault.headers))
            hub.write_down(self.command, self.path, answer.status if answer else 0)
            if answer is None:
                self.close_connection = True
                return
            with contextlib.suppress(ConnectionError):
                self._send(answer)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, body: bytes) -> Answer:
            split = urlsplit(self.path)
            try:
                self._check_token()
                for method, pattern, function in ROUTES:
                    match = pattern.match(split.path)
                    if method == self.command and match:
                        return function(Request(hub, match, parse_qs(split.query), self.headers, body))
                raise Refused(404, f"this Hub has no {self.command} {split.path}")
            except Refused as error:
                headers = {"X-Error-Message": str(error)}
                if error.code:
                    headers["X-Error-Code"] = error.code
                return Answer.json({"error": str(error)}, error.status, **headers)

        def _check_token(self) -> None:
            writes = self.command in ("POST", "PUT") and "/lfs/" not in self.path
            if hub.token and writes and self.headers.get("Authorization") != f"Bearer {hub.token}":
                raise Refused(401, "Invalid credentials in Authorization header")

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

    return Handler
