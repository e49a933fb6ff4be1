"""A model in MLX: load a folder, read a prompt, say tokens. Import in a child process only.

    MlxModel   the weights, by mlx-lm's model file or our own (`phi4flash`), and the vocabulary
    Timeline   the caches and the ids of the tokens in them; reads only what it has not read yet

Phi-4-mini has two sets of rope factors: a timeline begins with the short ones and, when the conversation passes what
they reach, changes to the long ones and reads the tokens again; a shorter conversation later goes back.

Metal's driver has ended whole machines whose caches grew and were given back while they were wired (mlx-lm 883 and
1666, mlx 3186). So the cache is made whole before the first token, one conversation uses it at a time, and no more is
wired than what stays: weights and cache.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import load_model

from phi4local.backends import phi4flash
from phi4local.backends.load_settings import LoadSettings, wanted_context, whole_context
from phi4local.backends.mlx_cache import Caches
from phi4local.backends.mlx_folder import MlxFolder
from phi4local.backends.mlx_rope import mend_rope
from phi4local.backends.worker import Cancelled, reusable, size_for
from phi4local.engine import GenerationOptions
from phi4local.errors import BackendError, FormatError, InsufficientResources
from quant.mlx import STEP_TOKENS

_STATE_FORMAT = 1


def context_sizes(settings: LoadSettings, folder: MlxFolder) -> tuple[int, ...]:
    """The sizes that a context may have, smallest first: two when rope factors change in between (UsageError)."""
    wanted = wanted_context(settings, folder.trained_tokens)
    whole = whole_context(wanted)
    short = folder.original_context if folder.config and folder.config.long_rope else whole
    return (short, whole) if short < whole else (whole,)


class MlxModel:
    """Loaded weights (FormatError, BackendError, InsufficientResources; UsageError for a wrong context)."""

    def __init__(self, settings: LoadSettings, folder: MlxFolder) -> None:
        self.settings = settings
        self.folder = folder
        self.context_sizes = context_sizes(settings, folder)
        self.module = _load(folder)
        self.rope = mend_rope(self.module, folder.config) if folder.config else None
        self.weights_bytes = mx.get_active_memory()

    def state_key(self, identity: dict[str, Any]) -> dict[str, Any]:
        """All that the values in the cache depend on."""
        return {
            "format": [_STATE_FORMAT],
            "engine": {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm")},
            "system": [platform.machine(), str(mx.default_device()), platform.release()],
            "model": identity,
            "context_sizes": list(self.context_sizes),
            "kv_type": self.settings.kv_type,
        }


def _load(folder: MlxFolder) -> Any:
    """mlx-lm's loading; a tensor that is missing, or of another shape than config.json says, ends it."""
    if not mx.metal.is_available():
        mx.disable_compile()  # on a processor it calls a C++ compiler, which costs seconds, where there is one
    try:
        module, _ = load_model(
            folder.path,
            strict=True,
            model_config=folder.mended_values,
            **({"get_model_classes": _flash_classes} if folder.config is None else {}),
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FormatError(
            f"MLX cannot load `{folder.path.name}`: {' '.join(str(error).split())[:300]}",
            hint="`phi4local verify` finds a damaged build",
        ) from None
    except RuntimeError as error:
        raise _failure("MLX cannot load the model", error) from None
    return module


def _flash_classes(config: dict[str, Any]) -> tuple[Any, Any]:  # noqa: ARG001  mlx-lm passes it by name
    return phi4flash.Model, phi4flash.ModelArgs


def _failure(what: str, error: RuntimeError) -> BackendError | InsufficientResources:
    reason = f"{what}: {' '.join(str(error).split())[:300]}"
    if "allocat" in reason or "emory" in reason:
        return InsufficientResources(reason, hint="Choose a smaller build or a smaller `--context`")
    return BackendError(reason, hint="`phi4local verify` finds a damaged build; `--context` takes less memory")


class Timeline:
    """The caches and the ids of the tokens in them (`worker.Timeline`). `cancelled` is asked while a prompt is read."""

    def __init__(self, model: MlxModel, cancelled: Callable[[], bool]) -> None:
        self._model = model
        self._module = model.module
        self._cancelled = cancelled
        self.tokens: list[int] = []
        self.size = 0
        self._logits: Any = None  # after the last token, [1, vocabulary]
        self.caches = Caches(model.module, model.folder.config, model.settings.kv_type, model.context_sizes[-1])
        self._open(model.context_sizes[0])

    def __len__(self) -> int:
        return len(self.tokens)

    def rewind(self, ids: Sequence[int]) -> int:
        """Keep the common beginning with `ids`, in a context that has room for them all; its length (UsageError)."""
        self._open(size_for(ids, self._model.context_sizes))
        return self._keep(reusable(self.tokens, ids))

    def clear(self) -> None:
        """Forget everything."""
        self.caches.clear()
        self.tokens, self._logits = [], None

    def read(self, ids: Sequence[int]) -> None:
        """Add a part of a prompt, in steps (BackendError, InsufficientResources, Cancelled).

        The last token is a step of its own: only its logits are wanted, and MLX would compute those of a whole step.
        """
        before = len(ids) - 1
        for start in range(0, before, STEP_TOKENS):
            self._read_step(ids[start : min(start + STEP_TOKENS, before)])
        self._logits = self._read_step(ids[before:])
        if mx.isnan(self._logits).any().item():
            self.clear()
            raise FormatError(
                f"`{self._model.folder.path.name}` computes no numbers", hint="`phi4local verify` finds a damaged build"
            )

    def _read_step(self, ids: Sequence[int]) -> Any:
        """The logits after the last of these tokens, which are computed only where somebody looks at them."""
        if self._cancelled():
            raise Cancelled
        try:
            logits = self._module(mx.array([ids]), cache=self.caches.layers)[:, -1, :]
            mx.eval(self.caches.arrays)
        except RuntimeError as error:
            raise self._broken(error) from None
        self.tokens.extend(ids)
        mx.clear_cache()
        return logits

    def say(self, options: GenerationOptions) -> Generator[int]:
        """Token after token, until the context is full. The next one is computed while its reader looks at this one.

        (BackendError, InsufficientResources)
        """
        try:
            yield from self._say(_sampler(options, self._logits.shape[-1]))
        except RuntimeError as error:
            raise self._broken(error) from None

    def _say(self, sample: Callable[[Any], Any]) -> Generator[int]:
        token = sample(self._logits)
        mx.async_eval(token)  # type: ignore[no-untyped-call]
        while True:
            if len(self.tokens) == self.size and not self._grow(token):
                yield token.item()
                return
            following = self._after(token, sample)
            self.tokens.append(token.item())
            yield self.tokens[-1]
            token = following

    def _after(self, token: Any, sample: Callable[[Any], Any]) -> Any:
        """The token after this one; it may still be under way."""
        self._logits = self._module(token[None], cache=self.caches.layers)[:, -1, :]
        following = sample(self._logits)
        mx.async_eval(following, self._logits)  # type: ignore[no-untyped-call]
        return following

    @property
    def state_bytes(self) -> int:
        """About what `save` writes; 0 where nothing was read."""
        return self.caches.used_bytes + 4 * len(self.tokens) if self.tokens else 0

    def save(self, path: Path) -> int:
        """Write cache and tokens over the file; how many bytes, 0 where that failed."""
        return self.caches.save(path, self.tokens)

    def restore(self, path: Path, size: int) -> int:
        """Take over what was saved in a context of this size; how many tokens, 0 and an empty timeline if it fails."""
        self._open(size)
        self.clear()
        try:
            self.tokens = self.caches.load(path)
        except (RuntimeError, ValueError, KeyError, IndexError, OSError):
            self.clear()
            return 0
        return len(self.tokens)

    def _broken(self, error: RuntimeError) -> BackendError | InsufficientResources:
        """After a failed computation nothing in the caches is trusted."""
        self.clear()
        return _failure("The engine could not go on", error)

    def _open(self, size: int) -> None:
        """Have a context of this size, with the rope factors that belong to it; another one is empty."""
        if size == self.size:
            return
        self.size = size
        self.clear()
        if self._model.rope:
            self._model.rope.long = size > self._model.folder.original_context

    def _grow(self, token: Any) -> bool:
        """Go on in the larger context, when there is one; `token` is said, and not read yet."""
        if self.size == self._model.context_sizes[-1]:
            return False
        mx.eval(token)  # it hangs on the caches that are emptied now
        tokens = self.tokens
        self._open(self._model.context_sizes[-1])
        self.read(tokens)
        return True

    def _keep(self, count: int) -> int:
        """Drop all but the first `count` tokens, or all when a cache cannot be cut; how many are left."""
        surplus = len(self.tokens) - count
        if surplus and not self.caches.cut(surplus):
            self.clear()
            return 0
        del self.tokens[count:]
        return count


def _sampler(options: GenerationOptions, vocabulary: int) -> Callable[[Any], Any]:
    """mlx-lm's sampler on logits [1, vocabulary]."""
    mx.random.seed(options.seed & 0xFFFFFFFF)
    top_k = options.top_k if options.top_k < vocabulary else 0  # which is all of them
    choose = make_sampler(temp=max(0.0, options.temperature), top_p=options.top_p, top_k=top_k)
    return lambda logits: choose(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
