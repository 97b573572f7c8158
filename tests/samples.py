"""What several test files need: a small table, a small notebook, and how to look at files and errors."""

import json
import time

import numpy as np
import pandas as pd

from mmchar.runs.campaign.measured import write_point

SITE_MODELS = ["stable-diffusion-1.5", "ddpm-cifar10-32", "dit-xl-2-256"]  # models of the site that tests look at

PARAMETERS = """\
# what to run
out_dir = "../results/{stem}"  # where the result goes
model = "stable-diffusion-1.5"  # model, a name from `mmchar models`
steps = 50                      # denoising steps = how often the U-Net runs
guidance: float = 7.5           # guidance scale, > 1 doubles the batch
quick = False
sizes = [
    256,
    512,
]  # image sizes, pixels
note = None
"""
SAVE = """\
import pandas as pd
from mmchar.runs.records import save_result
names = ("model", "steps", "guidance", "quick", "sizes", "note")
table = pd.DataFrame({{"model": [model], "steps": [steps], "mmchar_run": [1]}})
save_result(out_dir, notebook="{stem}", parameters={{name: globals()[name] for name in names}}, tables={{"t": table}})
"""


def make_table():
    """A table with every kind of column that the operator table has, and the values that files get wrong."""
    frame = pd.DataFrame(
        {
            "model": pd.Categorical(["sd", "sd", "llama"]),
            "attention": ["self", "", "causal"],
            "flop": np.array([2**53 + 1, 0, 7], dtype="int64"),  # one more than a float can hold
            "time_s": [0.1, float("nan"), 1e-300],
            "time_kind": ["projected", "", "measured"],
        }
    )
    frame.attrs = {"model": "sd", "request": {"steps": [50], "guidance": 7.5}, "tiny": False, "params": {"unet": 859}}
    return frame


def make_notebook(path, *cells, parameters=PARAMETERS):
    """A notebook with a title, a parameters cell and the given code cells."""
    sources = [text.format(stem=path.stem) if text in (SAVE, PARAMETERS) else text for text in (parameters, *cells)]
    code = [
        {"cell_type": "code", "execution_count": None, "id": f"c{n}", "metadata": {}, "outputs": [], "source": source}
        for n, source in enumerate(sources)
    ]
    code[0]["metadata"] = {"tags": ["parameters"]}
    title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# A question?"}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": [title, *code], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook))
    return path


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


SLEEP = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(600)"


def is_gone(pid_file):
    """Whether the process whose number a sleeping notebook wrote has ended, buried by its parent or not."""
    import psutil

    try:
        return psutil.Process(int(pid_file.read_text())).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(path, seconds=60):
    """Wait until the file holds something."""
    end = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.05)


def save_measured(folder, name, table, *, hardware="a processor, 1 threads", **changes):
    """Write a measured table as a campaign does."""
    asked = {key: table.attrs[key] for key in ("device", "dtype", "attention", "tiny", "levers")}
    asked |= {"model": table.attrs["model"], "request": {}, "stages": None, "samples": 2, "warmup": 1, **changes}
    facts = {key: value for key, value in table.attrs.items() if key != "versions"}
    row = {"id": name, "status": "ok", "reason": "", "asked": asked, "hardware": hardware, "attempts": 1}
    write_point(folder, {**row, "facts": facts}, table)


def break_stage(monkeypatch, name, error):
    """Let the measuring of one stage raise an error, and that of all others go on."""
    from mmchar.measuring import profiling

    real = profiling.measure_stage

    def fails(model, stage, *given):
        if stage.name == name:
            raise error
        return real(model, stage, *given)

    monkeypatch.setattr(profiling, "measure_stage", fails)
