"""Tokenizers and processors of a folder that has their files: loaded from there, without code of others."""

import warnings
from collections.abc import Mapping
from typing import Any

from mmchar.models.folders import library_class


def loaded(files: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The parts by role, each from its class and folder; what cannot be loaded is left to a stand-in, with a warning.

    Parameters
    ----------
    files : mapping
        By role ``library``, ``class`` and ``folder``.
    """
    found = {}
    for role, made in files.items():
        try:
            cls = library_class(f"component {role!r}", made["library"], made["class"])
            found[role] = cls.from_pretrained(made["folder"], local_files_only=True)
        except (ImportError, OSError, ValueError, AttributeError) as error:  # a package or a file is missing
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            warnings.warn(f"component {role!r} cannot be loaded, a stand-in takes its place: {said}", stacklevel=1)
    return found
