"""What a pipeline wants besides its networks, made on the spot: a tokenizer, a prompt, an image, a processor.

A stand-in has the sizes of what it stands for and says nothing else: its words are no words, its images are grey.
"""

from collections.abc import Mapping
from typing import Any, get_args

import torch

WORD = "a"  # the word that prompts are made of; any other is a template's
MOST_TOKENS = 512  # of a tokenizer whose text encoder has no table of positions: T5's usual length
_SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
_MARKS = {
    "<|image_pad|>": "image_token_id",
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
    "<image>": "image_token_index",
}
_TOKEN = r"<\|?[^|<>\s]*\|?>|\w+|[^\w\s]|\n"  # marks of a chat, words, punctuation, ends of lines
# Pixels of an image that is neither made larger nor smaller: of Qwen2-VL (preprocessor_config.json, recalled).
_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}
_PLACE = "<|image_pad|>"  # what the templates of the Qwen family write where an image is
_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] if message['content'] is string else "
    "message['content'] | map(attribute='text') | select('defined') | join(' ') }} {% endfor %}"
)


def prompt(tokens: int | None) -> str:
    """A prompt of so many tokens, for a stand-in tokenizer."""
    return " ".join([WORD] * (tokens or 1))


def tokenizer(
    *, most: int = MOST_TOKENS, template: int | None = None, kind: Any = None, words: Mapping[str, int] | None = None
) -> Any:
    """A tokenizer that makes a token of every word, and pads or cuts a text to ``most`` of them.

    ``template`` is how many tokens the words have that a pipeline writes around a prompt, ``kind`` the class that it
    pretends to be an instance of, ``words`` further words with their ids, such as the place of an image.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {token: index for index, token in enumerate((*_SPECIAL.values(), WORD))}
    inner = Tokenizer(models.WordLevel({**known, **(words or {})}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), behavior="removed", invert=True)
    base = kind if isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerFast) else PreTrainedTokenizerFast

    class StandIn(base):  # type: ignore[misc, valid-type]
        """Makes a token of every word."""

        def __init__(self, **kwargs: Any) -> None:
            PreTrainedTokenizerFast.__init__(self, **kwargs)

        def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(_prepared(text, template, ends), *args, **kwargs)

    ends = "<bos> <eos>" if "CLIP" in base.__name__ else "<eos>"
    made = StandIn(tokenizer_object=inner, model_max_length=most, **_SPECIAL)
    made.chat_template = _TEMPLATE
    return made


def _prepared(text: Any, template: int | None, ends: str) -> Any:
    """A text with as many words of a template as a real tokenizer makes of them; an empty one begins and ends."""
    if isinstance(text, list | tuple):
        return [_prepared(part, template, ends) for part in text]
    words = str(text).split()
    own = words.count(WORD)
    if template is not None and len(words) > own:
        return " ".join(["<unk>"] * template + [WORD] * own)
    return text if not isinstance(text, str) or words else ends


def image(height: int, width: int) -> Any:
    """A grey picture."""
    from PIL import Image

    return Image.new("RGB", (width, height), "grey")


class Processor:
    """A feature extractor: any images to pixels ``(images, channels, side, side)``."""

    def __init__(self, side: int, channels: int = 3) -> None:
        self.size = {"height": side, "width": side, "shortest_edge": side}
        self.crop_size = dict(self.size)
        self.image_mean = self.image_std = [0.5] * channels
        self._shape = (channels, side, side)

    def __call__(self, images: Any = None, *args: Any, **kwargs: Any) -> Any:
        """``pixel_values`` of as many images as are given."""
        from transformers import BatchFeature

        many = len(images) if isinstance(images, list | tuple | torch.Tensor) else 1
        return BatchFeature({"pixel_values": torch.zeros(many, *self._shape)})

    preprocess = __call__


def marks_of(config: Any) -> dict[str, int]:
    """Ids of the marks that stand for images, as a network that sees knows them."""
    found = {mark: getattr(config, name, None) for mark, name in _MARKS.items()}
    return {mark: id for mark, id in found.items() if isinstance(id, int)}


def text_length(config: Any) -> int:
    """Tokens that a text encoder has positions for; the usual length where its positions are not a table."""
    config = getattr(config, "text_config", config)
    table = getattr(config, "max_position_embeddings", None)
    return int(table) if isinstance(table, int) and table <= MOST_TOKENS else MOST_TOKENS


def missing(parameters: Mapping[str, Any], networks: Mapping[str, Any], tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Stand-ins for the tokenizers and processors that a pipeline's ``__init__`` asks for, by its parameter names."""
    found: dict[str, Any] = {}
    for name, part in parameters.items():
        if "tokenizer" in name:
            encoder = networks.get(name.replace("tokenizer", "text_encoder")) or networks.get("text_encoder")
            others = [part for role, part in networks.items() if role.startswith("text_encoder")]
            encoders = [encoder] if encoder is not None or not others else others
            most = min(text_length(getattr(part, "config", None)) for part in encoders)
            said = tokens.get(name) or tokens.get("*", {})
            found[name] = tokenizer(
                most=min(most, said.get("most", most)),
                template=said.get("template"),
                kind=next(iter(get_args(part.annotation)), part.annotation),  # the first of several
                words=marks_of(getattr(encoder, "config", None)),
            )
        elif name in ("feature_extractor", "image_processor"):
            config = getattr(networks.get("image_encoder") or networks.get("text_encoder"), "config", None)
            config = getattr(config, "vision_config", config)
            found[name] = Processor(int(getattr(config, "image_size", None) or 224))
        elif name in ("processor", "text_processor") and "VLProcessor" in str(part.annotation):
            found[name] = TextAndImages(getattr(networks.get("text_encoder"), "config", None))
    return found


class TextAndImages:
    """A processor of the Qwen-VL family: an image is a token for every square of merged patches.

    The library's image processor cuts the images; its joint processor needs torchvision, even where there is no video.
    The configuration is that of the network that reads what is made here.
    """

    def __init__(self, config: Any) -> None:
        import transformers

        vision = getattr(config, "vision_config", None)
        self.tokenizer = tokenizer(words=marks_of(config))
        self.merged = getattr(vision, "spatial_merge_size", 2)
        kind = getattr(transformers, "Qwen2VLImageProcessorPil", None) or transformers.Qwen2VLImageProcessor
        self.image_processor = kind(
            patch_size=getattr(vision, "patch_size", 14),
            temporal_patch_size=getattr(vision, "temporal_patch_size", 2),
            merge_size=self.merged,
            size=_PIXELS,
        )
        self.image_token = _PLACE

    def apply_chat_template(
        self, messages: Any, *, tokenize: bool = False, return_dict: bool = True, **options: Any
    ) -> Any:
        """Messages as a text, or as what a call makes of it (``input_ids`` alone where no dictionary is asked for)."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        if not tokenize:
            return text
        found = self(text, return_tensors=options.get("return_tensors"))
        return found if return_dict else found["input_ids"]

    def __call__(self, text: Any = None, images: Any = None, **options: Any) -> Any:
        """``input_ids``, ``attention_mask`` ``(batch, tokens)``; of images ``pixel_values`` and ``image_grid_thw``."""
        from transformers import BatchFeature

        texts = [text] if isinstance(text, str) else list(text)
        found: dict[str, Any] = {}
        if images is not None:
            found = dict(self.image_processor(images=images, return_tensors="pt"))
            many = iter(found["image_grid_thw"].prod(dim=-1).tolist())
            texts = [self._with_places(part, many) for part in texts]
        found |= dict(self.tokenizer(texts, **{"return_tensors": "pt", **options}))
        place = self.tokenizer.convert_tokens_to_ids(_PLACE)
        if isinstance(found["input_ids"], torch.Tensor):
            found["mm_token_type_ids"] = (found["input_ids"] == place).to(torch.int64)
        return BatchFeature(found)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """Token ids as texts."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def _with_places(self, text: str, patches: Any) -> str:
        first, *rest = text.split(_PLACE)
        return first + "".join(_PLACE * (next(patches) // self.merged**2) + part for part in rest)
