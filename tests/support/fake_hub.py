"""A hub on loopback with the few answers that `huggingface_hub` needs, which notes what is fetched.

with FakeHub(root) as hub:          root/owner/repo/... are its repositories
    hub.use(monkeypatch, cache)     for huggingface_hub in this process
    hub.fetched                     names and sizes, in order
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest


class FakeHub:
    """Serves until the block ends.

    Attributes:
        fetched: path (with the repository) and bytes of every file sent.
        listed_sizes: whether the list of files has their sizes, as the real one is asked to.
        facts: what it says of a repository beside its files.
        gated: repositories whose files need a token.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fetched: list[tuple[str, int]] = []
        self.listed_sizes = True
        self.facts: dict[str, dict[str, Any]] = {}
        self.gated: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def names(self) -> list[str]:
        """What was fetched, without the repository."""
        return [path.split("/", 2)[2] for path, _ in self.fetched]

    def add(self, repo: str, files: dict[str, bytes]) -> Path:
        """A repository, or more files of it."""
        for name, data in files.items():
            file = self.root / repo / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return self.root / repo

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Have `huggingface_hub` in this process ask here, with an empty cache."""
        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": False,
        }
        for name, value in values.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Nobody answers from now on."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def answer(self, path: str, *, whole: bool) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers; `whole`: not only the headers are asked for."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._facts("/".join(parts[2:4]), tree="tree" in parts[4:5])
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), "/".join(parts[4:]), whole=whole)
        return 404, b"", {}

    def _facts(self, repo: str, *, tree: bool) -> tuple[int, bytes, dict[str, str]]:
        folder = self.root / repo
        if not folder.is_dir():
            return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
        files = {
            str(file.relative_to(folder)): file.stat().st_size
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        kind = {"Content-Type": "application/json"}
        if tree:
            rows = [
                {"type": "file", "path": name, "size": size, "oid": _tag(name.encode())}
                for name, size in files.items()
            ]
            return 200, json.dumps(rows).encode(), kind
        siblings = [
            {"rfilename": name, "size": size} if self.listed_sizes else {"rfilename": name}
            for name, size in files.items()
        ]
        own = self.facts.get(repo, {})
        facts = {
            "id": repo,
            "sha": self._commit(repo),
            "private": False,
            "siblings": siblings,
            "tags": [],
        }
        return 200, json.dumps({**facts, **own}).encode(), kind

    def _file(self, repo: str, name: str, *, whole: bool) -> tuple[int, bytes, dict[str, str]]:
        if repo in self.gated:
            return 403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask its owner"}
        file = self.root / repo / name
        if not file.is_file():
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self._commit(repo)}
        data = file.read_bytes()
        if whole:
            self.fetched.append((f"{repo}/{name}", len(data)))
        return 200, data, {"ETag": f'"{_tag(data)}"', "X-Repo-Commit": self._commit(repo)}

    def _commit(self, repo: str) -> str:
        """Changes with every file."""
        files = sorted(file for file in (self.root / repo).rglob("*") if file.is_file())
        return _tag(b"".join(str(file).encode() + file.read_bytes() for file in files))


def _tag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_words: object) -> None:
            """Nothing on standard error."""

        def do_HEAD(self) -> None:
            self._send(whole=False)

        def do_GET(self) -> None:
            self._send(whole=True)

        def _send(self, *, whole: bool) -> None:
            status, body, headers = hub.answer(self.path, whole=whole)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if whole:
                self.wfile.write(body)

    return Handler
