"""A pipeline or model of the installed libraries counts on meta as it runs on a CPU: every tenth of those that do.

``python tests/coverage_runs.py`` compares all of them.
"""

import coverage_runs
import pytest

PIPELINES = (
    ("StableDiffusionPipeline", {}),
    ("StableDiffusionPipeline", {"guidance_scale": 1.0}),
    ("StableDiffusionPipeline", {"num_images_per_prompt": 2, "height": 24, "width": 40}),
    ("StableDiffusionXLImg2ImgPipeline", {}),
    ("FluxPipeline", {}),
    ("FluxPipeline", {"num_images_per_prompt": 2}),
    ("WanPipeline", {}),
    ("WanPipeline", {"guidance_scale": 1.0, "num_inference_steps": 3}),
)
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


@pytest.mark.parametrize(("name", "call"), PIPELINES)
def test_pipelines_count_as_they_run(name, call):
    found = coverage_runs.pipeline(name, **call)
    assert (found.counted, found.reason) == (found.measured, "")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_count_as_they_run(name):
    found = coverage_runs.architecture(name)
    assert found.counted == found.measured
