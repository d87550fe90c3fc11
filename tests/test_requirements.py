from __future__ import annotations

from importlib import metadata

from onetrainer_ema_select.requirements import installed_version, missing_packages, required

ENOUGH = {
    "torch": "2.9.1+cu128",
    "numpy": "1.24",
    "safetensors": "0.4.0",
    "pydantic": "2.10.6",
    "typer": "0.12.0",
    "rich": "13.0",
    "tqdm": "4.60",
}


def test_what_is_missing_or_too_old() -> None:
    assert missing_packages(ENOUGH.get) == []
    assert missing_packages({**ENOUGH, "torch": "2.5", "pydantic": "3", "rich": "13"}.get) == []
    assert missing_packages({**ENOUGH, "pydantic": "2.9.2", "torch": "2.4.1"}.get) == [
        "torch>=2.5 (there is 2.4.1)",
        "pydantic>=2.10 (there is 2.9.2)",
    ]
    without = {name: version for name, version in ENOUGH.items() if name != "rich"}
    assert missing_packages(without.get) == ["rich>=13 (not there)"]


def test_this_environment_has_what_is_needed() -> None:
    assert missing_packages() == []
    assert installed_version("pydantic") == metadata.version("pydantic")
    assert installed_version("no-such-package") is None


def test_a_version_is_compared_number_by_number() -> None:
    names = dict.fromkeys(required(), "999")
    assert missing_packages({**names, "pydantic": "2.10.0"}.get) == []
    assert missing_packages({**names, "pydantic": "2.10rc1"}.get) == []
    assert missing_packages({**names, "pydantic": "2.9"}.get) == ["pydantic>=2.10 (there is 2.9)"]
