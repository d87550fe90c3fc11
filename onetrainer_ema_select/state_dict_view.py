"""Show a set of weights to whoever asks a model for its ``state_dict``, without touching a live weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Rounding: TypeAlias = "Callable[[str, Tensor, torch.dtype], Tensor]"
"""Rounds a weight of a stable name to a dtype; see :class:`rounding.StochasticRounding`."""


@dataclass(frozen=True)
class Site:
    """A place where code that saves a model finds a parameter.

    Attributes:
        name: The parameter's stable name.
        owner: The module that has it among its own parameters, or any other object with it as an attribute.
        attribute: Its local name there.
    """

    name: str
    owner: Any
    attribute: str


class StateDictView:
    """While entered, ``state_dict()`` of the owners (and of their copies) returns the values of a set.

    Modules get a ``state_dict`` post-hook, which is the one place through which single-file savers,
    ``save_pretrained`` and LoRA wrappers all go. Objects without a ``state_dict`` (embedding vectors) have the
    attribute itself exchanged for the time; nothing may run forward or backward in between.
    """

    def __init__(
        self,
        sites: Iterable[Site],
        value_of: Callable[[str], Tensor | None],
        *,
        dtype: torch.dtype | None,
        rounding: Rounding | None = None,
    ) -> None:
        """Prepare the view; nothing is changed before it is entered.

        Args:
            sites: Every place of every parameter; tied parameters have several.
            value_of: The value to show for a stable name (only read), or None to leave the parameter as it is.
            dtype: What the saver was asked to write: values are rounded to it once. ``None`` rounds to the
                dtype of the tensor that is replaced. Where that tensor has the value's own dtype, the value is
                shown as it is, and the saver does with it what it does with a live weight.
            rounding: Rounds to the file's dtype in the saver's place, which then finds nothing left to round; None
                leaves it to the saver, who rounds to the nearest.
        """
        self._sites = tuple(sites)
        self._value_of = value_of
        self._dtype = dtype
        self._rounding = rounding
        # Noted before they are registered, so that no interrupt can leave one behind.
        self._hooks: list[tuple[nn.Module, Callable[..., None]]] = []
        self._replaced: list[tuple[Any, str, Any]] = []
        counts: dict[str, int] = defaultdict(int)
        for site in self._sites:
            counts[site.name] += 1
        self._tied = {name for name, count in counts.items() if count > 1}
        self._shown_tied: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def __enter__(self) -> StateDictView:
        """Install the hooks and exchange the attributes."""
        try:
            self._install()
            return self  # inside: an interrupt may come at this line too
        except BaseException:
            self.restore()  # nobody calls __exit__ where __enter__ failed
            raise

    def _install(self) -> None:
        by_owner: dict[int, tuple[nn.Module, dict[str, str]]] = {}
        for site in self._sites:
            if isinstance(site.owner, nn.Module):
                by_owner.setdefault(id(site.owner), (site.owner, {}))[1][site.attribute] = site.name
            else:
                self._replace_attribute(site)
        for module, names in by_owner.values():
            self._hook(module, names)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo everything; see :meth:`restore`."""
        self.restore()

    def restore(self) -> None:
        """Undo everything that entering changed. May be called again after an interrupt cut it short."""
        while self._replaced:
            owner, attribute, original = self._replaced[-1]
            setattr(owner, attribute, original)
            self._replaced.pop()
        while self._hooks:
            module, show = self._hooks[-1]
            for key, hook in tuple(module._state_dict_hooks.items()):
                if hook is show:
                    del module._state_dict_hooks[key]
            self._hooks.pop()
        self._shown_tied.clear()

    def _replace_attribute(self, site: Site) -> None:
        value = self._value_of(site.name)
        if value is None:
            return
        original = getattr(site.owner, site.attribute)
        value = self._rounded(site.name, value, original)
        shown = value.detach().to(original.device, self._shown_dtype(value, original))
        self._replaced.append((site.owner, site.attribute, original))
        setattr(site.owner, site.attribute, shown)

    def _hook(self, owner: nn.Module, names: dict[str, str]) -> None:
        # A plain function: copy.deepcopy of the module keeps it as it is, where a bound method or callable
        # object would be copied together with everything it holds.
        def show(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: object) -> None:
            if not self._hooks:
                return  # left over in a copy of the module that has outlived the view
            for attribute, name in names.items():
                key = prefix + attribute
                value = self._value_of(name)
                found = state_dict.get(key)
                if value is None or found is None:
                    continue
                value = self._rounded(name, value, found)
                live = owner._parameters.get(attribute)
                private = module is not owner and live is not None and not _same_memory(found, live)
                if private and (self._dtype in (None, found.dtype) or value.dtype == found.dtype):
                    # A copy that the saver made and has converted already: writing into it is the one
                    # rounding, and needs no memory.
                    found.detach().copy_(value)
                else:
                    state_dict[key] = self._shown(name, value, found)

        self._hooks.append((owner, show))
        owner.register_state_dict_post_hook(show)

    def _rounded(self, name: str, value: Tensor, found: Tensor) -> Tensor:
        return value if self._rounding is None else self._rounding(name, value, self._dtype or found.dtype)

    def _shown_dtype(self, value: Tensor, found: Tensor) -> torch.dtype:
        # The same dtype needs no copy: whatever the saver still converts, it has to convert in a live weight too.
        return value.dtype if value.dtype == found.dtype else self._dtype or found.dtype

    def _shown(self, name: str, value: Tensor, found: Tensor) -> Tensor:
        dtype = self._shown_dtype(value, found)
        if name not in self._tied:
            return value.detach().to(found.device, dtype)
        # Tied parameters must stay one tensor: writers recognise them by their shared memory.
        key = (name, found.device, dtype)
        if key not in self._shown_tied:
            self._shown_tied[key] = value.detach().to(found.device, dtype)
        return self._shown_tied[key]


def _same_memory(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
