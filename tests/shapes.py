"""The shapes of the Phi-4 family's checkpoints, real and tiny: geometry, vocabulary line, special tokens, template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# --- chat templates --------------------------------------------------------------------------------------------------

PHI4_RELEASE_TEMPLATE = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
    "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + "
    "message['content'] + '<|im_end|><|im_start|>assistant<|im_sep|>'}}{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
)
_PHI4_TURNS = (
    "{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>' + message['content'] + "
    "'<|im_end|>'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
PHI4_TEMPLATE = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
    "message['content'] + '<|im_end|>'}}" + _PHI4_TURNS
)
REASONING_SYSTEM = (
    "You are Phi, a language model trained by Microsoft to help users. Your role as an assistant involves "
    "thoroughly exploring questions through a systematic thinking process before providing the final precise and "
    "accurate solutions. This requires engaging in a comprehensive cycle of analysis, summarizing, exploration, "
    "reassessment, reflection, backtracing, and iteration to develop well-considered thinking process. Please "
    "structure your response into two main sections: Thought and Solution using the specified format: <think> "
    "{Thought section} </think> {Solution section}. In the Thought section, detail your reasoning process in steps. "
    "Each step should include detailed considerations such as analysing questions, summarizing relevant findings, "
    "brainstorming new ideas, verifying the accuracy of the current steps, refining any errors, and revisiting "
    "previous steps. In the Solution section, based on various attempts, explorations, and reflections from the "
    "Thought section, systematically present the final solution that you deem correct. The Solution section should "
    "be logical, accurate, and concise and detail necessary steps needed to reach the conclusion. Now, try to solve "
    "the following question through the above guidelines:"
)
# The reasoning models print their own system text first and drop the caller's.
REASONING_TEMPLATE = (
    "{{ '<|im_start|>system<|im_sep|>" + REASONING_SYSTEM + "<|im_end|>' }}{% for message in messages %}"
    "{% if (message['role'] == 'system') %}" + _PHI4_TURNS
)
_MINI_END = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
MINI_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not "
    "none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + "
    "'<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
) + _MINI_END
MINI_REASONING_TEMPLATE = (
    "{{ '<|system|>Your name is Phi, an AI math expert developed by Microsoft.' }}{% for message in messages %}"
    "{% if message['role'] == 'system' %} {{ message['content'] }}{% if 'tools' in message and message['tools'] is not "
    "none %}{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}{% endif %}{% endif %}{% endfor %}{{ '<|end|>' }}"
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ '<|' + message['role'] + '|>' + "
    "message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
) + _MINI_END


# --- shapes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One of the two vocabularies of the family: its split pattern and its added tokens, counted from the end."""

    pattern: str
    span: int  # ids from the first that no rank names to the end of the padded vocabulary
    tokens: tuple[tuple[int, str, bool], ...]  # (offset from the start of the span, text, special)
    merges_as_pairs: bool  # tokenizer.json spells a merge ["a", "b"] instead of "a b"
    lstrip: bool  # of every added token
    rstrip: frozenset[str] | None  # texts that swallow the spaces after them; None: all do


_CL100K_NAMED = {1: "endoftext", 2: "fim_prefix", 3: "fim_middle", 4: "fim_suffix", 8: "im_start", 9: "im_end"} | {
    10: "im_sep",
    20: "endofprompt",
}


def _cl100k_tokens() -> tuple[tuple[int, str, bool], ...]:
    """The 96 added tokens of the 14B line: eight with a meaning, the others are dummies numbered in id order."""
    dummies = iter(range(96))
    return tuple((i, f"<|{_CL100K_NAMED.get(i) or f'dummy_{next(dummies)}'}|>", True) for i in range(96))


_O200K_ROLES = ("endofprompt", "assistant", "end", "user", "system")
_O200K_TOOLS = ("tool", "/tool", "tool_call", "/tool_call", "tool_response")
_O200K_TOKENS = ((1, "<|endoftext|>", True),) + tuple(
    (i, f"<|{name}|>", name not in _O200K_TOOLS)
    for i, name in enumerate((*_O200K_ROLES, *_O200K_TOOLS, "tag"), start=20)
)
_O200K_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
)

CL100K = Line(
    pattern=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    span=96,
    tokens=_cl100k_tokens(),
    merges_as_pairs=False,
    lstrip=True,
    rstrip=None,
)
O200K = Line(
    pattern=_O200K_WORD % ("*", "+")
    + _O200K_WORD % ("+", "*")
    + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    span=66,  # 199998 is no token at all, 200029 and up are padding
    tokens=_O200K_TOKENS,
    merges_as_pairs=True,
    lstrip=False,
    rstrip=frozenset(text for offset, text, _ in _O200K_TOKENS if offset > 20),
)


@dataclass(frozen=True)
class Shape:
    """What a checkpoint is. Geometry counts elements, vocabulary and positions count tokens."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    max_position: int
    original_max_position: int
    rope_theta: float = 250000.0
    partial_rotary: float = 1.0
    long_factor: tuple[float, ...] = ()
    short_factor: tuple[float, ...] = ()
    sliding_window: int | None = None
    tied: bool = False
    dtype: str = "bfloat16"  # or float16, float32
    line: Line = CL100K
    bos_token: str = "<|endoftext|>"
    eos_token: str = "<|im_end|>"
    pad_token: str = "<|dummy_85|>"
    unk_token: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)  # generation_config.json beside the ids
    generation_eos: tuple[str, ...] = ("<|im_end|>",)
    template: str = PHI4_TEMPLATE
    template_in_file: bool = False  # chat_template.jinja instead of a key in tokenizer_config.json
    post_processor: bool = True  # a ByteLevel one in tokenizer.json, which makes converters write add_bos_token
    rope_spelling: str = "rope_scaling"  # transformers 4; "rope_parameters" is transformers 5
    architecture: str = "Phi3ForCausalLM"
    model_type: str = "phi3"
    extra: Mapping[str, Any] = field(default_factory=dict)  # further keys of config.json

    @property
    def head_dim(self) -> int:
        """Elements of one attention head."""
        return self.hidden // self.heads

    @property
    def rotary_dims(self) -> int:
        """Elements of a head that rotate; the others pass through."""
        return int(self.partial_rotary * self.hidden) // self.heads

    @property
    def first_added_id(self) -> int:
        """Where the line's span of added tokens begins."""
        return self.vocab - self.line.span

    def token_id(self, text: str) -> int:
        """The id of an added token."""
        return self.first_added_id + next(offset for offset, name, _ in self.line.tokens if name == text)

    @property
    def bos_id(self) -> int:
        return self.token_id(self.bos_token)

    @property
    def eos_id(self) -> int:
        return self.token_id(self.eos_token)

    @property
    def pad_id(self) -> int:
        return self.token_id(self.pad_token)


# fmt: off
_LONG_FACTOR = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898,
    2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424, 6.693110555,
    7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283,
    20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7,
    32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)
# fmt: on
_SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95}

PHI4_14B_SHAPE = Shape("phi-4", 5120, 17920, 40, 40, 10, 100352, 16384, 16384)
PHI4_TINY = replace(PHI4_14B_SHAPE, hidden=256, intermediate=1024, layers=4, heads=8, kv_heads=2, vocab=864)
# The first upload: it never stops, and its template always opens the assistant's turn.
_RELEASE: dict[str, Any] = {
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "generation_eos": ("<|endoftext|>", "<|im_end|>"),
    "template": PHI4_RELEASE_TEMPLATE,
    "post_processor": False,
}
PHI4_RELEASE_14B_SHAPE = replace(PHI4_14B_SHAPE, **_RELEASE)
PHI4_RELEASE_TINY = replace(PHI4_TINY, **_RELEASE)
_REASONING: dict[str, Any] = {
    "name": "Phi-4-reasoning",
    "max_position": 32768,
    "original_max_position": 32768,
    "rope_theta": 500000.0,
    "template": REASONING_TEMPLATE,
    "generation": _SAMPLING,
}
REASONING_14B_SHAPE = replace(PHI4_14B_SHAPE, **_REASONING)
REASONING_TINY = replace(PHI4_TINY, **_REASONING)
# Rows of 320 and 672: whole blocks of 32, no whole blocks of 256.
ODD = replace(PHI4_TINY, name="phi-4-odd", hidden=320, intermediate=672, layers=2, heads=10)
# Rows of 304 and 336: not even whole blocks of 32.
ODDER = replace(PHI4_TINY, name="phi-4-odder", hidden=304, intermediate=336, layers=2, heads=19, kv_heads=1)
# 513,046,528 parameters, 1 GB as bfloat16: enough for a benchmark, small enough to write in seconds.
HALF_BILLION = replace(
    PHI4_TINY, name="phi-4-half-billion", hidden=2048, intermediate=7168, layers=7, heads=16, kv_heads=4, vocab=32064
)
MINI_SHAPE = Shape(
    "Phi-4-mini-instruct",
    hidden=3072,
    intermediate=8192,
    layers=32,
    heads=24,
    kv_heads=8,
    vocab=200064,
    max_position=131072,
    original_max_position=4096,
    rope_theta=10000.0,
    partial_rotary=0.75,
    long_factor=_LONG_FACTOR,
    short_factor=(1.0,) * 48,
    sliding_window=262144,
    tied=True,
    line=O200K,
    eos_token="<|endoftext|>",
    pad_token="<|endoftext|>",
    unk_token="<|endoftext|>",
    generation_eos=("<|end|>", "<|endoftext|>"),
    template=MINI_TEMPLATE,
    post_processor=False,
    extra={"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False},
)
MINI_TINY = replace(
    MINI_SHAPE,
    hidden=256,
    intermediate=768,
    layers=4,
    heads=8,
    kv_heads=4,
    vocab=864,
    max_position=16384,
    original_max_position=512,
    long_factor=_LONG_FACTOR[::4],
    short_factor=tuple(1.0 + 0.05 * i for i in range(12)),  # the real ones are all 1.0, which would hide a mistake
)
_MINI_REASONING: dict[str, Any] = {
    "name": "Phi-4-mini-reasoning",
    "template": MINI_REASONING_TEMPLATE,
    "template_in_file": True,
    "generation": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
}
MINI_REASONING_SHAPE = replace(MINI_SHAPE, **_MINI_REASONING)
MINI_REASONING_TINY = replace(MINI_TINY, **_MINI_REASONING)
# What a folder saved again by transformers 5 looks like.
PHI4_TINY_V5 = replace(PHI4_TINY, rope_spelling="rope_parameters")
MINI_TINY_V5 = replace(MINI_TINY, rope_spelling="rope_parameters")

# Models that look like relatives and cannot become a phi3 file: `write_checkpoint` writes their config files only.
FLASH = replace(
    MINI_SHAPE,
    name="Phi-4-mini-flash-reasoning",
    architecture="Phi4FlashForCausalLM",
    model_type="phi4flash",
    hidden=2560,
    intermediate=10240,
    heads=40,
    kv_heads=20,
    max_position=262144,
    long_factor=(),
    short_factor=(),
    sliding_window=512,
    extra={"mb_per_layer": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 160},
)
MULTIMODAL = replace(
    MINI_SHAPE,
    name="Phi-4-multimodal-instruct",
    architecture="Phi4MMForCausalLM",
    model_type="phi4mm",
    extra={"vision_lora": {"r": 256, "lora_alpha": 512}, "speech_lora": {"r": 320, "lora_alpha": 640}},
)
VISION = replace(
    REASONING_14B_SHAPE,
    name="Phi-4-reasoning-vision-15B",
    architecture="Phi4ForCausalLMV",
    model_type="phi4-siglip",
    extra={"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2},
)
LLAMAFIED = replace(PHI4_14B_SHAPE, architecture="LlamaForCausalLM", model_type="llama")
LLAMA = replace(
    LLAMAFIED, name="Llama-3.1-8B", hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, vocab=128256
)
