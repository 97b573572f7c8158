"""Models by their id on the Hugging Face hub: their configurations are downloaded, never their weights or code."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from mmchar.faults import typed

_FILES = ("*.json", "*.txt", "*.model", "*.jinja")  # configurations, vocabularies, chat templates
_NOT = ("*.index.json", "*.py")  # lists of weights
# Words of the hub's ids for which the zoo's names have a shorter one.
_SHORT = (
    ("stable-diffusion-xl", "sdxl"),
    ("stable-diffusion-3", "sd3"),
    ("stable-video-diffusion", "svd"),
    ("img2vid", ""),
    ("vit-large-patch", "vit-l-"),
)


def is_id(name: str) -> bool:
    """Whether a name can be an id of the hub, ``organization/model``."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and ".." not in name


def download_configs(name: str, *, zoo: Iterable[str]) -> Path:
    """The folder with the configurations of a model on the hub, kept in the hub's own cache.

    Raises ValueError without such a model or a network, naming the model of the zoo that is called most alike.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES), ignore_patterns=list(_NOT)))
    except Exception as error:  # the hub's client has an error for everything, none is swallowed
        near = nearest(name, zoo)
        hint = f"; the zoo has {near!r}" if near else "; give a folder of configurations"
        said = f"neither in the zoo nor a folder, and the hub cannot be asked{hint} ({typed(error, 160)})"
        raise ValueError(f"unknown model {name!r}: {said}") from error


def nearest(name: str, zoo: Iterable[str]) -> str | None:
    """The model of the zoo that an id of the hub is called after; None where none is called alike."""
    last = name.rpartition("/")[2].lower()
    for long, short in _SHORT:
        last = last.replace(long, short)
    words = _words(last)
    inside = [model for model in zoo if _words(model) <= words]
    if inside:
        return max(inside, key=lambda model: (len(_words(model)), len(model)))
    close = difflib.get_close_matches(last, list(zoo), 1, cutoff=0.7)
    return close[0] if close else None


def _words(name: str) -> set[str]:
    return {word.removeprefix("v") for word in re.split(r"[-_.]", name.lower()) if word}
