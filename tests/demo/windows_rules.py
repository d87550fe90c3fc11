"""Trainings in the stand-in under the rules that Windows' file systems have: `python windows_rules.py CONFIG...`.

What is open in this process, or mapped into its memory, cannot be replaced, renamed or deleted, nor can a folder that
holds it; folders cannot be opened; only what is open for writing can be flushed; there are no hard links and no
`fcntl`. What breaks a rule fails as it does there, and is written to `broken.json` with who did it.
"""

# What pathlib itself calls is replaced here, so it is not used.
# ruff: noqa: PTH109, PTH112, PTH115, PTH118, PTH123, PTH208
import errno
import fcntl
import json
import os
import runpy
import stat
import sys
import traceback

PACKAGE = "onetrainer_ema_select"
broken = []


def refuse(what, path, number=errno.EACCES):
    # the tests' own folder may be named like the package, the last frames may not
    frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()[:-2]]
    ours = [frame for frame in frames if f"{os.sep}{PACKAGE}{os.sep}" in frame and "standin" not in frame]
    broken.append([what, str(path), ours[-1] if ours else ""])
    raise OSError(number, f"{what} (as on Windows)", str(path))


def held():
    """Every file that is open or mapped here."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with REAL["open"]("/proc/self/maps") as maps:
        found.update(line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/" in line)
    return found


def in_use(path):
    real = os.path.realpath(path)
    inside = real + os.sep
    return any(name == real or name.startswith(inside) for name in held())


def guarded(name, *, into=False, may_replace=True):
    original = getattr(os, name)

    def call(path, *others, **keywords):
        if in_use(path):
            refuse(f"{name}: in use", path)
        if into:
            target = others[0]
            if os.path.lexists(target):
                if not may_replace:
                    refuse(f"{name}: there is one already", target, errno.EEXIST)
                if os.path.isdir(target) or in_use(target):
                    refuse(f"{name}: in use", target)
        return original(path, *others, **keywords)

    return call


def link(source, target, **_):
    raise OSError(errno.EPERM, "no hard links here", str(target))


def open_file(path, flags, *arguments, **keywords):
    if os.path.isdir(path):
        refuse("open: a folder", path)
    return REAL["os.open"](path, flags, *arguments, **keywords)


def fsync(descriptor):
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        refuse("fsync: open for reading only", descriptor, errno.EBADF)
    assert not stat.S_ISDIR(os.fstat(descriptor).st_mode)
    return REAL["fsync"](descriptor)


REAL = {"open": open, "os.open": os.open, "fsync": os.fsync}


def install():
    for name in ("unlink", "remove"):
        setattr(os, name, guarded(name))
    os.replace = guarded("replace", into=True)
    os.rename = guarded("rename", into=True, may_replace=False)
    os.link, os.open, os.fsync = link, open_file, fsync
    # it goes by these; without them it does as on Windows
    os.supports_dir_fd.clear()
    import shutil

    shutil._use_fd_functions = False
    import torch  # noqa: F401 - some of its modules want fcntl, on Linux

    sys.modules["fcntl"] = None
    from onetrainer_ema_select import store

    store._WINDOWS = True
    store._RETRY_SECONDS = ()


if __name__ == "__main__":
    configs = sys.argv[1:]
    sys.path.insert(0, os.path.join(os.getcwd(), "scripts"))
    install()
    for config in configs:
        sys.argv[1:] = ["--config-path", config]
        runpy.run_path(os.path.join("scripts", "train.py"), run_name="__main__")
    with open("broken.json", "w", encoding="utf-8") as file:
        json.dump(broken, file)
