"""Pretrained weights from where they lie: files, Hugging Face model folders, and the hub's `hf://`.

What is read fits `models.load_pretrained`. Nothing in any file is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from models.hf_layout import PretrainedError, facts_of_config, facts_of_model
from utils import UserError, describe_stand_in, read_checkpoint

HUB = "hf://"
CONFIG = "config.json"
INDEX = ".index.json"
# Files of a model folder's weights, first wins.
FOLDER_FILES = tuple(
    name + ending for name in ("model.safetensors", "pytorch_model.bin") for ending in ("", INDEX)
)
FILE_ENDINGS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
# In a safetensors file's own description: facts of its model as JSON.
ARCHITECTURE = "architecture"
_SET_BY = {"depth": "--depth", "tubelet_size": "--tubelet_size"}  # the rest: by --model


@dataclass(frozen=True)
class WeightSource:
    """Pretrained weights that were found and not yet read.

    Attributes:
        name: flag and source, as errors begin.
        facts: what the source says of its model, see `models.hf_layout`; empty if it says nothing.
        weights: gives the file of weights, or the index of several.
        fetch: gives a file beside it by name, or None.
    """

    name: str
    facts: Mapping[str, Any] = field(repr=False)
    weights: Callable[[], Path] = field(repr=False)
    fetch: Callable[[str], Path | None] = field(repr=False)

    def check(self, model: nn.Module) -> None:
        """Compares the source's facts with a model that its weights are to fill.

        Raises:
            UserError: a contradiction, naming the flags to change. Another number of heads would
                else load without a sign: the shapes are the same.
        """
        ours = facts_of_model(model)
        differ = [name for name in ours if name in self.facts and self.facts[name] != ours[name]]
        if differ:
            what = ", ".join(f"{name} {self.facts[name]} (the model's: {ours[name]})" for name in differ)
            flags = " and ".join(dict.fromkeys(_SET_BY.get(name, "--model") for name in differ))
            raise UserError(f"{self.name}: is for {what}: choose {flags} to fit")

    def read(self) -> dict[str, Any]:
        """Reads the weights, from all files if there are several.

        Raises:
            UserError: a missing, damaged or unsafe file.
        """
        path = self.weights()
        if not path.name.endswith(INDEX):
            return _read_file(path, self.name)
        parts = _read_json(path, self.name).get("weight_map")
        names = sorted(set(map(str, parts.values()))) if isinstance(parts, dict) else []
        if not names or any(Path(name).name != name for name in names):
            raise UserError(f"{self.name}: {path.name} lists no files of weights beside it")
        content: dict[str, Any] = {}
        for name in names:
            part = self.fetch(name)
            if part is None:
                raise UserError(f"{self.name}: {name} is missing, which {path.name} lists")
            content |= _read_file(part, self.name)
        return content


def find_weights(source: str, flag: str = "--finetune") -> WeightSource:
    """Finds pretrained weights and what is said of their model, without reading all of them.

    Args:
        source: a file (`.safetensors`, or any that torch saved), a folder with `config.json` and
            weights as transformers' VideoMAE models and the VideoMAE V2 repositories have it, or
            `hf://org/repo[@revision][/path]` for a file or folder of the hub. A file that has one
            of a folder's names counts as its folder, with the config beside it.
        flag: named in errors.

    Raises:
        UserError: nothing is there, the hub refuses or cannot be reached, or a config is of another
            kind of model.
    """
    name = f"{flag} {source}"
    folder, file = _on_hub(source, name) if source.startswith(HUB) else _on_disk(Path(source), name)
    config = folder.fetch(CONFIG) if file in (None, *FOLDER_FILES) else None
    if config is None and file is None:
        hint = "" if folder.unknown else "; of other folders, give the file of weights itself"
        raise UserError(f"{name}: {folder.lacks(CONFIG)}{hint}")

    def weights() -> Path:
        names = FOLDER_FILES if file is None else (file,)
        path = next((path for path in map(folder.fetch, names) if path), None)
        if path is None:
            raise UserError(f"{name}: {folder.lacks(' or '.join(names))}")
        return path

    facts: Mapping[str, Any] = {}
    if config is not None:
        try:
            facts = facts_of_config(_read_json(config, name))
        except PretrainedError as error:
            raise UserError(f"{name}: {CONFIG}: {error}") from None
    elif file.endswith(".safetensors"):
        facts = _own_description(weights(), name)
    elif not file.endswith(INDEX):
        facts = _facts_of_run(weights(), name)
    if config is None and file in FOLDER_FILES and folder.unknown and not facts:
        raise UserError(
            f"{name}: {folder.lacks(CONFIG)}; to do without it, give a copy of the file on this disk"
        )
    return WeightSource(name, facts, weights, folder.fetch)


# ------------------------------------------------------------------------------------- folders


@dataclass
class _Folder:
    """Files by name, and the word for one that is not there."""

    path: Path
    unknown: str = ""  # a local folder can always be asked

    def fetch(self, name: str) -> Path | None:
        """The file, or None if there is none."""
        path = self.path / name
        return path if path.is_file() else None

    def lacks(self, names: str) -> str:
        """Says that files are not there."""
        return f"there is no {names} in it"


def _on_disk(path: Path, name: str) -> tuple[_Folder, str | None]:
    if path.is_dir():
        return _Folder(path), None
    if not path.is_file():
        raise UserError(f"{name}: there is no such file")
    return _Folder(path.parent), path.name


def _on_hub(source: str, name: str) -> tuple[_HubFolder, str | None]:
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/([^@]*))?(?:@(.+))?", source)
    if match is None or (match[2] and match[4]):
        raise UserError(f"{name}: wants hf://org/repo, hf://org/repo/path or hf://org/repo@revision/path")
    inner = Path(match[3] or "")
    revision = match[2] or match[4]
    is_file = inner.suffix in FILE_ENDINGS or inner.name.endswith(INDEX)
    folder = inner.parent if is_file else inner
    return _HubFolder(match[1], folder.as_posix(), revision, name), inner.name if is_file else None


@dataclass
class _HubFolder:
    """A folder of a repository on the Hugging Face hub, through the library's cache."""

    repo: str
    path: str
    revision: str | None
    name: str
    unknown: str = ""  # why the hub could not be asked for a file that the cache lacks

    def fetch(self, name: str) -> Path | None:
        """The file in the cache, downloaded if need be, or None if there is none or it cannot be known.

        Raises:
            UserError: the repository is not there or not open to the user, or the download failed.
        """
        subfolder = None if self.path == "." else self.path
        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    self.repo,
                    name,
                    subfolder=subfolder,
                    revision=self.revision,
                    local_files_only=bool(self.unknown),  # who did not answer is waited for once
                )
            )
        except errors.LocalEntryNotFoundError as error:
            inner = name if subfolder is None else f"{subfolder}/{name}"
            known = huggingface_hub.try_to_load_from_cache(self.repo, inner, revision=self.revision)
            if known is huggingface_hub._CACHED_NO_EXIST:  # the hub has said once that there is none
                return None
            self.unknown = self.unknown or _reason(error.__cause__ or error)
        except errors.EntryNotFoundError:
            pass
        except errors.RevisionNotFoundError:
            raise UserError(f"{self.name}: the repository has no revision {self.revision!r}") from None
        except errors.GatedRepoError:
            raise UserError(
                f"{self.name}: needs its owner's permission: ask on its page, and set HF_TOKEN"
            ) from None
        except errors.RepositoryNotFoundError:
            raise UserError(
                f"{self.name}: there is no repository {self.repo} at {constants.ENDPOINT}, or it is private "
                "(set HF_TOKEN)"
            ) from None
        except Exception as error:
            # What else can happen depends on the library's version and its HTTP client.
            raise UserError(f"{self.name}: {name} was not downloaded: {_reason(error)}") from error
        return None

    def lacks(self, names: str) -> str:
        """Says that files are not there, or that nobody could be asked."""
        if not self.unknown:
            return f"there is no {names} in it"
        if constants.HF_HUB_OFFLINE:
            return f"HF_HUB_OFFLINE is set, and {names} is not in the cache {constants.HF_HUB_CACHE}"
        return f"{names} is not in the cache, and {constants.ENDPOINT} did not give it ({self.unknown})"


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --------------------------------------------------------------------------------------- files


def _unusable(path: Path, name: str, reason: str) -> UserError:
    """Return the error of a file that cannot be used; `name` may end with the file itself."""
    file = "" if name.endswith(f" {path}") else f"{path.name} "
    return UserError(f"{name}: {file}{describe_stand_in(path) or reason}")


def _read_file(path: Path, name: str) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        return read_checkpoint(path, name.removesuffix(f" {path}"))  # which names the file itself
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unusable(path, name, f"is damaged or no safetensors file: {_reason(error)}") from None


def _own_description(path: Path, name: str) -> dict[str, Any]:
    """The facts that `scripts.tools.export` wrote into a file, or none."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unusable(path, name, f"is damaged or no safetensors file: {_reason(error)}") from None
    try:
        facts = json.loads(metadata.get(ARCHITECTURE, "{}"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _facts_of_run(path: Path, name: str) -> dict[str, Any]:
    """The epsilon of this project's run that wrote a checkpoint, or nothing."""
    args = read_checkpoint(path, name.removesuffix(f" {path}"), lazy=True).get("args")
    norm_eps = args.get("norm_eps") if isinstance(args, Mapping) else None
    return {"norm_eps": norm_eps} if isinstance(norm_eps, float) else {}


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unusable(path, name, f"cannot be read: {_reason(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{name}: {path.name} holds a {type(content).__name__}, not an object")
    return content
