"""Stand-ins for the processors of models that see: texts with images in them to token ids, patches and their grid."""

from typing import Any

import torch

from mmchar.generation import standins

# Pixels of an image that is neither made larger nor smaller: of Qwen2-VL (preprocessor_config.json, recalled).
_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}
_PLACE = "<|image_pad|>"  # what the templates of the Qwen family write where an image is


class TextAndImages:
    """A processor of the Qwen-VL family: an image is a token for every square of merged patches.

    The library's image processor cuts the images; its joint processor needs torchvision, even where there is no video.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the network that reads what is made here.
    """

    def __init__(self, config: Any) -> None:
        import transformers

        vision = getattr(config, "vision_config", None)
        self.tokenizer = standins.tokenizer(words=standins.marks_of(config))
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
