"""Weights on the Hugging Face hub. huggingface_hub, an extra that timm requires, is imported only when needed."""

import contextlib
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from graft.errors import ConfigError, NotAvailable, pip_install
from graft.models.published import require_hash
from graft.models.weights.reading import first_line
from graft.system import downloads
from graft.system.http_client import user_agent

SHA256 = re.compile(r"[0-9a-f]{64}")
ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?/?")
CONFIG = "config.json"
"""Describes the network of the weights, see `graft.models.weights.description`."""


def on_hub(value: str) -> "HuggingFace | None":
    """The repository that `hf://ORG/NAME` or `hf://ORG/NAME@REVISION` names; None for any other text.

    Raises:
        ConfigError: another address of the hub, or huggingface_hub is not installed.
    """
    if not value.startswith("hf:"):
        return None
    found = ADDRESS.fullmatch(value)
    if found is None:
        raise ConfigError(f"{value}: is no repository of the hub.\nGive hf://ORG/NAME, or hf://ORG/NAME@REVISION.")
    if find_spec("huggingface_hub") is None:
        raise ConfigError(f"{value}: needs huggingface_hub, which is not installed: {pip_install('hf')}")
    return HuggingFace(found["repository"], revision=found["revision"], described=True)


@dataclass(frozen=True)
class HuggingFace:
    """A repository of the hub, an `Address`; its files are in the hub's own cache (HF_HOME).

    Attributes:
        repository: "timm/resnet50.a1_in1k".
        files: names that the weights may have in it; the first that exists is used.
        revision: branch, tag or commit; None: the newest.
        described: whether CONFIG is fetched, too, where the repository has one.
    """

    repository: str
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    revision: str | None = None
    described: bool = False

    @property
    def url(self) -> str:
        return self._url_of(self.files[0])

    @property
    def path(self) -> Path:
        from huggingface_hub import constants

        folder = "--".join(["models", *self.repository.split("/")])
        return Path(constants.HF_HUB_CACHE) / folder / "snapshots" / (self.revision or "main") / self.files[0]

    def local_copy(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = (try_to_load_from_cache(self.repository, file, revision=self.revision) for file in self.files)
        return next((Path(file) for file in found if isinstance(file, str)), None)

    def require_reachable(self, what: str) -> None:
        self._reachable_file(what)

    def fetch(self, what: str) -> Path:
        file = self.local_copy()
        if file is None:
            name = self._reachable_file(what)
            if self.described:
                with contextlib.suppress(NotAvailable):  # not every repository has one
                    self._download(f"description of {what}", CONFIG)
            file = self._download(what, name)
        blob = file.resolve().name  # the hub's cache names a large file by its SHA-256
        if SHA256.fullmatch(blob):
            require_hash(file.resolve(), blob)
        return file

    def _reachable_file(self, what: str) -> str:
        """The first of `files` that the hub has."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise NotAvailable(what, self.url, str(self.path), "HF_HUB_OFFLINE is set")
        missing: list[NotAvailable] = []
        for file in self.files:
            try:
                downloads.require_reachable(self._url_of(file), what=what, manual_path=str(self.path))
            except NotAvailable as error:
                code = getattr(error.__cause__, "code", None)
                if code == 404:
                    missing.append(error)
                    continue
                if code not in (401, 403):  # gated, but there: whether a token gives access shows when downloading
                    raise
            return file
        raise missing[0]

    def _download(self, what: str, file: str) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

        terminal = sys.stderr.isatty()
        if not terminal:
            disable_progress_bars()
            print(f"downloading: {what} from {self._url_of(file)}", file=sys.stderr)
        try:
            return Path(
                hf_hub_download(
                    self.repository,
                    file,
                    revision=self.revision,
                    user_agent=user_agent(),
                    etag_timeout=downloads.timeout(),
                )
            )
        except Exception as error:  # the hub's own, httpx's or requests', depending on its version
            raise NotAvailable(what, self._url_of(file), str(self.path), first_line(error)) from error
        finally:
            if not terminal:
                enable_progress_bars()

    def _url_of(self, file: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repository, file, revision=self.revision)
