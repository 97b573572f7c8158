"""What every test runs under: no network, one thread per worker, a cache of its own, kernels one after the other."""

import fcntl
import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

# Read by the libraries when they are imported, so set before any of them is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    JUPYTER_PREFER_ENV_PATH="1",
    MPLBACKEND="Agg",
    PYDEVD_DISABLE_FILE_VALIDATION="1",
)

# No deadline, because two cores are shared; the same examples every time, so that a red run can be repeated.
settings.register_profile("mmchar", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("mmchar")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Let one test at a time start a Jupyter kernel, on whichever worker: kernels started at once race for ports."""
    if not item.get_closest_marker("notebook"):
        return (yield)
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return (yield)


def pytest_collection_finish(session):
    """What is imported by now stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(2000, 20, 40)


def pytest_runtest_setup(item):
    if not item.get_closest_marker("gpu"):
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip(f"needs an NVIDIA GPU; torch {torch.__version__} sees none")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Folder of counted tables of this run, shared by its workers and by the processes that tests start."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "mmchar-cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCHAR_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def site(cache_folder):
    """Folder of the static site with few models, made once for all workers."""
    from filelock import FileLock
    from samples import SITE_MODELS

    from mmchar.study.site.build import build_site

    folder = cache_folder.with_name("site")
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            build_site(folder, models=SITE_MODELS, played=SITE_MODELS[:1], progress=False)
    return folder


@pytest.fixture(scope="session")
def kernels():
    """An environment in which the kernels that tests start find this package, installed or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        yield
