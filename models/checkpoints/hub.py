"""Find a model by its path, or fetch it by its name on the Hugging Face hub.

The files of a repository are listed, its settings are fetched and checked, and only then one set of
weights is fetched. Files in the cache of `huggingface_hub` are not fetched again; when the hub
cannot be reached, only they are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from models.configs.architecture import ModelConfig
from models.configs.gguf import check_architecture
from models.configs.reading import config_from_hf
from models.files.hub_listing import HubFile, HubName, Selection, choose, parse_hub_name
from models.files.locate import base_of_adapter, local_path, read_json, shards_of_index
from protocols.errors import ModelError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Accept = Callable[[Path, ModelConfig], None]
"""Called with a folder that holds the settings but not yet the weights, and with the configuration.
Raises ModelError to prevent the download of the weights."""
Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done (0 to 1)."""

_MODULES = "modules.json"
_SECONDS = 10.0
"""Seconds that the hub may take to begin an answer."""


def resolve_model(
    path_or_name: str | PathLike[str],
    *,
    head: str | None = None,
    accept: Accept | None = None,
    progress: Progress | None = None,
) -> Path:
    """The path of a model: an existing path unchanged, or the path of what the hub gave.

    If it is an adapter whose base model is on the hub, the base model is fetched, too.

    A name is `owner/repo`, `owner/repo:Q4_K_M` (the GGUF file with that part in its name) or
    `owner/repo/file.gguf`.

    Args:
        head: overrides the head in the model's configuration.
        accept: checks a model on the hub before its weights are fetched.
        progress: called during the download; without it, `huggingface_hub` shows its own bars.

    Raises:
        ModelError: there is no such path, and nothing supported on the hub; the message names the
            files that could be meant.
    """
    path = local_path(path_or_name)
    if path is None:
        name = parse_hub_name(str(path_or_name))
        if name is None:
            raise ModelError(f"{path_or_name}: no such file or folder; give the path of a model")
        path = _Repository(name, progress).fetch(head, accept)
    base = base_of_adapter(path.parent if path.is_file() else path)
    if base is not None and local_path(base) is None and (name := parse_hub_name(base)):
        try:
            _Repository(name, progress).fetch(None, None)  # later it is found in the cache
        except ModelError as error:
            raise ModelError(f"{path}: an adapter whose base model is missing: {error}") from error
    return path


class _Repository:
    """A repository on the hub, or the part of it that is in the cache."""

    def __init__(self, name: HubName, progress: Progress | None) -> None:
        # Imported here: this takes a while, and most runs read a local file.
        from huggingface_hub import HfApi

        self.name = name
        self._api: HfApi = HfApi()
        self._progress = progress
        self._snapshot: Path | None = None
        self._cached = False
        self._got: set[str] = set()
        self._told = 0  # bytes of the files that are complete
        self._total = 0

    def fetch(self, head: str | None, accept: Accept | None) -> Path:
        """Fetch the settings, check them, then fetch the weights. Returns the path to open."""
        files = self._listing()
        chosen = choose(self.name, files, self._modules(files))
        self._total = sum(file.size or 0 for file in (*chosen.settings, *chosen.weights))
        config = self._config(chosen, head) if chosen.config else None
        for file in chosen.settings:
            self._get(file)
        if config is not None and accept is not None:
            accept(self._folder(), config)
        for file in (*self._shards(chosen, files), *chosen.weights):
            self._get(file)
        return self._place(chosen.opened) if chosen.opened else self._folder()

    def _config(self, chosen: Selection, head: str | None) -> ModelConfig:
        """Fetch and read the configuration. Raises ModelError if it is not supported."""
        place = PurePosixPath(chosen.config)
        generation = str(place.with_name("generation_config.json"))
        for file in chosen.settings:
            if file.path in (chosen.config, generation):
                self._get(file)
        config, beside = self._place(chosen.config), self._place(generation)
        generates = read_json(beside) if beside.is_file() else {}
        try:
            return config_from_hf(read_json(config), generates, head=head)
        except ModelError as error:
            raise ModelError(f"{self.name.repo}: {error}; its weights were not fetched") from None

    def _listing(self) -> list[HubFile]:
        """List all files, with sizes; only those in the cache if the hub does not answer."""
        try:
            info = self._api.model_info(self.name.repo, files_metadata=True, timeout=_SECONDS)
            files = [HubFile(each.rfilename, each.size) for each in info.siblings or ()]
            if any(file.size is None for file in files):
                tree = self._api.list_repo_tree(self.name.repo, recursive=True, revision=info.sha)
                files = [HubFile(e.path, e.size) for e in tree if hasattr(e, "size")]
        # The library passes on errors from its HTTP client, whose class differs between versions.
        except Exception as error:
            if not (files := self._listing_of_cache()):
                raise _unreachable(self.name, error) from error
        else:
            if self._is_gguf_alone(files):
                architecture = (info.gguf or {}).get("architecture")
                if architecture is not None:
                    check_architecture(architecture)
        return files

    def _is_gguf_alone(self, files: Sequence[HubFile]) -> bool:
        """Whether the hub's facts about a GGUF file apply to the file that will be opened."""
        named = self.name.tag or self.name.file.endswith(".gguf")
        return bool(named) or not any(file.path.endswith(".safetensors") for file in files)

    def _listing_of_cache(self) -> list[HubFile]:
        from huggingface_hub import CacheNotFound, constants, scan_cache_dir

        try:
            repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
        except CacheNotFound:
            return []
        for repo in repos:
            if repo.repo_type == "model" and repo.repo_id == self.name.repo:
                revision = repo.refs.get("main")
                if revision is not None:
                    self._cached, self._snapshot = True, revision.snapshot_path
                    root = revision.snapshot_path
                    return [
                        HubFile(str(file.file_path.relative_to(root)), file.size_on_disk)
                        for file in revision.files
                    ]
        return []

    def _modules(self, files: Sequence[HubFile]) -> tuple[str, ...]:
        """Folders of the parts of a sentence-transformers model."""
        if self.name.file or self.name.tag or not any(f.path == _MODULES for f in files):
            return ()
        self._get(next(file for file in files if file.path == _MODULES))
        try:
            parts = json.loads(self._place(_MODULES).read_bytes())
            return tuple(str(part["path"]).strip("/") for part in parts)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ModelError(f"{self.name.repo}: {_MODULES} is not a list of parts") from None

    def _shards(self, chosen: Selection, files: Sequence[HubFile]) -> list[HubFile]:
        if not chosen.index:
            return []
        index, held = self._place(chosen.index), {file.path: file for file in files}
        folder = chosen.index[: chosen.index.rfind("/") + 1]
        paths = [folder + shard for shard in shards_of_index(index)]
        for path in paths:
            if path not in held:
                raise ModelError(f"{self.name.repo}: {chosen.index} names {path}, which is missing")
        found = [held[path] for path in paths]
        self._total += sum(file.size or 0 for file in found)
        return found

    def _folder(self) -> Path:
        assert self._snapshot is not None
        return self._snapshot

    def _place(self, path: str) -> Path:
        return self._folder() / path

    def _get(self, file: HubFile) -> None:
        """Fetch a file, unless it is cached. All files are from the commit of the first."""
        if self._cached or file.path in self._got:
            return
        first = self._snapshot is None
        try:
            found = self._api.hf_hub_download(
                self.name.repo,
                file.path,
                revision=None if first else self._folder().name,
                tqdm_class=self._bar(file),
            )
        except Exception as error:  # as above
            raise _unreachable(self.name, error, file.path) from error
        if first:
            self._snapshot = Path(found).parents[file.path.count("/")]
        self._got.add(file.path)
        self._told += file.size or 0

    def _bar(self, file: HubFile) -> type[Any] | None:
        """The class that `huggingface_hub` uses for its progress bars; None: its own."""
        if self._progress is None:
            return None
        report, before, total = self._progress, self._told, self._total

        class Bar:
            """The part of a tqdm bar that is used for one file."""

            def __init__(self, *_args: object, initial: float = 0, **_settings: object) -> None:
                self.n, self.total = initial, file.size

            def update(self, count: float | None = 1) -> None:
                self.n += count or 0
                done = min((before + self.n) / total, 1.0) if total else 0.0
                report(f"fetching {file.path}", done)

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *_error: object) -> None:
                """Do nothing: there is nothing to release."""

            def __getattr__(self, name: str) -> Callable[..., None]:
                return lambda *_args, **_settings: None

            def update_transfer(self, _count: float) -> None:
                """Do nothing: compressed transfers are smaller than the bytes written."""

        return Bar


def _unreachable(name: HubName, error: Exception, file: str = "") -> ModelError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    what = f"{file} of it" if file else "it"
    return ModelError(
        f"{name.repo}: no such path, and {what} could not be downloaded from the Hugging Face hub "
        f"({reason[:200]}); check the name and the connection, set HF_TOKEN if it is gated, or "
        "download it elsewhere and give the path of its folder"
    )
