"""A model file checked as data: every field, its type and its range, before anything is made of it."""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmchar.files import check_file_name
from mmchar.request import FIELDS, Request

LIBRARIES = ("transformers", "diffusers", "mmchar")
_MODEL = {"name": str, "family": str, "year": int, "summary": str, "components": dict}
_MODEL |= {"request": dict, "request_source": str, "tiny_request": dict}
_MODEL_OPTIONAL = {"limits": dict, "tiny_limits": dict, "notes": list, "papers": list, "pipeline": dict}
_COMPONENT = {"library": str, "class": str, "config": dict, "source": str}
_COMPONENT_OPTIONAL = {"tiny": dict, "published_params": int, "params_source": str, "params_reason": str}
_PIPELINE = {"library": str, "class": str}
_PIPELINE_OPTIONAL: dict[str, type] = {"source": str, "methods": list}
_PIPELINE_OPTIONAL |= dict.fromkeys(("schedulers", "arguments", "tokens", "call", "request", "stages"), dict)
_LIMIT = {"min": int, "max": int, "multiple_of": int, "of_form": list}
_MARKUP = re.compile(r"<[a-zA-Z/!?]|\]\(|[\x00-\x1f]")  # HTML, a Markdown link, a control character
_WORDS = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}


def read_model_file(path: Path) -> dict[str, Any]:
    """The content of a model file, which ``docs/add_a_model.md`` describes.

    Raises
    ------
    ValueError
        No such file, or a field that is missing, unknown, of another type or out of range: one line that names both.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"no model file {path}; 'mmchar models' lists the zoo") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a readable model file: {_one_line(error)}") from error
    _check_fields(path.name, raw, _MODEL, _MODEL_OPTIONAL)
    try:
        check_file_name(raw["name"])
    except ValueError as error:
        raise ValueError(f"{path.name}: name {error}") from error
    if not raw["components"]:
        raise ValueError(f"{path.name}: 'components' is empty; a model has at least one")
    for role, part in raw["components"].items():
        _check_component(f"{path.name}, component {role!r}", part)
    if "pipeline" in raw:
        _check_pipeline(f"{path.name}, pipeline", raw["pipeline"])
    for field in ("request", "tiny_request"):
        _check_request(path.name, field, raw[field])
    for field in ("limits", "tiny_limits"):
        for key, limit in raw.get(field, {}).items():
            _check_limit(f"{path.name}: {field}, {key!r}", key, limit, raw["request"])
    for field in ("notes", "papers"):
        for number, line in enumerate(raw.get(field, ()), start=1):
            _check_fields(f"{path.name}: {field!r}", {f"line {number}": line}, {f"line {number}": str}, {})
    return raw


def _check_fields(where: str, raw: Any, needed: Mapping[str, type], optional: Mapping[str, type]) -> None:
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: expected an object, found {type(raw).__name__}")
    for key in sorted(needed.keys() - raw.keys()):
        raise ValueError(f"{where}: the field {key!r} is missing")
    types = {**needed, **optional}
    for key in sorted(raw.keys() - types.keys()):
        near = difflib.get_close_matches(key, sorted(types), 1)
        raise ValueError(f"{where}: unknown field {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    for key, value in raw.items():
        if isinstance(value, str) and (found := _MARKUP.search(value)):
            raise ValueError(f"{where}: {key!r} holds {found.group()!r}; notebooks show it, so write it without markup")
        if type(value) is not types[key] and not (key == "published_params" and value is None):
            raise ValueError(f"{where}: {key!r} is {_short(value)}; expected {_WORDS[types[key]]}")


def _check_component(where: str, part: Any) -> None:
    _check_fields(where, part, _COMPONENT, _COMPONENT_OPTIONAL)
    if part["library"] not in LIBRARIES:
        raise ValueError(f"{where}: library {part['library']!r} is not one of {', '.join(LIBRARIES)}")
    if not all(name.isidentifier() for name in part["class"].split(".")):
        raise ValueError(f"{where}: class {part['class']!r} is no name of a class")
    if not part["source"]:
        raise ValueError(f"{where}: 'source' is empty; say where the config comes from")
    if (part.get("published_params") or 1) < 1:
        raise ValueError(f"{where}: published_params={part['published_params']} is no count")


def _check_pipeline(where: str, part: Any) -> None:
    _check_fields(where, part, _PIPELINE, _PIPELINE_OPTIONAL)
    if part["library"] not in LIBRARIES:
        raise ValueError(f"{where}: library {part['library']!r} is not one of {', '.join(LIBRARIES)}")
    if not all(name.isidentifier() for name in part["class"].split(".")):
        raise ValueError(f"{where}: class {part['class']!r} is no name of a class")


def _check_request(where: str, field: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name not in FIELDS:
            raise ValueError(f"{where}: unknown request field {name!r} in {field!r}; fields are {', '.join(FIELDS)}")
        if value is None:
            raise ValueError(f"{where}: {field!r} gives {name!r} no value; leave it out, or give a number")
    try:
        Request(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {field!r}: {error}") from error


def _check_limit(where: str, key: str, limit: Any, request: Mapping[str, Any]) -> None:
    for name in key.split("+"):
        if type(request.get(name)) is not int:
            raise ValueError(f"{where}: {name!r} is no field of 'request' with a whole number")
    _check_fields(where, limit, {}, _LIMIT)
    step, *offset = limit.get("of_form", [limit.get("multiple_of", 1), 0])
    if not all(type(value) is int for value in (step, *offset)) or len(offset) != 1 or step < 1:
        raise ValueError(f"{where}: {_short(limit)} is no step; give multiple_of 1 or more, or of_form [step, offset]")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
