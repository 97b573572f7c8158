"""The flowcharts that GitHub draws from ``mermaid`` blocks, as HTML: rows of boxes, no script."""

import re

_BOX = re.compile(r"(\w+)\[\"?(.+?)\"?\]")
_EDGE = re.compile(r"^(.+?)\s*-->\s*(.+)$")


def drawn(block: str) -> str:
    """A ``flowchart BT`` or ``TB`` as rows of boxes, each row over the rows that its arrows come from.

    ValueError for a block of another kind, which this cannot draw.
    """
    lines = [line.strip() for line in block.strip("`\n").splitlines()[1:] if line.strip()]
    kind = re.fullmatch(r"flowchart (BT|TB|TD)", lines[0])
    if not kind:
        raise ValueError(f"a page has a chart {lines[0]!r}; the site draws flowchart BT and TB only")
    labels = {name: label for line in lines[1:] for name, label in _BOX.findall(line)}
    edges = [pair for line in lines[1:] for pair in _pairs(_BOX.sub(r"\1", line))]
    levels = _levels(edges)
    up = kind[1] == "BT"
    rows = [[name for name in levels if levels[name] == level] for level in sorted(set(levels.values()), reverse=up)]
    arrow = f'<p class="arrow" aria-hidden="true">{"↑" if up else "↓"}</p>'
    said = f"Flowchart, read from {'the bottom' if up else 'the top'}"
    boxes = arrow.join(
        f'<div class="row">{"".join(_box(labels.get(name, name)) for name in row)}</div>' for row in rows
    )
    return f'<div class="flowchart" role="group" aria-label="{said}">{boxes}</div>'


def _pairs(line: str) -> list[tuple[str, str]]:
    """The arrows of a line; ``a & b --> c`` are two."""
    found = _EDGE.match(line)
    return [(a, b) for a in found[1].split(" & ") for b in found[2].split(" & ")] if found else []


def _levels(edges: list[tuple[str, str]]) -> dict[str, int]:
    """How many arrows lead to each box at most, in a chart without circles."""
    levels = dict.fromkeys((name for edge in edges for name in edge), 0)
    for _ in levels:
        for start, end in edges:
            levels[end] = max(levels[end], levels[start] + 1)
    return levels


def _box(label: str) -> str:
    name, _, text = label.partition("<br/>")
    return f"<div><b>{name}</b> {text}</div>"
