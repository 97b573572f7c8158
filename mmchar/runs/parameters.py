"""The parameters of a notebook, read from its tagged cell without running it, and checked strictly.

papermill only warns of a name that the notebook does not have, and guesses the types of values; here both are refused
before any kernel starts.
"""

import ast
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmchar.faults import did_you_mean
from mmchar.runs.notebooks import cell_source, cell_tags, load_notebook


@dataclass(frozen=True)
class Parameter:
    """One assignment of a notebook's parameters cell: name, default, type of the default, and its ``# help, unit``."""

    name: str
    default: Any
    type: type
    help: str


def read_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters that a notebook takes, by name, from its cell tagged ``parameters``.

    ValueError if the file is no notebook, has not exactly one such cell, or the cell holds anything but literals.
    """
    path = Path(notebook)
    cells = [cell for cell in load_notebook(path)["cells"] if "parameters" in cell_tags(cell)]
    if len(cells) != 1:
        raise ValueError(f"{path.name} has {len(cells)} cells tagged 'parameters'; give it exactly one")
    source = cell_source(cells[0])
    try:
        statements, helps = ast.parse(source).body, _comments(source)
        found = [_parameter(statement, helps) for statement in statements]
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise ValueError(f"{path.name}, parameters cell: {error}; write name = literal  # help, unit") from error
    return {parameter.name: parameter for parameter in found}


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _parameter(statement: ast.stmt, helps: dict[int, str]) -> Parameter:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            pass
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            pass
        case _:
            raise ValueError(f"line {statement.lineno} is no assignment")
    try:
        default = ast.literal_eval(value)
    except ValueError:
        raise ValueError(f"{name} = {ast.unparse(value)} is no literal") from None
    lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    return Parameter(name, default, type(default), next((helps[n] for n in reversed(lines) if n in helps), ""))


def check_parameters(notebook: str | Path, given: dict[str, Any]) -> dict[str, Any]:
    """The given parameters, with an int that is given for a float made a float.

    ValueError for a name that the notebook does not have, or a value of another type than its default.
    """
    name, known = Path(notebook).name, read_parameters(notebook)
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known).strip() or f"it has {', '.join(known)}"
            raise ValueError(f"{name} has no parameter {key!r}; {hint}")
    return {key: _checked(name, known[key], value) for key, value in given.items()}


def _checked(notebook: str, parameter: Parameter, value: Any) -> Any:
    kind = parameter.type
    value = list(value) if isinstance(value, tuple) else value  # papermill would make text of a tuple
    if kind is float and type(value) is int:
        value = float(value)
    wanted = list if kind is tuple else kind
    if (type(value) is wanted or kind is type(None)) and _is_plain(value):
        return value
    help_ = f" ({parameter.help})" if parameter.help else ""
    raise ValueError(
        f"{notebook}: {parameter.name} = {value!r} is of type {type(value).__name__}; "
        f"give {wanted.__name__}, such as {parameter.default!r}{help_}"
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)
