"""At least two hundred bad inputs: each is refused by one clear line, with exit code 2, before any heavy work.

To add one at the shell is to add a line to a table: the arguments, ``=>``, a piece of the line that answers them.
``$F`` stands for a folder of bad files, made by `FILES`. A line of `MODEL_FIELDS` or `BUILT` changes a model file.
"""

import io
import json
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import mmchar
from mmchar.cli.main import main
from mmchar.counting import operator_table as counting
from mmchar.models import loading as models
from mmchar.models.loading import ZOO, get_spec
from mmchar.provenance import SOURCE
from mmchar.request import FIELDS, Request, from_mapping
from mmchar.runs import own_process
from mmchar.runs.parameters import check_parameters, read_parameters
from mmchar.runs.records import read_result
from mmchar.tables.stored import read_table

SD = "stable-diffusion-1.5"
NOTEBOOKS = sorted((SOURCE / "notebooks").glob("[0-9][0-9]_*.ipynb"))

FILES = {
    "empty.json": "",
    "empty.csv": "",
    "header.csv": "model,gpu,gpus,ulysses,ring,batch,steps,height,width,frames,latency_s\n",
    "lacking.csv": "model,gpu\nsdxl-base-1.0,h100-sxm\n",
    "half.yaml": "points: [{model: stable-diffusion-1.5",
    "no_points.yaml": "points: []\n",
    "list.yaml": "- 1\n- 2\n",
    "unknown_key.yaml": "points: [{model: stable-diffusion-1.5, atention: flash}]\n",
    "unknown_model.yaml": "points: [{model: stable-difusion-1.5}]\n",
    "bad_request.yaml": "points: [{model: stable-diffusion-1.5, request: {height: 3}}]\n",
    "bad_lever.yaml": "points: [{model: stable-diffusion-1.5, levers: {execution: jit}}]\n",
    "object.yaml": "points: !!python/object/apply:os.getcwd []\n",
    "half.json": '{"name": "x", "fam',
    "list.json": "[]",
    "text.json": '"model"',
    "null.json": "null",
    "number.json": "1e999",
    "deep.json": "[" * 100_000,
    "latin.json": b"\xff\xfe\x00name",
    "object.json": "{}",
    "folder.json/x": "",
    "file": "not a folder",
    "empty/.keep": "",
    "no_class/model_index.json": "{}",
    "list_index/model_index.json": "[1, 2]",
    "half_index/model_index.json": '{"_class_name": ',
    "odd_class/model_index.json": '{"_class_name": "EvilPipeline"}',
    "number_class/model_index.json": '{"_class_name": 5}',
    "list_class/model_index.json": '{"_class_name": ["FluxPipeline"]}',
    "no_parts/model_index.json": '{"_class_name": "FluxPipeline"}',
    "odd_library/model_index.json": '{"_class_name": "FluxPipeline", "transformer": ["os", "system"]}',
    "odd_entry/model_index.json": '{"_class_name": "FluxPipeline", "transformer": "FluxTransformer2DModel"}',
    "path_class/model_index.json": '{"_class_name": "FluxPipeline", "transformer": ["diffusers", "../x"]}',
    "no_config/model_index.json": json.dumps(
        {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    ),
    "no_architecture/config.json": '{"model_type": "nothing"}',
    "odd_architecture/config.json": '{"architectures": ["EvilForCausalLM"]}',
    "text_architecture/config.json": '{"architectures": "LlamaForCausalLM"}',
    "nested_architecture/config.json": '{"architectures": [["LlamaForCausalLM"]]}',
    "own_code/config.json": '{"architectures": ["MineForCausalLM"], "auto_map": {"AutoModel": "mine.Mine"}}',
    "component/config.json": '{"_class_name": "UNet2DConditionModel"}',
    "text_sizes/config.json": '{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": "4096"}',
    "list_text/config.json": '{"architectures": ["LlavaForConditionalGeneration"], "text_config": []}',
    "half_config/config.json": "{",
    "list_config/config.json": "[]",
    "no_numbers/99_draft.txt": "",
    "junk/01_x.ipynb": "{",
    "no_cells/01_x.ipynb": "{}",
    "untagged/01_x.ipynb": '{"cells": []}',
    "odd_cells/01_x.ipynb": '{"cells": [5]}',
    "no_out/01_x.ipynb": json.dumps(
        {"cells": [{"cell_type": "code", "source": "a = 1", "metadata": {"tags": ["parameters"]}}]}
    ),
    "import/01_x.ipynb": json.dumps(
        {"cells": [{"cell_type": "code", "source": "import os", "metadata": {"tags": ["parameters"]}}]}
    ),
    "call/01_x.ipynb": json.dumps(
        {"cells": [{"cell_type": "code", "source": "out_dir = open('x')", "metadata": {"tags": ["parameters"]}}]}
    ),
    "zero/01_x.ipynb": json.dumps(
        {"cells": [{"cell_type": "code", "source": "out_dir = 'a\\0'", "metadata": {"tags": ["parameters"]}}]}
    ),
}

# no command, or one with options that it does not have
SHELL = """
=> the following arguments are required: COMMAND
"" => invalid choice: ''
nothing => invalid choice: 'nothing'
Count => invalid choice: 'Count'
--nothing => required
count => required: MODEL
project => required
measure => measure needs a MODEL
validate => give a file of rows
models --nothing => unrecognized arguments: --nothing
models extra => unrecognized arguments: extra
gpus extra => unrecognized arguments: extra
gpus --gpu h100-sxm => unrecognized arguments
doctor --fix => unrecognized arguments: --fix
doctor now => unrecognized arguments: now
count $SD $SD => unrecognized arguments
count $SD --nothing => unrecognized arguments: --nothing
count $SD --heigth 512 => --heigth
count $SD --json=yes => ignored explicit argument 'yes'
count $SD --height => argument --height: expected one argument
project $SD => required: --gpu
models --family => expected one argument
"""
LISTS = """
models --family nothing => unknown family 'nothing'; choose one of
models --family "" => unknown family
models --family Latent_Diffusion => unknown family
models --match nothing => no model's name holds 'nothing'; 'mmchar models' lists all
models --match "[" => no model's name holds '['
models --match "*" => no model's name holds '*'
models --family latent_diffusion --match llama => no model's name holds 'llama'
zoo --out page.html => --out 'page.html' is not .md
zoo --out page => is not .md
zoo --out $F/file/page.md => cannot be written
zoo --only 1 => unrecognized
claims --gpu nothing => unknown gpu 'nothing'
claims --gpu "" => unknown gpu ''
claims --gpu h100 => did you mean 'h100-pcie'
claims --dtype int3 => int3
claims --moves c999 => nothing is computed for claim c999; choose among c001
claims --out verdicts.txt => .csv
claims --dtype "" => has no dtype
claims --execution fast => invalid choice: 'fast'
claims --gpu v100-32gb --dtype bfloat16 => bfloat16
"""
NAMES = """
count "" => unknown model ''
count nothing => unknown model 'nothing'; 'mmchar models' lists all
count sdxl => unknown model 'sdxl'
count stable-difusion-1.5 => did you mean 'stable-diffusion-1.5'
count Stable-Diffusion-1.5 => did you mean 'stable-diffusion-1.5'
count ../../etc/passwd => unknown model
count /etc/passwd => unknown model
count /dev/null => unknown model
count "stable-diffusion-1.5\\nmore" => unknown model
count runwayml/stable-diffusion-v1-5 => unknown model 'runwayml/stable-diffusion-v1-5': neither in the zoo
count stabilityai/stable-diffusion-xl-base-1.0 => the hub cannot be asked; the zoo has 'sdxl-base-1.0'
count nobody/nothing => the hub cannot be asked; give a folder of configurations
count https://example.org/model.json => no model file
count "<script>alert(1)</script>" => unknown model
count "$(id)" => unknown model
count ./stable-diffusion-1.5 => unknown model
count "a b c" => unknown model
count naïve-模型 => unknown model
count %s%n => unknown model
count nothing.json => no model file nothing.json
count $F/../nothing.json => no model file
count $F/empty.json => empty.json is no model file
count $F/half.json => half.json is no model file
count $F/list.json => list.json is no model file: Expected `object`, got `array`
count $F/text.json => text.json is no model file: Expected `object`, got `str`
count $F/null.json => null.json is no model file: Expected `object`, got `null`
count $F/number.json => Number out of range
count $F/deep.json => deep.json is no model file
count $F/latin.json => latin.json is no model file
count $F/object.json => missing required field `name`
count $F/folder.json => folder.json is no model file
count $F/file => unknown model
count $F/empty => holds neither model_index.json (diffusers) nor config.json (transformers)
count $F/no_class => '_class_name' is None
count $F/list_index => expected an object, found list
count $F/half_index => is not readable JSON
count $F/odd_class => '_class_name' is 'EvilPipeline', which diffusers
count $F/number_class => '_class_name' is 5
count $F/list_class => '_class_name' is ['FluxPipeline']
count $F/no_parts => component 'vae' is missing; a FluxPipeline cannot run without it
count $F/odd_library => library 'os' is not one of
count $F/odd_entry => expected [library, class]
count $F/path_class => '../x' is no class name
count $F/no_config => component 'transformer' needs its config.json
count $F/no_architecture => 'architectures' is None and 'model_type' is 'nothing'
count $F/odd_architecture => 'architectures' is 'EvilForCausalLM': transformers has no class
count $F/text_architecture => 'architectures' is 'LlamaForCausalLM'; expected a list
count $F/nested_architecture => 'architectures' is [['LlamaForCausalLM']]; expected a list
count $F/own_code => code of its own ('auto_map') is never run
count $F/component => 'UNet2DConditionModel' is one component of a pipeline
count $F/text_sizes => LlamaForCausalLM rejects its config
count $F/list_text => LlavaForConditionalGeneration rejects its config
count $F/half_config => is not readable JSON
count $F/list_config => expected an object, found list
count $F/no_class --tiny => no scaled-down variant
project nothing --gpu h100-sxm => unknown model 'nothing'
project $F/half.json --gpu h100-sxm => is no model file
project $F/empty --gpu h100-sxm => holds neither
measure nothing => unknown model 'nothing'
measure $F/list.json => Expected `object`, got `array`
measure $F/odd_class --tiny => no scaled-down variant
"""
REQUESTS = """
count $SD --height 0 => height=0 is not a whole number of 1 or more
count $SD --height -8 => height=-8
count $SD --height 8.5 => '8.5' is not a whole number
count $SD --height 1e3 => '1e3' is not a whole number
count $SD --height ten => 'ten' is not a whole number
count $SD --height "" => '' is not a whole number
count $SD --height nan => 'nan' is not a whole number
count $SD --height 0x200 => '0x200' is not a whole number
count $SD --height 511 => must be a multiple of 8, e.g. 504 or 512
count $SD --height 99999999999999999999999999 => height=
count $SD --width inf => 'inf' is not a whole number
count $SD --width 7 => width=7
count $SD --width None => 'None' is not a whole number
count $SD --batch 0 => batch=0
count $SD --batch -1 => batch=-1
count $SD --batch true => 'true' is not a whole number
count $SD --steps 0 => steps=0
count $SD --steps -5 => steps=-5
count $SD --steps , => '' is not a whole number
count $SD --steps 5, => '' is not a whole number
count $SD --steps 5,5 => does not fit stable-diffusion-1.5; give one number
count $SD --steps 1.5 => '1.5' is not a whole number
count $SD --steps 5,x => 'x' is not a whole number
count $SD --guidance -1 => guidance=-1.0 is not a number of 0 or more
count $SD --guidance nan => guidance=nan
count $SD --guidance inf => guidance=inf
count $SD --guidance high => 'high' is not a number
count $SD --guidance 1e999 => guidance=inf
count $SD --prompt-tokens 0 => prompt_tokens=0
count $SD --prompt-tokens 78 => prompt_tokens=78
count $SD --frames 8 => takes no 'frames'; its request fields are
count $SD --new-tokens 8 => takes no 'new_tokens'
count $SD --classes 8 => takes no 'classes'
count $SD --candidates 8 => takes no 'candidates'
count $SD --beams 2 => takes no 'beams'
count $SD --audio-s 2 => takes no 'audio_s'
count $SD --images 2 => takes no 'images'
count llava-1.5-7b --images 0 => images=0 is not a whole number of 1 or more
count llava-1.5-7b --images 8 => prompt_tokens+new_tokens+576*images=4736 is outside the reach of llava-1.5-7b
count $SD --audio_s 2 => unrecognized arguments
count llama-2-7b --height 512 => takes no 'height'
count llama-2-7b --prompt-tokens 5000 => outside the reach of llama-2-7b
count llama-2-7b --prompt-tokens 4096 --new-tokens 1 => prompt_tokens+new_tokens=4097
count llama-2-7b --new-tokens 0 => new_tokens=0
count llama-2-7b --steps 5 => takes no 'steps'
count wan2.1-t2v-1.3b --frames 80 => must be 4k+1, e.g. 77 or 81
count wan2.1-t2v-1.3b --frames 0 => frames=0
count wan2.1-t2v-1.3b --frames -3 => frames=-3
count make-a-video --steps 1,2 => does not fit make-a-video; give 5 numbers
count dit-xl-2-256 --height 512 => height=512 is outside the reach of dit-xl-2-256
count $SD --tiny --height 3 => must be a multiple of 8
count $SD --call => argument --call: expected one argument
count $SD --call steps => argument --call: 'steps' is not NAME=VALUE
count $SD --call 4=5 => '4=5' is not NAME=VALUE
count $SD --call height=64 => 'height' has an option of its own, --height
count $SD --call dtype=float32 => 'dtype' has an option of its own, --dtype
count $SD --call cache=1 => 'cache' has an option of its own
count $SD --call model=x => 'model' has an option of its own
measure $SD --tiny --call levers=1 => 'levers' is not for the model's call
count $SD --call eta=0 --call eta=1 => 'eta' is given twice
count $SD --call guidance_scael=4 => takes no 'guidance_scael'; did you mean 'guidance_scale'?
project $SD --gpu h100-sxm --call image=64x64 => StableDiffusionPipeline takes no 'image'
count $SD --dtype int8 => unknown dtype 'int8'; choose one of float32, bfloat16, float16
count $SD --dtype "" => unknown dtype ''
count $SD --dtype fp16 => unknown dtype 'fp16'
count $SD --dtype float64 => unknown dtype 'float64'
count $SD --dtype __class__ => unknown dtype
count $SD --attention none => invalid choice: 'none'
count $SD --attention Flash => invalid choice: 'Flash'
count $SD --out table.xlsx => --out 'table.xlsx' is neither .parquet nor .csv
count $SD --out table => is neither .parquet nor .csv
count $SD --out table.csv.gz => is neither .parquet nor .csv
count $SD --out table.pkl => is neither .parquet nor .csv
count $SD --out $F/file/table.csv => cannot be written: 'file' is no folder that you can write to
count $SD --out $F/file/deeper/table.parquet => cannot be written
"""
PROJECT = """
project $SD --gpu nothing => unknown gpu 'nothing'; choose one of
project $SD --gpu "" => unknown gpu ''
project $SD --gpu h100 => did you mean 'h100-pcie'
project $SD --gpu H100-SXM => did you mean 'h100-sxm'
project $SD --gpu a100 => did you mean
project $SD --gpu ../gpus.json => unknown gpu
project $SD --gpu all --perfetto p.json => --perfetto writes one generation, and --gpu all projects several
project $SD --gpu all --ulysses 2 => --ulysses is given, but --gpu all projects onto one GPU each
project $SD --gpu all --best-of 2 => --best-of needs one kind of GPU
project $SD --gpu t4 --dtype float16 --best-of 2 --cfg 2 => --best-of tries every way to share
project $SD --gpu t4 --dtype float16 --best-of 0 => best of 0 GPUs; give 1 or more
project $SD --gpu t4 --best-of few => argument --best-of: 'few' is not a whole number
project $SD --gpu t4 --best-of 2 => t4 has no bfloat16
project $SD --gpu all --hit-rate 0.4 => --step-cache KIND and --hit-rate SHARE go together
project $SD --gpu all --step-cache teacache => --step-cache KIND and --hit-rate SHARE go together
project $SD --gpu all --step-cache mag --hit-rate 0.4 => invalid choice: 'mag'
project $SD --gpu all --step-cache teacache --hit-rate 1 => argument --hit-rate: '1' is not a number from 0 to below 1
project $SD --gpu h100-sxm --step-cache teacache --hit-rate 0.4 => is no list of blocks of one kind
project $SD --gpu "t4 " => unknown gpu 't4 '
project $SD --gpu t4 => bfloat16
project $SD --gpu v100-32gb --dtype bfloat16 => bfloat16
project $SD --gpu h100-sxm --dtype fp8 => fp8
project $SD --gpu h100-sxm --dtype "" => has no dtype
project $SD --gpu h100-sxm --execution graph => invalid choice: 'graph'
project $SD --gpu h100-sxm --attention sage => invalid choice: 'sage'
project $SD --gpu h100-sxm --out p.json => is neither
project $SD --gpu h100-sxm --out $F/file/p.csv => cannot be written
project $SD --gpu h100-sxm --height 12 => must be a multiple of 8
project $SD --gpu h100-sxm --frames 5 => takes no 'frames'
project $SD --gpu h100-sxm --steps 0 => steps=0
"""
MEASURE = """
measure $SD --device tpu => invalid choice: 'tpu'
measure $SD --device CPU => invalid choice: 'CPU'
measure $SD --device "" => invalid choice: ''
measure $SD --tiny --device meta => invalid choice: 'meta'
measure $SD --tiny --samples 0 => samples=0
measure $SD --tiny --samples -1 => samples=-1
measure $SD --tiny --samples many => invalid int value: 'many'
measure $SD --tiny --samples 1.5 => invalid int value
measure $SD --tiny --dtype int8 => unknown dtype 'int8'
measure $SD --tiny --attention paged => invalid choice: 'paged'
measure $SD --tiny --height 3 => must be a multiple of 8
measure $SD --tiny --new-tokens 3 => takes no 'new_tokens'
measure $SD --tiny --steps 0 => steps=0
measure llama-2-7b --tiny --prompt-tokens 0 => prompt_tokens=0
measure llama-2-7b --tiny --prompt-tokens 999999 => outside the reach
measure $SD --tiny --gpu h100-sxm => unrecognized arguments
"""
VALIDATE = """
validate $F/nothing.csv => cannot read
validate $F/empty.csv => lacks the columns
validate $F/lacking.csv => lacks the columns latency_s
validate $F/header.csv => has no rows
validate $F/header.csv --out $F/x.txt => neither .parquet nor .csv
validate $F/header.csv --figure $F/x.pdf => neither .png nor .svg
validate $F/header.csv --attention paged => invalid choice
"""
DEGREES = """
project $SD --gpu h100-sxm --gpus 0 => gpus=0
project $SD --gpu h100-sxm --gpus 4 => gpus=4, but no degree above 1 makes 1
project $SD --gpu h100-sxm --gpus 4 --ulysses 2 => gpus=4, but ulysses 2 makes 2
project $SD --gpu h100-sxm --ulysses 2 --tensor 2 => do not go together
project $SD --gpu h100-sxm --cfg 3 => cfg=3
project $SD --gpu h100-sxm --ring two => 'two' is not a whole number
"""
GRIDS = """
measure --grid $F/nothing.yaml --out $F/o => nothing.yaml
measure --grid $F/half.yaml --out $F/o => half.yaml
measure --grid $F/no_points.yaml --out $F/o => no_points.yaml
measure --grid $F/list.yaml --out $F/o => list.yaml
measure --grid $F/unknown_key.yaml --out $F/o => atention
measure --grid $F/unknown_model.yaml --out $F/o => stable-diffusion-1.5
measure --grid $F/bad_request.yaml --out $F/o => must be a multiple of 8
measure --grid $F/bad_lever.yaml --out $F/o => jit
measure --grid $F/object.yaml --out $F/o => object.yaml
measure --grid $F/no_points.yaml --budget -3 --out $F/o => --budget
measure $SD --grid $F/no_points.yaml => does not go with --grid
measure $SD --list => goes with --grid
measure --compare $F/nothing => expected 2 arguments
measure --compare $F/nothing $F/empty => no folder
measure --compare $F/empty $F/empty => nothing was measured
measure $SD --compare $F/empty $F/empty => does not go with --compare
measure --compare $F/empty $F/empty --budget 3 => does not go with --compare
measure --compare $F/empty $F/empty --out $F/o.txt => neither .parquet nor .csv
"""
RUNS = """
runs --results $F/none => none
runs show nothing --results $F => nothing
runs diff a --results $F => diff A B
"""
STUDY = """
study extra => unrecognized arguments: extra
study --only 99 => no notebook with number 99; there are
study --only x => no notebook with number 'x'
study --only "" => no notebook with number ''
study --only ../.. => no notebook with number
study --only 1,99 => no notebook with number 99
study --only -1 => no notebook with number '-1'
study --gpu nothing => unknown gpu 'nothing'
study --gpu "" => unknown gpu ''
study --jobs 0 => jobs = 0
study --jobs -2 => jobs = -2
study --jobs two => invalid int value: 'two'
study --notebooks nothing => no notebooks NN_*.ipynb in
study --notebooks $F/empty => no notebooks NN_*.ipynb in
study --notebooks $F/no_numbers => no notebooks NN_*.ipynb in
study --notebooks $F/file => no notebooks NN_*.ipynb in
study --notebooks $F/junk => 01_x.ipynb is not a notebook
study --notebooks $F/no_cells => 01_x.ipynb is not a notebook
study --notebooks $F/odd_cells => 01_x.ipynb is not a notebook
study --notebooks $F/untagged => has 0 cells tagged 'parameters'
study --notebooks $F/no_out => has no parameter 'out_dir'
study --notebooks $F/import => is no assignment
study --notebooks $F/call => is no literal
study --gres gpu:1 => --gres says what to ask of Slurm; add --slurm
study --parallel 2 => --parallel says what to ask of Slurm
study --partition short => --partition says what to ask of Slurm
study --slurm --parallel 0 => parallel = 0 is not a whole number
study --slurm --time-limit -5 => time_limit_min = -5
study --slurm --gres all => gres = 'all' names no whole GPUs
study --slurm --partition "a;b" => partition = 'a;b' is no name
"""
# one field of a good model file changed; "-" removes it
MODEL_FIELDS = """
name = - => missing required field `name`
name = 5 => name
name = null => name
name = "" => name
name = "../up" => name
name = ["x"] => name
family = - => missing required field `family`
family = 5 => family
family = null => family
family = ["latent_diffusion"] => family
year = "2022" => year
year = null => year
summary = 5 => summary
components = - => missing required field `components`
components = [] => components
components = null => components
components = {} => components
components = "unet" => components
components.unet = null => component 'unet': Expected `object`, got `null`
components.unet = 5 => component 'unet': Expected `object`, got `int`
components.unet = [] => component 'unet': Expected `object`, got `array`
components.unet.library = - => missing required field `library`
components.unet.library = "os" => Invalid enum value 'os' - at `$.library`
components.unet.library = null => Expected `str`, got `null` - at `$.library`
components.unet.library = ["diffusers"] => Expected `str`, got `array` - at `$.library`
components.unet.class = - => missing required field `class`
components.unet.class = 5 => class
components.unet.class = null => class
components.unet.class = "" => class
components.unet.class = "..utils.x" => class
components.unet.class = "utils/x" => class
components.unet.config = - => missing required field `config`
components.unet.config = [] => config
components.unet.config = null => config
components.unet.config = "file.json" => config
components.unet.source = "" => Expected `str` of length >= 1 - at `$.source`
components.unet.source = 5 => source
components.unet.tiny = [] => tiny
components.unet.tiny = null => tiny
components.unet.published_params = "1B" => published_params
components.unet.published_params = -1 => published_params
components.unet.params_source = 5 => params_source
components.unet.weights = "x.bin" => unknown field `weights`
components.unet.clas = "x" => unknown field `clas`
options = {} => unknown field `options`
pipeline = [] => pipeline
pipeline = null => pipeline
pipeline.library = "vllm" => Invalid enum value 'vllm' - at `$.pipeline.library`
pipeline.class = "os.system('x')" => matching regex
pipeline.scheduler = {} => unknown field `scheduler`
request = - => missing required field `request`
request = [] => request
request = null => request
request = 5 => request
request.colour = 5 => unknown request field 'colour'
request.height = "512" => height='512' is not a whole number
request.height = 0 => height=0
request.height = 511 => must be a multiple of 8
request.height = null => height
request.height = [512] => height=[512]
request.height = true => height=True
request.steps = [] => steps
request.steps = "50" => steps='50'
request.guidance = "7" => guidance='7'
request_source = - => request_source
request_source = 5 => request_source
tiny_request = - => tiny_request
tiny_request = [] => tiny_request
tiny_request = null => tiny_request
tiny_request.colour = 5 => unknown request field 'colour'
limits = [] => limits
limits = null => limits
limits = 5 => limits
limits.height = 5 => limits
limits.height = null => limits
limits.height = {"multiple_of": 0} => limits
limits.height = {"multiple_of": "8"} => limits
limits.height = {"of_form": 5} => limits
limits.height = {"of_form": [0, 1]} => limits
limits.height = {"min": "64"} => limits
limits.height = {"max": [1]} => limits
limits.height = {"maximum": 5} => limits
limits.colour = {"min": 1} => limits
limits.frames = {"min": 1} => limits
tiny_limits = 5 => tiny_limits
tiny_limits.height = 5 => tiny_limits
notes = 5 => notes
notes = [5] => notes
papers = "arXiv" => papers
papers = {} => papers
extra = 1 => unknown field `extra`
familly = "x" => unknown field `familly`
trust_remote_code = true => unknown field `trust_remote_code`
"""


def _lines(table):
    return [tuple(part.strip() for part in line.split("=>")) for line in table.splitlines() if "=>" in line]


AT_SHELL = _lines("".join((SHELL, LISTS, NAMES, REQUESTS, PROJECT, MEASURE, VALIDATE, DEGREES, GRIDS, RUNS, STUDY)))


def test_there_are_at_least_two_hundred():
    cases = AT_SHELL + _lines(MODEL_FIELDS)
    assert len(set(cases)) == len(cases) >= 300


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture(autouse=True)
def _no_heavy_work(request, monkeypatch):
    """Nothing is built, traced or started, so that no refusal takes longer than reading what was given."""
    if request.node.get_closest_marker("slow"):
        return

    def refuse(*_, **__):
        raise AssertionError("heavy work was started for a bad input")

    for module, name in ((models, "build"), (counting, "count_subject"), (own_process.subprocess, "Popen")):
        monkeypatch.setattr(module, name, refuse)


def refused(argv):
    """The one line on stderr that a command is refused with."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(argv)
    assert (code, out.getvalue()) == (2, ""), err.getvalue()
    line = err.getvalue()
    assert line.startswith("mmchar: ") and line.count("\n") == 1 and line.endswith("\n") and len(line) < 1200, line
    assert "Traceback" not in line and line.isprintable() is False  # only its own end is unprintable
    assert line[:-1].isprintable(), line
    return line


@pytest.mark.parametrize(("command", "answer"), AT_SHELL)
def test_a_bad_input_at_the_shell_is_one_line(command, answer, bad_files):
    command = command.replace("$SD", SD).replace("$F", str(bad_files))
    assert answer in refused(shlex.split(command))


def spoilt(name, change, folder):
    """The path of a zoo model's file with one field changed, or removed by ``-``."""
    field, _, value = change.partition(" = ")
    raw = json.loads((ZOO / f"{name}.json").read_text())
    *parents, last = field.split(".")
    inner = raw
    for key in parents:
        inner = inner.setdefault(key, {})
    inner.pop(last, None)
    if value != "-":
        inner[last] = json.loads(value)
    if parents[-1:] == ["config"]:  # the scaled-down variant has the same fault
        raw["components"][parents[1]]["tiny"].pop(last, None)
    (folder / "mine.json").write_text(json.dumps(raw))
    return str(folder / "mine.json")


@pytest.mark.parametrize(("change", "answer"), _lines(MODEL_FIELDS))
def test_a_model_file_with_one_bad_field_is_one_line(change, answer, tmp_path):
    line = refused(["count", spoilt(SD, change, tmp_path), "--no-cache"])
    assert answer in line and ("mine.json" in line or SD in line)


# What only the model's own classes know: its networks are built, without memory, and then one line says what is wrong.
BUILT = """
stable-diffusion-1.5: components.unet = - => StableDiffusionPipeline cannot run without its network 'unet'
stable-diffusion-1.5: pipeline.class = "NothingPipeline" => diffusers has no class 'NothingPipeline'
stable-diffusion-1.5: pipeline.class = "FluxPipeline" => FluxPipeline has no network 'unet'
stable-diffusion-1.5: pipeline.schedulers = {"scheduler": {"class": "No"}} => diffusers has no class 'No'
stable-diffusion-1.5: pipeline.schedulers = {"nothing": {"class": "DDIMScheduler"}} => takes no 'nothing'
stable-diffusion-1.5: pipeline.arguments = {"colour": 1} => StableDiffusionPipeline takes no 'colour'
stable-diffusion-1.5: pipeline.call = {"guidance_scael": 1} => did you mean 'guidance_scale'?
stable-diffusion-1.5: pipeline.methods = ["vae.nothing"] => has no attribute 'nothing'
stable-diffusion-1.5: tiny_request.steps = [2, 2] => takes one number for 'steps', not 2
stable-diffusion-1.5: components.unet.config.cross_attention_dim = 40 => network 'unet' (forward): RuntimeError
pixart-sigma-1024: components.transformer.class = "Nothing" => diffusers has no class 'Nothing'
pixart-sigma-1024: components.transformer.class = "DDIMScheduler" => is not a network (nn.Module)
pixart-sigma-1024: components.transformer.class = "logging" => is not a network (nn.Module)
pixart-sigma-1024: components.transformer.library = "transformers" => transformers has no class
pixart-sigma-1024: components.transformer.config.nothing = 5 => PixArtTransformer2DModel rejects its config
pixart-sigma-1024: components.transformer.config.num_layers = "two" => PixArtTransformer2DModel rejects its config
stable-diffusion-1.5: components.unet.config.layers_per_block = 0 => network 'unet' (forward): AssertionError
llama-2-7b: components.lm.config.hidden_size = -64 => LlamaForCausalLM rejects its config
llama-2-7b: components.lm.config.hidden_act = "nothing" => LlamaForCausalLM rejects its config
llama-2-7b: components.lm.class = "pipeline" => is not a network (nn.Module)
llama-2-7b: components.lm.class = "AutoModelForCausalLM" => AutoModelForCausalLM
"""


@pytest.mark.slow
@pytest.mark.parametrize(("change", "answer"), _lines(BUILT))
def test_networks_that_do_not_build_or_run_are_one_line(change, answer, tmp_path):
    name, _, change = change.partition(": ")
    mine = spoilt(name, change, tmp_path)
    assert answer in refused(["count", mine, "--tiny", "--no-cache"])


# by Python

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def one_clear_line(call, *arguments, **named):
    """The ValueError of a call, which is one line that says something."""
    with pytest.raises(ValueError) as caught:
        call(*arguments, **named)
    assert type(caught.value) is ValueError or isinstance(caught.value, UnicodeError), repr(caught.value)
    line = str(caught.value)
    assert line and "\n" not in line and len(line) < 1200
    return line


def works_or_one_line(call, *arguments):
    try:
        call(*arguments)
    except ValueError:
        one_clear_line(call, *arguments)


COUNTS = [name for name in FIELDS if name not in ("steps", "guidance")]
NO_COUNT = st.integers(max_value=0) | st.floats() | st.text() | st.booleans() | st.lists(st.integers(), max_size=2)


@given(st.sampled_from(COUNTS), NO_COUNT)
def test_no_request_takes_what_is_no_count(name, value):
    assert name in one_clear_line(Request, **{name: value})


@given(
    st.integers(max_value=0) | st.text() | st.floats() | st.booleans() | st.just([]) | st.lists(st.just(0), min_size=1)
)
def test_no_request_takes_bad_steps(value):
    assert "steps" in one_clear_line(Request, steps=value)


@given(st.floats(max_value=-1e-9) | st.sampled_from([float("nan"), float("inf"), "7", True, [1.0]]))
def test_no_request_takes_bad_guidance(value):
    assert "guidance" in one_clear_line(Request, guidance=value)


@given(st.text().filter(lambda name: name not in FIELDS))
def test_no_request_takes_an_unknown_field(name):
    assert "unknown request field" in one_clear_line(from_mapping, {name: 1})


@given(st.text().filter(lambda name: not Path(name.replace("\0", "")).exists()))
def test_a_name_that_is_no_model_is_one_line(name):
    one_clear_line(get_spec, name)
    one_clear_line(mmchar.project, "no table", gpu=name)


def nodes(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from nodes(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize(
    "name", [SD, "llava-1.5-7b", "imagen", "make-a-video", "muse-3b", "wan2.1-t2v-1.3b", "hstu-ml20m-large"]
)
@given(st.data(), PLAIN, st.booleans())
def test_a_spoilt_model_file_is_a_spec_or_one_line(tmp_path_factory, name, data, new, tiny):
    raw = json.loads((ZOO / f"{name}.json").read_text())
    path = data.draw(st.sampled_from(list(nodes(raw))))
    mine = tmp_path_factory.getbasetemp() / "spoilt.json"
    mine.write_text(json.dumps(replaced(raw, path, new)))
    works_or_one_line(lambda: get_spec(str(mine), tiny=tiny).resolve())


@pytest.mark.parametrize("cls", ["LlamaForCausalLM", "LlavaForConditionalGeneration"])
@given(
    st.dictionaries(
        st.sampled_from(["max_position_embeddings", "sliding_window", "text_config", "vision_config"]), PLAIN
    )
)
def test_a_spoilt_config_is_a_spec_or_one_line(tmp_path_factory, cls, config):
    folder = tmp_path_factory.getbasetemp() / "spoilt"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [cls], **config}))
    works_or_one_line(lambda: get_spec(str(folder)).resolve())


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_a_notebook_refuses_unknown_and_mistyped_parameters(notebook):
    for name, parameter in read_parameters(notebook).items():
        for value in (None, 1, 1.5, "x", True, ["x"], {"a": 1}, object(), b"x", {1}, float, lambda: 1):
            wanted = list if parameter.type is tuple else parameter.type
            if type(value) is wanted or (type(value), wanted) == (int, float) or parameter.default is None:
                continue
            assert name in one_clear_line(check_parameters, notebook, {name: value})
        assert f"did you mean {name!r}" in one_clear_line(check_parameters, notebook, {f"{name}x": parameter.default})
    for name in ("", "nothing", "__class__", "out dir", "模型", "a\0"):
        assert "has no parameter" in one_clear_line(check_parameters, notebook, {name: 1})


@given(st.binary(max_size=200))
def test_a_table_of_any_bytes_is_read_or_refused(tmp_path_factory, data):
    for suffix in (".parquet", ".csv"):
        path = tmp_path_factory.getbasetemp() / f"any{suffix}"
        path.write_bytes(b"PAR1" + data + b"PAR1" if suffix == ".parquet" else data)
        works_or_one_line(read_table, path)


@pytest.mark.parametrize("name", ["nothing.csv", "nothing.parquet", "table.pkl", "table", "folder.csv", "table.CSV"])
def test_a_table_that_is_none_is_one_line(name, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    one_clear_line(read_table, tmp_path / name)


@given(PLAIN | st.dictionaries(st.sampled_from(["schema", "notebook", "files", "tables", "sha256", "checks"]), PLAIN))
def test_a_result_of_any_json_is_refused(tmp_path_factory, value):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(value))
    assert "result.json" in one_clear_line(read_result, folder)


BY_PYTHON = [
    (mmchar.count, ("nothing",), {}),
    (mmchar.count, (SD,), {"dtype": "int8"}),
    (mmchar.count, (SD,), {"attention": "none"}),
    (mmchar.count, (SD, Request(frames=3)), {}),
    (mmchar.count, (SD, Request(height=3)), {"tiny": True}),
    (mmchar.load, ("nothing",), {}),
    (mmchar.load, (SD,), {"weights": "pickle"}),
    (mmchar.load, (SD,), {"device": "tpu"}),
    (mmchar.load, (SD,), {"dtype": "int8"}),
    (mmchar.load, (SD,), {"weights": "pretrained", "dtype": "int8"}),
    (mmchar.load, ("nothing/at-all/here",), {"weights": "pretrained"}),
    (mmchar.measure, ("nothing",), {}),
    (mmchar.measure, (SD,), {"device": "meta", "tiny": True}),
    (mmchar.measure, (SD,), {"samples": 0, "tiny": True}),
    (mmchar.measure, (SD,), {"warmup": -1, "tiny": True}),
    (mmchar.measure, (SD,), {"attention": "none", "tiny": True}),
]


@pytest.mark.parametrize(("call", "given_", "named"), BY_PYTHON)
def test_a_bad_input_by_python_is_one_line(call, given_, named):
    one_clear_line(call, *given_, **named)
