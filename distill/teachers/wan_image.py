"""Wan 2.1 image to video, in diffusers' layout (WanImageToVideoPipeline). arXiv:2503.20314.

A clip starts from an image, which the network sees twice: as latents of a video that holds nothing else, beside those
that it denoises, and as CLIP's tokens, beside those of the text. All else is teachers/wan.py.
"""

from pathlib import Path

import torch
from diffusers import WanImageToVideoPipeline
from PIL.Image import Image
from torch import Tensor

from .. import image_prompt
from ..batch import Condition
from ..errors import UserError
from . import wan
from .parts import quiet
from .wan import Wan, WanVelocity

TEXT_TOKENS = 512  # the stock attention takes so many of the last tokens for text, the ones before for the image


class WanImageVelocity(WanVelocity):
    """A VelocityNet: the condition is `text` (B, 512, D), `image` (B, C', F, H, W) and `image_embeds` (B, L, D')."""

    def _inputs(self, x: Tensor, sigma: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        both = torch.cat([x, cond["image"].to(x.dtype)], dim=1)
        latents, timestep, text, _ = super()._inputs(both, sigma, cond)
        return latents, timestep, text, cond["image_embeds"].to(text.dtype)


class WanImage(Wan):
    """A WanImageToVideoPipeline with one transformer, conditioned on a first frame and text."""

    family, pipeline, task = "wan_i2v", "WanImageToVideoPipeline", "image to video"
    takes_images = True
    components = (*wan.COMPONENTS, "image_encoder", "image_processor")
    stock, velocity = WanImageToVideoPipeline, WanImageVelocity

    def __init__(self, path: str | Path, *, revision: str | None = None, max_sequence_length: int | None = None):
        super().__init__(path, revision=revision, max_sequence_length=max_sequence_length)
        if self.max_sequence_length != TEXT_TOKENS:
            raise UserError(
                f"teacher.max_sequence_length is {max_sequence_length}; {self.family} takes {TEXT_TOKENS} tokens of"
                " text, no other number: leave it out"
            )
        if self.config.get("image_dim") is None or self.config.get("pos_embed_seq_len") is not None:
            raise UserError(
                f"{self.path}: transformer/config.json has image_dim {self.config.get('image_dim')} and"
                f" pos_embed_seq_len {self.config.get('pos_embed_seq_len')}; expected a number and None, as of Wan"
                " 2.1's model that starts from one image"
            )

    def _tokenizer_limit(self) -> int:
        return TEXT_TOKENS

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return self.vae_config["z_dim"], *super().latent_shape(frames, height, width)[1:]

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """`text` alone of prompts without images, as negative ones are; all must be of one kind."""
        paths, texts = zip(*map(image_prompt.split, prompts), strict=True)
        assert len({path is None for path in paths}) == 1
        images = [image_prompt.load(path) for path in paths if path is not None]
        cond = super().encode(list(texts))
        if images:
            cond["image"] = torch.cat([self._first_frame(image) for image in images]).cpu()
            cond["image_embeds"] = torch.cat([self._text.encode_image(image) for image in images]).float().cpu()
        return cond

    def _first_frame(self, image: Image) -> Tensor:
        """The mask of what is given, and the latents of a video of the image and grey: (1, C', F, H, W)."""
        if self.video is None:
            raise ValueError(f"{self.family} encodes an image for videos of one size: teachers.load(spec, video)")
        video, pipeline = self.video, self._text
        frame = pipeline.video_processor.preprocess(image, height=video.height, width=video.width).to(self.device)
        _, condition = pipeline.prepare_latents(
            frame,
            1,
            self.vae_config["z_dim"],
            video.height,
            video.width,
            video.frames,
            dtype=torch.float32,
            device=self.device,
            latents=frame.new_empty(0),  # or it would draw noise from the global generator
        )
        return condition

    def _load_text_encoder(self) -> WanImageToVideoPipeline:
        """The image's encoders, too."""
        encoders = ("text_encoder", "image_encoder", "vae")
        folder = self.files.folder(*encoders, "image_processor")
        for component in encoders:
            self.files.weights(component)
        with quiet():
            pipeline = WanImageToVideoPipeline.from_pretrained(
                folder, transformer=None, scheduler=None, dtype=self._dtypes
            )
        return pipeline.to(self.device)

    def sample_saved(
        self,
        folder: Path,
        prompt: str,
        noise: Tensor,
        steps: int,
        pipeline: str | None = None,
        lora: Path | None = None,
    ) -> Tensor:
        path, text = image_prompt.split(prompt)
        return self._sample_saved(folder, noise, steps, pipeline, lora, image=image_prompt.load(path), prompt=text)
