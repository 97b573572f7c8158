"""What others wrote is data: no pickle, no code from files, no path out of a folder, no markup from names."""

import ast
import json
import socket
from pathlib import Path

import pandas as pd
import pytest
from samples import SAVE, make_notebook, make_table

from mmchar.counting.operator_table import count
from mmchar.files import checksum, sealed
from mmchar.models.loading import ZOO, get_spec, load
from mmchar.runs.batch import run_notebook
from mmchar.runs.notebooks import render
from mmchar.runs.records import Drawn, read_result, save_measured, save_result
from mmchar.runs.scorecard import as_markdown

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("mmchar/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("notebooks/*.ipynb")])

# modules that load code, or objects that may be code
MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "jsonpickle"}
CALLS = {"eval", "exec", "__import__", "os.system", "os.popen"}
METHODS = {"read_pickle", "to_pickle", "unsafe_load", "full_load", "HTML", "Javascript"}
KEYWORDS = {"trust_remote_code": False, "shell": False, "allow_pickle": False, "escape": True}


def dangers(source):
    """(line, what) of everything in a source that runs code, or loads objects, from what it is given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
        found += [
            (node.lineno, name) for name in names if name.split(".")[0] in MODULES or name.split(".")[-1] in METHODS
        ]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: getattr(keyword.value, "value", "?") for keyword in node.keywords}
        bad = called in CALLS or called.split(".")[-1] in METHODS
        bad |= called in ("torch.load", "yaml.load") and not (
            called == "torch.load" and given.get("weights_only") is True
        )
        bad |= any(given.get(name, safe) is not safe for name, safe in KEYWORDS.items())
        found += [(node.lineno, called)] if bad else []
    return found


def code_of(path):
    if path.suffix == ".py":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").replace(
        "%matplotlib", "#"
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_runs_or_unpickles_what_it_reads(path):
    assert [what for _, what in dangers(code_of(path))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy, pickle as p",
        "from joblib import load",
        "def f():\n    from cloudpickle import dumps",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "pd.read_pickle(path)",
        "np.load(path, allow_pickle=True)",
        "cls.from_pretrained(name, trust_remote_code=True)",
        "cls.from_pretrained(name, trust_remote_code=flag)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "display(HTML(text))",
        "from IPython.display import HTML",
        "table.to_html(escape=False)",
    ],
)
def test_the_scan_finds(source):
    assert len(dangers(source)) >= 1


def test_the_scan_lets_safe_ways_pass():
    safe = (
        "torch.load(p, weights_only=True); yaml.safe_load(t); re.compile(t); ast.literal_eval(t); run(c, shell=False)"
    )
    assert dangers(safe) == []


# model files and folders


@pytest.fixture
def offline(monkeypatch):
    """Any connection fails the test."""

    def refuse(self, address):
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: refuse(None, a))


def changed(tmp_path, **config):
    """The path of a tiny language model's file with more in its configuration."""
    raw = json.loads((ZOO / "llama-2-7b.json").read_text())
    (part,) = raw["components"].values()
    part["config"] |= part["tiny"] | config
    (tmp_path / "mine.json").write_text(json.dumps(raw))
    return str(tmp_path / "mine.json")


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModelForCausalLM": "evil--modeling.Evil"}, "trust_remote_code": True},
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel", "_attn_implementation_internal": "evil/kernel"},
        {"_name_or_path": "evil/model", "name_or_path": "evil/model"},
        {"quantization_config": {"quant_method": "evil"}},
        {"use_kernels": True},
    ],
)
def test_a_configuration_never_brings_code_or_a_download(tmp_path, config, offline, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    mine = changed(tmp_path, **config)
    try:
        table = count(mine, cache=False)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert table["flop"].sum() > 0


def test_neither_names_nor_random_weights_ask_the_network(offline, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("https://example.org/x", "hf://x/y", "../x", "a/b/c", "stable-diffusion"):  # none is a hub id
        with pytest.raises(ValueError, match=r"unknown model .*'mmchar models' lists"):
            load(name)


@pytest.mark.parametrize(
    ("library", "cls", "message"),
    [
        ("os", "system", "Invalid enum value .os."),
        ("transformers", "os.system", "has no class|needs transformers.os"),
        ("transformers", "pipeline", "is not a network"),
        ("transformers", "utils.import_utils.os.system", "needs|has no class|not a network"),
        ("diffusers", "__builtins__", "has no class|is not a network"),
        ("mmchar", "../../x", "Expected `str` matching regex"),
        ("mmchar", "cli.main", "No module named .mmchar.models.networks.architectures.cli"),
        ("transformers", "AutoModel", "is not a network"),
    ],
)
def test_a_model_file_names_networks_only(tmp_path, library, cls, message):
    raw = json.loads(Path(changed(tmp_path)).read_text())
    (part,) = raw["components"].values()
    part |= {"library": library, "class": cls}
    (tmp_path / "mine.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "mine.json"))


def test_a_folder_is_read_by_the_names_of_its_template_only(tmp_path):
    index = {"_class_name": "DiTPipeline", "../../secret": ["diffusers", "DiTTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="component '(transformer|vae)' is missing"):
        get_spec(str(tmp_path))


# paths


@pytest.mark.parametrize("name", ["../up", "/tmp/x", "a/b", "..", ".", "", "a\\b", "a\0b", "con/../x", "~root", "a\nb"])
def test_no_name_of_a_table_a_figure_or_a_model_is_a_path(name, tmp_path):
    table = make_table()
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="cannot be a file name"):
        save_result(out, notebook="x", parameters={}, tables={name: table})
    with pytest.raises(ValueError, match="cannot be a file name"):
        save_result(out, notebook="x", parameters={}, tables={"t": table}, figures={name: Drawn(None, "caption", "t")})
    if name:
        with pytest.raises(ValueError, match="cannot be a file name"):
            save_measured(out, table.copy().assign(model=name).pipe(with_model, name))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def with_model(table, name):
    table.attrs = {"model": name}
    return table


@pytest.mark.filterwarnings("ignore:.* is kept as")
@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "tables/../../secret"])
def test_a_result_file_cannot_name_what_lies_outside_its_folder(file, tmp_path):
    (tmp_path / "secret").write_text("kept")
    path = save_result(tmp_path / "out", notebook="x", parameters={}, tables={"t": make_table()})
    result = json.loads(path.read_text())
    content = Path(tmp_path / "out" / file).read_bytes()
    result["files"][file] = checksum(content)
    path.write_text(json.dumps(sealed(result)))
    with pytest.raises(ValueError, match="is not valid"):
        read_result(tmp_path / "out")
    save_result(tmp_path / "out", notebook="x", parameters={}, tables={"t": make_table()})  # replaces the old one
    assert (tmp_path / "secret").read_text() == "kept"


# markup

EVIL = '<script>alert(1)</script> [x](javascript:alert(1)) | """\nimport os; os._exit(9) # \''


def test_papermill_gets_parameters_as_literals():
    from papermill.translators import PythonTranslator

    code = PythonTranslator.codify({"model": EVIL, "sizes": [EVIL]})
    assigned = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(code).body}
    assert assigned == {"model": EVIL, "sizes": [EVIL]}


def test_no_name_and_no_text_of_a_model_is_markup(tmp_path):
    for field in ("name", "family", "summary", "request_source", "notes", "papers"):
        for text in ("<script>alert(1)</script>", "a <b>bold</b> word", "[x](javascript:alert(1))", "a\nb", "</td>"):
            raw = json.loads((ZOO / "llama-2-7b.json").read_text())
            raw[field] = [text] if field in ("notes", "papers") else text
            (tmp_path / "mine.json").write_text(json.dumps(raw))
            with pytest.raises(ValueError, match="mine.json") as caught:
                get_spec(str(tmp_path / "mine.json"))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("<script>alert(1)<", "-script-alert-1-"),
        ("my model", "my-model"),
        ("..x", "-x"),
        ("x.", "x-"),
        ("a-b_1.5", "a-b_1.5"),
    ],
)
def test_a_folder_lends_its_name_without_markup(tmp_path, folder, name):
    (tmp_path / folder).mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64}
    (tmp_path / folder / "config.json").write_text(json.dumps(config))
    assert get_spec(str(tmp_path / folder)).name == name


def test_the_scorecard_holds_no_markup_of_a_check(tmp_path):
    checks = pd.DataFrame(
        {"claim": [""], "name": ["a<script>b|c"], "expected": [1.0], "got": [2], "verdict": ["agrees"]}
    )
    text = as_markdown(checks, "1 check")
    assert "<" not in text and "a&lt;script>b\\|c" in text


@pytest.mark.notebook
def test_a_name_that_is_markup_stays_text_in_every_output(tmp_path, kernels):
    show = "from matplotlib import pyplot as plt\nplt.figure().subplots().set_title(model.split()[0])\ndisplay(table)"
    show = SAVE.split("save_result(")[0].format(stem="01_x") + show
    notebook = make_notebook(tmp_path / "notebooks" / "01_x.ipynb", show, SAVE)
    run = run_notebook(notebook, tmp_path / "results" / "01_x", {"model": EVIL})
    assert (run.status, run.message) == ("ok", "")
    shown = json.loads(render(tmp_path / "results" / "01_x" / "01_x.ipynb", tmp_path / "r.ipynb").read_text())
    html = [
        "".join(o["data"]["text/html"])
        for cell in shown["cells"]
        for o in cell.get("outputs", [])
        if "text/html" in o.get("data", {})
    ]
    assert html and all("<script>alert" not in text for text in html) and "&lt;script&gt;" in html[0]
    assert not [
        cell for cell in shown["cells"] if cell["cell_type"] == "markdown" and "<script>" in "".join(cell["source"])
    ]
