"""Models of the Hugging Face hub: `hf:ORG/REPO`, or `hf:ORG/REPO@REVISION`, with the library of that name.

They stay in the library's own cache ($HF_HOME), which it shares with every program that uses it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError

PREFIX = "hf:"
NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.+-]+(?:/[\w.+-]+)*))?", re.ASCII)

# Of the top folder only: subfolders hold other forms of the same model, and so do files named consolidated.
FILES = ["*.safetensors", "*.json", "*.model", "*.jinja"]
NOT = ["*/*", "consolidated*"]


class Cached(NamedTuple):
    """A model in the hub's cache: the name that `minillm.load` takes, its bytes on disk, its folder."""

    name: str
    size: int
    folder: Path


def pull_from_hub(name: str, bars: bool = False) -> Path:
    """Fetch a model into the hub's cache; UserError if it cannot be had. A stopped download goes on.

    bars: whether the library shows its progress. Returns the folder of the snapshot.
    """
    repo, revision = parsed(name)
    hub = library(name)
    (hub.utils.enable_progress_bars if bars else hub.utils.disable_progress_bars)()
    try:
        folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=FILES, ignore_patterns=NOT))
    except hub.errors.GatedRepoError:
        raise UserError(f"{name} is given on conditions: accept them on its page, then: hf auth login") from None
    except hub.errors.RepositoryNotFoundError:
        raise UserError(f"{name} is not on the hub, or needs a login: hf auth login") from None
    except hub.errors.RevisionNotFoundError:
        raise UserError(f"{name}: the repository has no such revision") from None
    except hub.errors.LocalEntryNotFoundError:
        raise UserError(f"cannot reach the hub to fetch {name}; are you offline?") from None
    except Exception as error:  # which ones differs with the version of the library, and of the one below it
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"cannot fetch {name}: {reason}") from None
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{name} has no .safetensors, the one kind of weights that is read; "
            "any other (.bin, .pt) is a pickled program: ask its makers for safetensors, or convert it in a sandbox"
        )
    return folder


def cached(name: str) -> Path:
    """The folder of a model that is in the hub's cache, without a network; UserError says how to pull it."""
    repo, revision = parsed(name)
    hub = library(name)
    try:
        found = hub.snapshot_download(
            repo, revision=revision, allow_patterns=FILES, ignore_patterns=NOT, local_files_only=True
        )
    except (OSError, ValueError):  # it is not there, or not all of it; or the name is none
        raise UserError(f"model {name} is not here yet; run: minillm pull {name}") from None
    return Path(found)


def cached_models() -> Iterator[Cached]:
    """The models in the hub's cache that may be of use here: those with a config and safetensors."""
    try:
        from huggingface_hub import constants, scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ModuleNotFoundError:
        return
    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        for revision in repo.revisions if repo.repo_type == "model" else ():
            files = {file.file_name for file in revision.files}
            if "config.json" in files and any(file.endswith(".safetensors") for file in files):
                for ref in sorted(revision.refs) or [revision.commit_hash]:
                    name = f"{PREFIX}{repo.repo_id}" + ("" if ref == "main" else f"@{ref}")
                    yield Cached(name, revision.size_on_disk, revision.snapshot_path)


def hint(name: str) -> str:
    """What to tell somebody who may have left out the prefix."""
    return f", or {PREFIX}{name} of the hub" if NAME.fullmatch(PREFIX + name) else ""


def parsed(name: str) -> tuple[str, str | None]:
    """ORG/REPO and REVISION of a name; UserError if it is none."""
    match = NAME.fullmatch(name)
    if not match or any(set(part) == {"."} or ".." in part for part in re.split("[:/@]", name)):
        raise UserError(f"model is {name!r}, expected hf:ORG/REPO or hf:ORG/REPO@REVISION")
    return match[1], match[2]


def library(name: str):
    """The package huggingface_hub; UserError if it is not there."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ModuleNotFoundError:
        raise UserError(f"{name} needs huggingface_hub; run: pip install 'minillm[hub]'") from None
    return huggingface_hub
