"""The ``ema_select`` section of OneTrainer's configuration, derived from the settings model."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from modules.util.config.BaseConfig import BaseConfig

from onetrainer_ema_select.errors import SECTION, SettingsError
from onetrainer_ema_select.host.install import install
from onetrainer_ema_select.settings import VERSION_KEY, EmaSelectSettings, allowed_values, parse_settings
from onetrainer_ema_select.settings_advice import as_typed


class _Types(dict[str, type]):
    """The section's types; a key that is not one of ours counts as text.

    OneTrainer looks up the type of a ``--config-value`` before it sets it; so a mistyped key arrives here and
    is named with the right ones instead of ending in a KeyError.
    """

    def __missing__(self, key: str) -> type:
        return str


class EmaSelectConfig(BaseConfig):  # type: ignore[misc]
    """The section as OneTrainer handles it: loaded, saved and shown like its own.

    OneTrainer drops keys that it does not know and values that it cannot set. This section keeps what it was
    given, writes it out again, and has it judged by :func:`settings.parse_settings` when a run begins.
    """

    def __init__(self) -> None:
        """Create the section with its defaults."""
        rows = []
        for name, field in EmaSelectSettings.model_fields.items():
            default = field.get_default()
            rows.append((name, default, type(default), False))
        super().__init__(rows)
        self.types: dict[str, type] = _Types(vars(self)["types"])
        # What was read: the raw value, and what the attribute became by it. It is forgotten as soon as the
        # attribute is set to another value, as the window does.
        self._given: dict[str, tuple[Any, Any]] = {}
        self._not_a_section: Any = None

    @staticmethod
    def default_values() -> EmaSelectConfig:
        """The section with its defaults."""
        return EmaSelectConfig()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a value; one that differs from what a file gave counts from now on, whatever it changes to later.

        The window sets None where a field for a number was emptied, which stands for the default here.
        """
        if value is None and name in vars(self).get("default_values", {}):
            value = self.default_values_by_name[name]
        given = vars(self).get("_given", {})
        if name in vars(self).get("default_values", {}) and value != getattr(self, name, value):
            self._not_a_section = None
        if name in given and value != given[name][1]:
            del given[name]
        super().__setattr__(name, value)

    def from_dict(self, data: Any, migrate: bool = True) -> EmaSelectConfig:
        """Read values; whatever is wrong with them is kept for :meth:`settings`."""
        if not isinstance(data, dict):
            self._not_a_section = data
            return self
        if VERSION_KEY in data:
            # A whole section, as the window loads one after the other: nothing of the last one is left.
            self.drop_mistakes()
            for name, default in self.default_values_by_name.items():
                setattr(self, name, default)
        settable = {key: self._understood(key, value) for key, value in data.items() if self._can_set(key, value)}
        super().from_dict(settable, migrate=migrate)
        for key, value in data.items():
            self._given[key] = (
                value,
                getattr(self, key, None) if key in self.default_values_by_name else None,
            )
        return self

    @property
    def default_values_by_name(self) -> dict[str, Any]:
        """The defaults. OneTrainer's instances shadow ``default_values()`` with this mapping."""
        return vars(self)["default_values"]  # type: ignore[no-any-return]

    def _understood(self, key: str, value: Any) -> Any:
        """A value as a run takes it, so that the window shows what will be: the text "2" is the number 2."""
        if key not in self.default_values_by_name:
            return value
        try:
            return getattr(parse_settings({key: value}), key)
        except SettingsError:
            return value

    def _can_set(self, key: str, value: Any) -> bool:
        """Whether OneTrainer can set this, so that it does not print about what we are going to name anyway."""
        if key not in self.default_values_by_name:
            return key.startswith("__")
        value = self._understood(key, value)
        allowed = allowed_values(key)
        if allowed is not None:
            return as_typed(value) in allowed
        if self.types[key] is int:
            return isinstance(value, int) and not isinstance(value, bool)
        return isinstance(value, str)

    def raw(self) -> Any:
        """The section as it was typed, with what the window has changed since."""
        if self._not_a_section is not None:
            return self._not_a_section
        values = {key: value for key, (value, _) in self._given.items() if not key.startswith("__")}
        for name, default in self.default_values_by_name.items():
            current = getattr(self, name)
            if name not in self._given and current != default:
                values[name] = current
        return {key: str(value) if isinstance(value, Enum) else value for key, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """The section for a file: defaults filled in, and wrong values as they were typed."""
        if self._not_a_section is not None:
            return self._not_a_section  # type: ignore[no-any-return]
        data: dict[str, Any] = super().to_dict()
        data.update(self.raw())
        return data

    def settings(self) -> EmaSelectSettings:
        """The checked settings.

        Raises:
            SettingsError: Naming all that is wrong.
        """
        return parse_settings(self.raw())

    def asks_for_plugin(self) -> bool:
        """Whether a run is to be driven by the plugin; anything but a clear "no" counts as asking.

        A section with mistakes that is switched off leaves OneTrainer alone.
        """
        raw = self.raw()
        if not isinstance(raw, dict):
            return True
        try:
            return parse_settings({"enabled": raw.get("enabled", False)}).enabled
        except SettingsError:
            return True

    def mistakes(self) -> str:
        """What is wrong in the section, empty where nothing is."""
        try:
            self.settings()
        except SettingsError as error:
            return " ".join(f"{problem}." for problem in error.problems)
        return ""

    def drop_mistakes(self) -> None:
        """Forget what does not exist or could not be set, and have the default for what is wrong."""
        self._not_a_section = None
        self._given.clear()
        for name, default in self.default_values_by_name.items():
            try:
                parse_settings({name: getattr(self, name)})
            except SettingsError:
                setattr(self, name, default)


def default_values(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``TrainConfig.default_values``: OneTrainer's defaults with the section added."""
    install()
    return with_section(original(*args, **kwargs))


def with_section(config: Any) -> Any:
    """Add the section, with its defaults, to a configuration of OneTrainer."""
    section = EmaSelectConfig()
    config.types[SECTION] = EmaSelectConfig
    config.nullables[SECTION] = False
    config.default_values[SECTION] = section
    setattr(config, SECTION, section)
    return config
