"""Which class implements what, for which model type and training method."""

import importlib
import pkgutil

_registry = {}


def register(base_cls, *criteria):
    """A decorator that registers an implementation of a base class."""

    def add(cls):
        key = (base_cls, criteria)
        if key in _registry:
            raise RuntimeError(f"{cls} and {_registry[key]} both claim to be {base_cls} for {criteria}")
        _registry[key] = cls
        return cls

    return add


def get(base_cls, *criteria):
    return _registry.get((base_cls, criteria))


def import_dir(path, parent):
    """Import every module in a folder. An exception in one of them ends the program."""
    for module in pkgutil.walk_packages([path], f"{parent}."):
        importlib.import_module(module.name)
