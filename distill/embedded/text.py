"""The teacher's words: a tokenizer of whole words and a small UMT5 encoder, trained with the transformer."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from .world import WORDS

TOKENS = 16  # the longest caption and its </s>
DIM = 96


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", "<unk>", *WORDS]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TOKENS
    )


def encoder(vocabulary: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(vocab_size=vocabulary, d_model=DIM, d_kv=24, d_ff=192, num_layers=2, num_heads=4, dropout_rate=0.0)
    )


def tokenize(words: PreTrainedTokenizerFast, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, TOKENS)."""
    tokens = words(prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask


def embed(network: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, TOKENS, DIM), zero beyond the mask, as WanPipeline pads."""
    return network(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
