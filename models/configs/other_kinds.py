"""Kinds of models that are recognised but cannot be evaluated: why, in a few words each."""

from __future__ import annotations

_EXPERTS = "a mixture of experts, whose choice of experts depends on the text and is not supported"
_TWO_STACKS = "an encoder-decoder; only encoders or decoders alone are supported"
_SEES = "a model of images and texts, and only text models are supported"
_HEARS = "a model of speech, and only text models are supported"
_STATES = (
    "a state-space or recurrent model; only models with attention in every layer are supported"
)

# Names are `model_type` of transformers and `general.architecture` of GGUF files.
_KINDS = {
    _EXPERTS: (
        "arctic aria_text bailing_moe dbrx deepseek deepseek2 deepseek_v2 deepseek_v3 dots1 "
        "ernie4_5_moe flex_olmo glm4_moe gpt-oss gpt_oss granitemoe granitemoeshared grok "
        "hunyuan_v1_moe jetmoe lfm2_moe llama4 llama4_text minimax minimax_m2 mixtral nllb-moe "
        "olmoe phimoe qwen2_moe qwen2moe qwen3_moe qwen3moe qwen3_next qwen3next "
        "switch_transformers"
    ),
    _TWO_STACKS: (
        "bart bert-generation bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led "
        "longt5 m2m_100 marian mbart mt5 mvp pegasus pegasus_x plbart prophetnet rag t5 t5encoder "
        "t5gemma umt5 xlm-prophetnet"
    ),
    _SEES: (
        "align altclip aria aya_vision blip blip-2 bridgetower chameleon chinese_clip clip cogvlm "
        "cohere2_vision colpali donut-swin emu3 florence2 fuyu gemma3 gemma3n gemma4 git glm4v "
        "idefics idefics2 idefics3 instructblip internvl janus kosmos-2 layoutlm layoutlmv2 "
        "layoutlmv3 llava llava_next llava_onevision minicpmv mistral3 mllama moondream paligemma "
        "phi3_v phi4_multimodal phi4mm pix2struct pixtral qwen2_5_vl qwen2_vl qwen2vl qwen3_vl "
        "siglip siglip2 smolvlm vilt vipllava vision-encoder-decoder vision-text-dual-encoder "
        "visual_bert vit vit_mae swin deit beit dinov2 dinov3_vit convnext resnet detr"
    ),
    _HEARS: (
        "bark csm granite_speech hubert kyutai_speech_to_text moonshine musicgen qwen2_audio "
        "qwen2_5_omni seamless_m4t seamless_m4t_v2 sew speech-encoder-decoder speech_to_text "
        "speecht5 ultravox unispeech voxtral wav2vec2 wav2vec2-bert wavlm whisper"
    ),
    _STATES: (
        "bamba falcon_h1 falcon-h1 falcon_mamba granite-hybrid granitemoehybrid jamba lfm2 mamba "
        "mamba2 nemotron_h plamo2 recurrent_gemma rwkv rwkv6 rwkv7 xlstm zamba zamba2"
    ),
}
_REASONS = {name: reason for reason, names in _KINDS.items() for name in names.split()}
# Some of the models have a text part that is a supported model of its own.
_TEXT_PARTS = {
    "gemma3": "its text part is supported if it is saved alone, as model_type 'gemma3_text'",
    "llama4": "LLaMA 1 to 3 are supported",
    "mixtral": "Mistral is supported",
    "granitemoe": "the dense Granite 3 models are supported",
    "gpt_oss": "GPT-2 and GPT-NeoX are supported",
    "qwen2_moe": "the dense Qwen2 and Qwen3 models are supported",
    "qwen3_moe": "the dense Qwen2 and Qwen3 models are supported",
}


def other_kind(name: object) -> str | None:
    """What a model of this type is, and why it is refused; None for an unknown type."""
    if not isinstance(name, str) or name not in _REASONS:
        return None
    part = _TEXT_PARTS.get(name)
    return f"{_REASONS[name]} ({part})" if part else _REASONS[name]
