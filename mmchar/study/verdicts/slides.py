"""Claims of the suite and of the course slides: sizes, throughput, what a latent saves, fewer steps, several GPUs."""

from mmchar.measuring.optimization.ladder import ladder
from mmchar.models.loading import get_spec, zoo_names
from mmchar.projection.uncertainty import U_NET_IMAGE
from mmchar.request import Request
from mmchar.runs.verdicts import UNKNOWN
from mmchar.study.experiments import PAPER
from mmchar.study.projected_ladder import project_rung
from mmchar.study.verdicts.claim import Claim, Readings, near
from mmchar.study.verdicts.diffusion import LATENT, PIXEL
from mmchar.study.verdicts.setting import Setting, count_once, timed, total_s

_ENGINES = {"bf16, eager": "SDPA", "bf16, compiled": "graphs", "fp8, compiled": "quantized"}


def _suite(_setting: Setting) -> Readings:
    paper = {"llama", "imagen", "stable", "muse", "parti", "emu", "make", "phenaki"}
    return {("of the paper",): float(len({name.split("-")[0] for name in zoo_names(PAPER)} & paper))}


def _images_per_s(gpu: str, gpus: int) -> Readings:
    """SDXL at 20 steps, a batch of 8 on each GPU."""
    rungs, request = {rung.name: rung for rung in ladder("sdxl-base-1.0")}, Request(steps=20, batch=8)
    seconds = {
        words: project_rung("sdxl-base-1.0", rungs[name], gpu=gpu, request=request) for words, name in _ENGINES.items()
    }
    return {(words,): gpus * 8 / total_s(table) for words, table in reversed(seconds.items())}


def _latent_ratio(_setting: Setting) -> Readings:
    """How much smaller a latent is than its image."""
    vae = get_spec("stable-diffusion-1.5").components["vae"].config
    sides = 2 ** (len(vae["block_out_channels"]) - 1)
    return {
        ("positions are counted",): float(sides**2),
        ("numbers are counted",): sides**2 * 3 / vae["latent_channels"],
    }


def _flop_per_parameter(_setting: Setting) -> Readings:
    """FLOPs per parameter of a generation: the least of diffusion over the most of language models."""
    image = [_work(model) for model in (*LATENT, *PIXEL)]
    language = [_work(model) for model in ("llama-2-7b", "llama-2-13b", "llama-2-70b")]
    most = min(flop / params for flop, params in image) / max(flop / params for flop, params in language)
    whole = min(flop for flop, _ in image) / max(flop for flop, _ in language[:1])
    return {("per parameter",): most, ("in all, over LLaMA-2 7B",): whole}


def _work(model: str) -> tuple[float, float]:
    table = count_once(model)
    return float((table["flop"] * table["repeats"]).sum()), float(sum(table.attrs["params"].values()))


def _half_the_steps(setting: Setting) -> Readings:
    steps = get_spec(LATENT[0]).request["steps"]
    whole, half = timed(LATENT[0], setting), timed(LATENT[0], setting, steps=steps // 2)
    return {("half the steps",): total_s(whole) / total_s(half)}


_QUALITY = "Quality is not computed here: weights are random."
_DESCRIBED = "A description of a method, which the package follows; notebook 09 counts what it sends."
CLAIMS = (
    Claim(
        "c006",
        "All eight are in the zoo, Emu-like and Make-A-Video with widths of ours.",
        _suite,
        (8, 8),
        "models",
        "01_compute",
        "counted",
        short="models of the suite: 8",
    ),
    Claim(
        "c067",
        "Eight times one H100 at batch 8; the engine was TensorRT in 8 bits, and newer ones reach 16 (MLPerf 4.1).",
        lambda setting: _images_per_s("h100-sxm", 8),
        near(11.83),
        "images/s",
        "08_published",
        family=U_NET_IMAGE,
        gpu="h100-sxm",
        short="SDXL on 8 H100, 20 steps: 11.8 images/s",
    ),
    Claim(
        "c068",
        "One GH200 at batch 8, a Hopper with faster memory, which a U-Net hardly asks for.",
        lambda setting: _images_per_s("gh200", 1),
        near(2.3),
        "images/s",
        "08_published",
        family=U_NET_IMAGE,
        gpu="gh200",
        short="SDXL on a GH200, 20 steps: 2.3 images/s",
    ),
    Claim(
        "c069",
        "A serving engine batches requests as they come; a generation here is one batch of equal lengths.",
        verdict=UNKNOWN,
    ),
    Claim(
        "c070",
        "A serving engine batches requests as they come; a generation here is one batch of equal lengths.",
        verdict=UNKNOWN,
    ),
    Claim(
        "c071",
        "An image has 64 times the positions of its latent; with 4 channels against 3 colours, {low} the numbers.",
        _latent_ratio,
        (64, 64),
        "x",
        basis="counted",
        short="a latent is 64 x smaller",
    ),
    Claim(
        "c072",
        "Every weight works at thousands of positions in every step: {ours} the FLOPs per parameter of language.",
        _flop_per_parameter,
        (1, float("inf")),
        "x",
        "01_compute",
        "counted",
        short="diffusion computes more per parameter than language",
    ),
    Claim("c073", "The package has no training.", verdict=UNKNOWN),
    Claim("c074", _QUALITY, verdict=UNKNOWN),
    Claim(
        "c075",
        f"Half the steps are {{ours}} as fast. {_QUALITY}",
        _half_the_steps,
        unit="x",
        figure="07_levers",
        verdict=UNKNOWN,
    ),
    Claim("c076", _DESCRIBED, verdict=UNKNOWN, figure="09_bytes"),
    Claim("c077", _DESCRIBED, verdict=UNKNOWN, figure="09_bytes"),
)
