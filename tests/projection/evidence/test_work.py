"""Work in few rows is the same work: what is projected of it does not change."""

import pytest

from mmchar import Request, count, get_spec, project
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.evidence.work import Configuration, works
from mmchar.projection.parallel.layout import Degrees, parallelize
from mmchar.projection.roofline import Rates, row_times
from mmchar.projection.scaling import count_batch
from mmchar.projection.summary import summarize, summarize_memory


def total_s(work, execution, gpu="a100-80gb"):
    device_s, wait_s, _ = row_times(work.columns, get_gpu(gpu), Rates(), execution=execution)
    return float(((device_s + wait_s) * work.columns.repeats).sum())


def asked(model, *, degrees=None, execution="eager", **request):
    full = get_spec(model).resolve(Request(**request))
    return Configuration(model, full, degrees or Degrees(), dtype="float16", execution=execution)


@pytest.mark.parametrize("execution", ["eager", "compiled"])
@pytest.mark.parametrize("model", ["stable-diffusion-1.5", "pixart-sigma-1024"])
def test_alike_modules_counted_once_take_the_same_time(model, execution):
    configurations = [asked(model, execution=execution, batch=batch) for batch in (1, 3)]
    found = works(configurations)
    for each, batch in zip(configurations, (1, 3), strict=True):
        table = count_batch(model, Request(batch=batch), dtype="float16")
        timed = project(table, gpu="a100-80gb", attention="flash", execution=execution)
        assert total_s(found[each], execution) == pytest.approx(summarize(timed)["time_s"])
        assert len(found[each].columns) < len(table) / 3
        assert found[each].flop == (table["flop"] * table["repeats"]).sum()
        assert found[each].peak_bytes == summarize_memory(table, get_gpu("a100-80gb"))["peak_bytes"]


@pytest.mark.parametrize("degrees", [Degrees(ulysses=2, ring=2), Degrees(ulysses=2, cfg=2), Degrees(pipefusion=2)])
def test_several_gpus_take_the_same_time(degrees):
    each = asked("pixart-sigma-1024", degrees=degrees, batch=2)
    table = parallelize(count("pixart-sigma-1024", Request(batch=2), dtype="float16"), degrees)
    timed = project(table, gpu="a100-80gb", attention="flash")
    assert total_s(works([each])[each], "eager") == pytest.approx(summarize(timed)["time_s"])


def test_batches_of_one_size_are_worked_out_together_and_errors_are_each_ones_own():
    good, more = (asked("pixart-sigma-1024", batch=batch) for batch in (1, 4))
    bad = asked("pixart-sigma-1024", degrees=Degrees(ulysses=3))
    found = works([good, bad, more, good])
    assert list(found) == [good, more, bad]
    assert isinstance(found[bad], ValueError) and "does not divide" in str(found[bad])
    assert found[more].flop > 3.9 * found[good].flop
