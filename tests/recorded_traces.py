"""Small traces in the form of torch.profiler: written by hand, or recorded on a CPU with kernels added by hand."""

import gzip
import json
import tempfile
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from mmchar.tracing.operators import words

H100 = {"id": 0, "name": "NVIDIA H100 80GB HBM3", "totalGlobalMem": 85_018_279_936}
BF16 = "c10::BFloat16"


class TraceMaker:
    """The events of a trace; times in us. A kernel is launched in the middle of what is named around it."""

    def __init__(self, device=H100, host="cuda", pid=100):
        self.events, self.device, self.host, self.thread = [], device, host, {"pid": pid, "tid": pid}
        self.launches = 0

    def span(self, cat, name, start, end, **args):
        times = {"ts": start, "dur": round(end - start, 6)}
        self.events.append({"ph": "X", "cat": cat, "name": name, **self.thread, **times, "args": args})

    def op(self, name, start, end, *arguments, ext=None):
        """Arguments are (shape, type), or the text of a value."""
        tensors = [each if isinstance(each, tuple) else ([], "Scalar" if each else "") for each in arguments]
        self.span("cpu_op", name, start, end, **{
            "External id": ext if ext is not None else 10_000 + len(self.events),
            "Input Dims": [shape for shape, _ in tensors],
            "Input type": [kind for _, kind in tensors],
            "Concrete Inputs": ["" if isinstance(each, tuple) else each for each in arguments],
        })  # fmt: skip

    def module(self, name, start, end):
        self.span("python_function", f"nn.Module: {name}", start, end)
        self.span("python_function", "model.py(3): forward", start, end)  # to be passed over

    def kernel(self, name, launched, start, dur, *, cat="kernel", launch=True, ext=None, device=0):
        self.launches += 1
        if launch:
            call = {"cuda": "cudaLaunchKernel", "hip": "hipExtModuleLaunchKernel"}[self.host]
            self.span("cuda_runtime", call, launched, launched + 0.5, correlation=self.launches)
            for phase in "sf":
                arrow = {"ph": phase, "id": self.launches, "cat": "ac2g", "name": "ac2g", "ts": launched}
                self.events.append(arrow | self.thread)
        args = {"device": device, "stream": 7, "correlation": self.launches} | ({"External id": ext} if ext else {})
        on_gpu = {"pid": device, "tid": 7, "ts": start, "dur": dur, "args": args}
        self.events.append({"ph": "X", "cat": cat, "name": name, **on_gpu})

    def content(self):
        sheets = [self.device] if self.device else []
        return {"schemaVersion": 1, "deviceProperties": sheets, "traceEvents": self.events, "traceName": "made.json"}

    def write(self, path):
        text = json.dumps(self.content()).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
        return path


def block(device=H100):
    """Two equal blocks of a linear layer and attention after a convolution, 100 us of the host and 90 us of the GPU."""
    made = TraceMaker(device)
    x, weight, bias = ([2, 16, 64], BF16), ([192, 64], BF16), ([192], BF16)
    image, filters = ([2, 3, 8, 8], BF16), ([64, 3, 2, 2], BF16)
    made.span("user_annotation", "ProfilerStep#6", 0, 100)
    made.module("Net_0", 1, 99)
    made.module("Conv2d_0", 2, 20)
    convolution = (image, filters, ([64], BF16), "[2, 2]", "[0, 0]", "[1, 1]")
    made.op("aten::conv2d", 3, 19, *convolution, "1")
    made.op("aten::convolution", 4, 18, *convolution, "False", "[0, 0]", "1")
    made.op("aten::_convolution", 5, 17, *convolution, "False", "[0, 0]", "1", "False", "False", "True", "True")
    made.op(
        "aten::cudnn_convolution", 6, 12, image, filters, "[0, 0]", "[2, 2]", "[1, 1]", "1", "False", "False", "True"
    )
    made.kernel("void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16>(int)", 7, 110, 2)
    made.kernel("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", 8, 112, 10)
    made.kernel("void cudnn::engines_precompiled::nhwcToNchwKernel<__nv_bfloat16>(int)", 9, 122, 3)
    made.op("aten::add_", 13, 16, ([2, 64, 4, 4], BF16), ([1, 64, 1, 1], BF16), "1")
    made.kernel("void at::native::elementwise_kernel<128, 4, CUDAFunctor_add<c10::BFloat16> >(int)", 14, 125, 5)
    for number, start in enumerate((20, 60)):
        made.module(f"Block_{number}", start + 1, start + 39)
        made.module(f"Linear_{number}", start + 2, start + 10)
        made.op("aten::linear", start + 3, start + 9, x, weight, bias)
        made.op("aten::addmm", start + 5, start + 8, bias, ([32, 64], BF16), ([64, 192], BF16), "1", "1")
        made.kernel("nvjet_hsh_128x128_64x4_1x2_h_bz_coopA_TNT", start + 6, 100 + start + 30, 12)
        q = ([2, 4, 16, 16], BF16)
        for at in (12, 24):
            flags = ("", "0.", "True", "", "False")
            made.op("aten::scaled_dot_product_attention", start + at, start + at + 8, q, q, q, *flags)
            inner = ("0.", "True", "False", "0.25")
            made.op("aten::_scaled_dot_product_flash_attention", start + at + 1, start + at + 7, q, q, q, *inner)
            name = "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>(Flash_fwd_params)"
            made.kernel(name, start + at + 2, 100 + start + 30 + at, 6.5)
    return made


_NO_KERNEL = words(
    "view _unsafe_view as_strided transpose t permute unbind select expand narrow slice reshape unsqueeze squeeze"
    " flatten unflatten mT empty empty_like empty_strided resize_ result_type"
)


def recorded(work):
    """What torch.profiler records of work on a CPU, with a kernel of 2 us for each operator that computes by itself."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_stack=True) as seen:
        work()
    made = TraceMaker()
    made.events = [event for event in exported(seen)["traceEvents"] if event.get("ph") == "X"]
    ops = [event for event in made.events if event.get("cat") == "cpu_op"]
    able = [op for op in ops if op["name"].removeprefix("aten::") not in _NO_KERNEL]
    for number, op in enumerate(sorted(able, key=lambda op: op["ts"])):
        inside = [other for other in able if op["ts"] <= other["ts"] < op["ts"] + op["dur"] and other is not op]
        if not any(other["dur"] < op["dur"] for other in inside):
            made.thread = {"pid": op["pid"], "tid": op["tid"]}
            made.kernel("some_kernel", op["ts"] + op["dur"] / 2, op["ts"] + 1e6 + 3 * number, 2)
    return made


def exported(seen):
    """The content of a profiler's trace."""
    with tempfile.TemporaryDirectory() as folder:
        seen.export_chrome_trace(f"{folder}/trace.json")
        return json.loads(Path(folder, "trace.json").read_text())
