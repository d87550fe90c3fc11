"""Configurations: named values with types, read from and written to JSON, one inside another."""

from enum import Enum
from typing import get_args, get_origin


class BaseConfig:
    def __init__(self, data, config_version=None, config_migrations=None):
        self.config_version = config_version or 0
        self.config_migrations = config_migrations or {}
        self.types = {}
        self.nullables = {}
        self.default_values = {}
        for name, default, kind, nullable in data:
            setattr(self, name, default)
            self.types[name] = kind
            self.nullables[name] = nullable
            self.default_values[name] = default

    def to_dict(self):
        data = {"__version": self.config_version}
        data.update((name, _plain(getattr(self, name))) for name in self.types)
        return data

    def from_dict(self, data, migrate=True):
        """Take over what fits. A key of another name is dropped, a value that does not fit is printed."""
        if migrate:
            version = data.get("__version", 0)
            while version in self.config_migrations:
                data = self.config_migrations[version](data)
                version += 1
        for name in self.types:
            if name not in data:
                continue
            try:
                self._set(name, data[name], migrate)
            except Exception:  # noqa: BLE001 - as OneTrainer: whatever it is, the run goes on without it
                print(f"Could not set {name} as {data[name]}")
        return self

    def _set(self, name, value, migrate):
        kind = self.types[name]
        if get_origin(kind) is None and issubclass(kind, BaseConfig):
            getattr(self, name).from_dict(value, migrate=migrate)
            return
        if value is not None or not self.nullables[name]:
            value = _converted(kind, value, migrate)
        setattr(self, name, value)


def _converted(kind, value, migrate):
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return [item.default_values().from_dict(entry, migrate=migrate) for entry in value]
    if issubclass(kind, Enum):
        return kind[value] if isinstance(value, str) else value
    return kind(value) if kind in (str, int, float) else value


def _plain(value):
    if isinstance(value, BaseConfig):
        return value.to_dict()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Enum) else value
