"""Models that answer with scores: CLIP of classes for an image, HSTU (a generative recommender) of items for a user."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmchar.generation.inputs import Inputs
from mmchar.generation.own.loops import Networks

MOST_SECONDS = 10**6  # between the first and the last event of a history


class ZeroShotPipeline:
    """Encode images, and one text per class, and compare each image with each class.

    **Source**: CLIP, arXiv 2103.00020, sec. 3.1 and Fig. 3.
    """

    def __init__(self, networks: Networks, inputs: Inputs) -> None:
        self.clip, self.inputs = networks["clip"], inputs

    def __call__(self, *, batch: int, prompt_tokens: int, classes: int) -> Tensor:
        """Probability of each class for each image, ``(batch, classes)``."""
        vision, text = self.clip.config.vision_config, self.clip.config.text_config
        pixels = self.inputs.normal(batch, vision.num_channels, vision.image_size, vision.image_size)
        ids = self.inputs.tokens(classes, prompt_tokens, vocabulary=text.vocab_size)
        image = self.clip.get_image_features(pixel_values=pixels).pooler_output
        prompt = self.clip.get_text_features(input_ids=ids).pooler_output
        image, prompt = F.normalize(image, dim=-1), F.normalize(prompt, dim=-1)
        return (image @ prompt.t() * self.clip.logit_scale.exp()).softmax(dim=-1)


class RankingPipeline:
    """Encode the history of each user once, then score all candidates against it at once.

    **Source**: HSTU, arXiv 2402.17152, sec. 3.4 (M-FALCON, with all candidates in one micro-batch).
    """

    def __init__(self, networks: Networks, inputs: Inputs) -> None:
        self.model, self.inputs = networks["model"], inputs

    def __call__(self, *, batch: int, prompt_tokens: int, candidates: int) -> Tensor:
        """Scores ``(batch, candidates, tasks)``."""
        _, cache = self.model(*history(self.model, self.inputs, batch, prompt_tokens))
        return self.model.rank(self.inputs.tokens(batch, candidates, vocabulary=self.model.config.items), cache)


class RetrievalPipeline:
    """Encode the history of each user, then find the ``most`` nearest of all items.

    **Source**: HSTU, arXiv 2402.17152, sec. 4.1; facebookresearch/generative-recommenders (brute-force search).
    """

    def __init__(self, networks: Networks, inputs: Inputs, *, most: int) -> None:
        self.model, self.inputs, self.most = networks["model"], inputs, most

    def __call__(self, *, batch: int, prompt_tokens: int) -> Tensor:
        """Ids of the nearest items, ``(batch, most)``."""
        found, _ = self.model(*history(self.model, self.inputs, batch, prompt_tokens))
        return self.model.retrieve(found[:, -1], self.most)


def history(model: nn.Module, inputs: Inputs, batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Items ``(batch, tokens)`` and the seconds at which each was met, of the same shape."""
    items, seconds = (inputs.tokens(batch, tokens, vocabulary=most) for most in (model.config.items, MOST_SECONDS))
    return items, seconds
