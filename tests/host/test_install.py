"""Installing on a host: all or none, once, and undone in full."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from pytest_mock import MockerFixture

from onetrainer_ema_select.errors import HostMismatchError
from onetrainer_ema_select.host import install as installing
from onetrainer_ema_select.host import notices, seams
from onetrainer_ema_select.host.seams import SEAMS, Seam, SeamResult

REPLACED = [seam for seam in SEAMS if seam.replacement]


class Section:
    def __init__(self, asks: bool) -> None:
        self.asks_for_plugin = lambda: asks


@pytest.fixture
def owners(mocker: MockerFixture) -> Iterator[dict[str, Any]]:
    """A host with every place that is replaced; the check passes."""
    found: dict[str, Any] = {}

    class Trainer:
        def __init__(self, config: Any) -> None:
            self.config = config

        def start(self) -> str:
            return "started"

        def end(self) -> None:
            raise AssertionError("the machine of an earlier run is deleted")

    def resolve(seam: Seam) -> tuple[Any, str, Any]:
        name = seam.name.rsplit(".", 1)[-1]
        if seam.label not in found:
            owner = type("Owner", (), {})
            setattr(owner, name, staticmethod(lambda: "host's") if name == "default_values" else lambda *_: "host's")
            found[seam.label] = owner
        owner = found[seam.label]
        return owner, name, owner.__dict__[name]

    module = types.ModuleType("modules.trainer.BaseTrainer")
    module.BaseTrainer = Trainer  # type: ignore[attr-defined]
    mocker.patch.dict(sys.modules, {"modules.trainer.BaseTrainer": module})
    mocker.patch.object(seams, "resolve", resolve)
    mocker.patch.object(seams, "check_live", lambda: ())
    mocker.patch.object(seams, "load_replacement", lambda seam: lambda original, *args: f"ours of {original(*args)}")
    found["trainer"] = Trainer
    yield found
    installing.disarm()


def values(owners: dict[str, Any]) -> dict[str, Any]:
    """What each replaced place answers."""
    return {
        seam.label: getattr(owners[seam.label], seam.name.rsplit(".", 1)[-1])()
        for seam in REPLACED
        if seam.label in owners
    }


def test_all_places_are_replaced_once_and_put_back(owners: dict[str, Any]) -> None:
    installing.arm()
    assert installing.install() == ()
    assert installing.install() == ()
    installing.arm()
    assert values(owners) == {seam.label: "ours of host's" for seam in REPLACED}
    installing.disarm()
    assert values(owners) == {seam.label: "host's" for seam in REPLACED}


@pytest.mark.parametrize("last", REPLACED[1:], ids=lambda seam: seam.name)
def test_nothing_is_replaced_where_one_of_our_modules_cannot_be_loaded(
    owners: dict[str, Any], mocker: MockerFixture, last: Seam
) -> None:
    installing.arm()
    load = seams.load_replacement

    def failing(seam: Seam) -> Any:
        if seam is last:
            raise SyntaxError("half a file")
        return load(seam)

    mocker.patch.object(seams, "load_replacement", failing)
    sentence = "the plugin's own modules could not be loaded: SyntaxError: half a file"
    assert installing.install() == (sentence,)
    first, *others = values(owners).items()
    assert first[1] == "ours of host's"  # it adds the section, by which a run can ask for the plugin at all
    assert {value for _, value in others} <= {"host's"}
    assert_refused(owners, sentence)


def test_a_run_that_asks_for_the_plugin_on_an_unknown_host_is_refused_when_it_starts(
    owners: dict[str, Any], mocker: MockerFixture
) -> None:
    wrong = SeamResult(REPLACED[1], "()", False, "a seam: found (), expected (self)")
    mocker.patch.object(seams, "check_live", lambda: (wrong,))
    installing.arm()
    assert installing.install() == (wrong.sentence,)
    assert installing.install() == (wrong.sentence,)
    assert_refused(owners, wrong.sentence)
    installing.disarm()
    assert owners["trainer"](types.SimpleNamespace(ema_select=Section(asks=True))).start() == "started"


def assert_refused(owners: dict[str, Any], sentence: str) -> None:
    trainer = owners["trainer"]
    assert trainer(types.SimpleNamespace()).start() == "started"
    assert trainer(types.SimpleNamespace(ema_select=Section(asks=False))).start() == "started"
    refused = trainer(types.SimpleNamespace(ema_select=Section(asks=True)))
    with pytest.raises(HostMismatchError) as caught:
        refused.start()
    assert sentence in str(caught.value)
    assert any(sentence in text for text in notices.take())
    cloud = types.SimpleNamespace(enabled=True)
    refused = trainer(types.SimpleNamespace(ema_select=Section(asks=True), cloud=cloud))
    with pytest.raises(HostMismatchError):
        refused.start()
    assert refused.error_caught
    refused.end()


class Cloud:
    """A host's class with a method and a static one, which is called on the class as OneTrainer does."""

    def setup(self) -> str:
        return "host's"

    @staticmethod
    def _filter_download(config: str, path: str) -> str:
        return f"host's of {config} {path}"


@pytest.fixture
def cloud(mocker: MockerFixture) -> Iterator[Any]:
    module = types.ModuleType("modules.cloud.BaseCloud")
    module.Cloud = Cloud  # type: ignore[attr-defined]
    mocker.patch.dict(sys.modules, {"modules": types.ModuleType("modules"), "modules.cloud.BaseCloud": module})
    table = tuple(
        Seam("modules.cloud.BaseCloud", f"Cloud.{name}", parameters, "", "x:y")
        for name, parameters in (("setup", ("self",)), ("_filter_download", ("config", "path")))
    )
    mocker.patch.object(seams, "CLOUD_SEAMS", table)
    mocker.patch.object(
        seams, "load_replacement", lambda seam: lambda original, *args, **kwargs: f"ours of {original(*args, **kwargs)}"
    )
    yield mocker
    installing.disarm()


def answers() -> tuple[str, str, str]:
    static = Cloud._filter_download
    return Cloud().setup(), static(config="c", path="p"), Cloud()._filter_download("c", "p")


def test_the_cloud_is_replaced_once_when_it_is_asked_for_and_put_back(cloud: Any) -> None:
    before = answers()
    assert installing.install_cloud() == ()
    assert installing.install_cloud() == ()
    assert answers() == ("ours of host's", "ours of host's of c p", "ours of host's of c p")
    installing.disarm()
    assert answers() == before


def test_of_a_cloud_that_differs_nothing_is_replaced(cloud: Any) -> None:
    before = answers()
    wrong = Seam("modules.cloud.BaseCloud", "Cloud.close", ("self",), "")
    cloud.patch.object(seams, "CLOUD_SEAMS", (*seams.CLOUD_SEAMS, wrong))
    (sentence,) = installing.install_cloud()
    assert "Cloud.close: expected (self), found nothing" in sentence
    assert installing.install_cloud() == (sentence,)
    assert answers() == before
