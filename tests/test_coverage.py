"""A pipeline or model of the installed libraries counts on meta as it runs on a CPU: every tenth of those that do.

``python tests/coverage_runs.py`` compares all of them.
"""

import coverage_runs
import pytest
import tiny_architectures
import tiny_pipelines

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLImg2ImgPipeline", "FluxPipeline", "WanPipeline")
ARCHITECTURES = (
    "llama",
    "mistral",
    "mixtral",
    "gemma3_text",
    "mamba2",
    "whisper",
    "llava",
    "qwen2_5_vl",
    "clip",
    "bart",
)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_count_as_they_run(name: str) -> None:
    if name not in tiny_pipelines.names():
        pytest.fail(f"no tiny {name}")
    found = coverage_runs.pipeline(name)
    assert found.counted == found.measured


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_count_as_they_run(name: str) -> None:
    if name not in tiny_architectures.names():
        pytest.fail(f"no tiny {name}")
    found = coverage_runs.architecture(name)
    assert found.counted == found.measured
