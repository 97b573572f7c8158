"""What a tiny pipeline needs besides networks: a tokenizer, processors of images and sound, and made-up inputs."""

from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BatchFeature, PreTrainedTokenizerFast, Qwen2VLImageProcessorPil

# The first ids are the same in every tokenizer, and below the smallest vocabulary of a text encoder.
IDS = {"<unk>": 0, "<pad>": 1, "<eos>": 2, "<bos>": 3}
# Marks that the chat templates of the Qwen, Mistral and Gemma families write; each is one token.
MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
# Turns between the marks above; an image is one placeholder, which a processor repeats once per patch.
CHAT = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n"
    "{% if turn['content'] is string %}{{ turn['content'] }}"
    "{% else %}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(
    max_length: int, special: tuple[str, ...] = (), ends: bool = True, kind: str = ""
) -> PreTrainedTokenizerFast:
    """A tokenizer in which every word and every punctuation mark is one token.

    Parameters
    ----------
    max_length : int
        Tokens that a padded or truncated prompt has.
    special : tuple of str
        Further marks that are one token each; their ids follow those of `IDS` and `MARKS`.
    ends : bool
        Whether a prompt ends with the end token, as those of T5 and CLIP do.
    kind : str
        A tokenizer class of transformers, where a pipeline asks whether it is one.
    """
    words = {word: id for id, word in enumerate((*IDS, *MARKS, *special))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        inner.post_processor = processors.TemplateProcessing(
            single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", IDS["<eos>"])]
        )
    outer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        bos_token="<bos>",
        model_max_length=max_length,
        additional_special_tokens=[*MARKS, *special],
    )
    outer.chat_template = CHAT
    if kind:
        outer.__class__ = getattr(transformers, kind)
    return outer


class PlainText:
    """Stands in for the package ftfy, without which many pipelines cannot clean a prompt; ours need no mending."""

    @staticmethod
    def fix_text(text: str) -> str:
        """The text as it is."""
        return text


class NothingToObject:
    """Stands in for the checker of NVIDIA's Cosmos, models of billions of parameters that judge prompts and frames."""

    def to(self, *_args: Any) -> "NothingToObject":
        """Itself: there is nothing to move."""
        return self

    def check_text_safety(self, _prompt: str) -> bool:
        """Every prompt passes."""
        return True

    def check_video_safety(self, frames: Any) -> Any:
        """The frames as they are."""
        return frames


class PositionTokenizer:
    """A tokenizer that says each token's position too, as that of ChatGLM; padding is on the left, at position 0."""

    def __init__(self, max_length: int) -> None:
        self.inner = make_tokenizer(max_length)
        self.inner.padding_side = "left"

    def __call__(self, text: str | list[str], **options: Any) -> BatchFeature:
        """Ids, mask and positions, each ``(batch, tokens)``."""
        encoded = BatchFeature(dict(self.inner(text, **options)))
        encoded["position_ids"] = (encoded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return encoded


class ImageTextProcessor:
    """Turns text with images into what the Qwen-VL models take: the library's image processor and a tokenizer.

    The library's own joint processor needs torchvision for its videos, even where there are none.

    Parameters
    ----------
    tokenizer : dict
        Arguments of `make_tokenizer`.
    patch_size, pixels : int
        Side of a patch; most pixels of an image, which is made smaller where it has more.
    """

    merge_size = 2

    def __init__(self, tokenizer: dict[str, Any], patch_size: int = 4, pixels: int = 1024) -> None:
        self.tokenizer = make_tokenizer(**tokenizer)
        self.chat_template = self.tokenizer.chat_template
        self.image_token = "<|image_pad|>"
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        size = {"shortest_edge": 64, "longest_edge": pixels}
        self.image_processor = Qwen2VLImageProcessorPil(
            patch_size=patch_size, merge_size=self.merge_size, temporal_patch_size=2, size=size
        )

    def __call__(
        self, images: Any = None, text: Any = None, return_tensors: str = "pt", **options: Any
    ) -> BatchFeature:
        """Ids and mask ``(batch, tokens)``; with images also their patches and their grids (frames, rows, columns)."""
        texts = [text] if isinstance(text, str) else list(text)
        pixels = {} if images is None else dict(self.image_processor(images=images, return_tensors=return_tensors))
        places = [int(grid.prod()) // self.merge_size**2 for grid in pixels.get("image_grid_thw", [])]
        options.pop("videos", None)
        encoded = self.tokenizer(self._with_places(texts, places), return_tensors=return_tensors, **options)
        kinds = (encoded["input_ids"] == self.image_token_id).long()
        return BatchFeature({**encoded, "mm_token_type_ids": kinds, **pixels})

    def _with_places(self, texts: list[str], places: list[int]) -> list[str]:
        """The texts with each image's mark repeated, once for every token of the image."""
        waiting = iter(places)
        filled = []
        for text in texts:
            start, *others = text.split(self.image_token)
            filled.append(start + "".join(self.image_token * next(waiting, 1) + other for other in others))
        return filled

    def apply_chat_template(self, messages: Any, tokenize: bool = False, **options: Any) -> Any:
        """The text of the messages, or what `__call__` returns for it and for the images inside."""
        prompt = options.pop("add_generation_prompt", False)
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        if not tokenize:
            return text
        turns = [turn for message in messages for turn in (message if isinstance(message, list) else [message])]
        parts = [part for turn in turns if not isinstance(turn["content"], str) for part in turn["content"]]
        images = [part["image"] for part in parts if part["type"] == "image"]
        wanted = {
            key: options[key] for key in ("padding", "padding_side", "truncation", "max_length") if key in options
        }
        encoded = self(images=images or None, text=text, **wanted)
        return encoded if options.get("return_dict", True) else encoded["input_ids"]

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        """The texts of ids."""
        return self.tokenizer.batch_decode(*args, **options)

    def decode(self, *args: Any, **options: Any) -> str:
        """The text of ids."""
        return self.tokenizer.decode(*args, **options)


def make_input(need: list[int] | dict[str, Any]) -> Any:
    """A made-up input of a call; the same every time.

    Parameters
    ----------
    need : list or dict
        ``[height, width]`` is an image as a tensor ``(1, 3, height, width)`` in [0, 1]. A dict names the ``kind``
        (see `KINDS`) and its ``size``; ``count`` makes it a list of that many.
    """
    if isinstance(need, list):
        need = {"kind": "image", "size": need}
    make = KINDS[need["kind"]]
    options = {name: value for name, value in need.items() if name not in ("kind", "size", "count")}
    if "count" in need:
        return [make(need["size"], **options) for _ in range(need["count"])]
    return make(need["size"], **options)


def _image(size: list[int]) -> torch.Tensor:
    return _tensor([1, 3, *size])


def _tensor(size: list[int], dtype: str = "float32") -> torch.Tensor:
    """Random numbers in [0, 1) of a floating type, or zeros and ones of a whole-number type."""
    numbers = torch.rand(size, generator=torch.Generator().manual_seed(0))
    wanted = getattr(torch, dtype)
    return numbers.to(wanted) if wanted.is_floating_point else (numbers > 0.5).to(wanted)


def _mask(size: list[int]) -> torch.Tensor:
    """Zeros, and ones in the right half: ``(1, 1, height, width)``."""
    mask = torch.zeros(1, 1, *size)
    mask[..., size[1] // 2 :] = 1
    return mask


def _mask_array(size: list[int]) -> Any:
    return _mask(size)[0, 0].numpy()


def _pil(size: list[int]) -> Image.Image:
    height, width = size
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def _pil_rgba(size: list[int]) -> Image.Image:
    return _pil(size).convert("RGBA")


def _pil_mask(size: list[int]) -> Image.Image:
    height, width = size
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


def _frames(size: list[int]) -> list[Image.Image]:
    """A video as a list of images, from (frames, height, width)."""
    return [_pil(size[1:]) for _ in range(size[0])]


def _mask_frames(size: list[int]) -> list[Image.Image]:
    return [_pil_mask(size[1:]) for _ in range(size[0])]


def _examples(size: list[int]) -> list[list[Image.Image | None]]:
    """Two rows of an image and its answer; the last answer is asked for."""
    return [[_pil(size), _pil(size)], [_pil(size), None]]


def _array(size: list[int]) -> Any:
    return _tensor(size).numpy()


KINDS = {
    "image": _image,
    "tensor": _tensor,
    "array": _array,
    "mask": _mask,
    "mask_array": _mask_array,
    "pil": _pil,
    "pil_rgba": _pil_rgba,
    "pil_mask": _pil_mask,
    "frames": _frames,
    "mask_frames": _mask_frames,
    "examples": _examples,
}
