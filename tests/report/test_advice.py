"""The recommendation: from what was measured, as sure as that is, and no difference where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from onetrainer_ema_select.report.advice import advise
from onetrainer_ema_select.report.commands import commands, line
from onetrainer_ema_select.report.data import PlacePoint, RunData, gather
from onetrainer_ema_select.report.sources import Curves, Drift, Snapshot, Validation

BOTH = ("non-ema", "ema")


def point(step: int, *, sets: tuple[str, ...] = BOTH, complete: bool = True, **more: object) -> PlacePoint:
    path = Path(f"/runs/my run/backup/2026-03-01_12-00-00-backup-{step}-0-0")
    return PlacePoint(f"point-{step}", "backup", path, step, 0, sets, complete, **more)


def judged(step: int, ema: float | None, other: float | None, sure: str = "clear") -> Validation:
    better = "" if ema == other else "ema" if other is None or (ema is not None and ema < other) else "non-ema"
    return Validation(step, 0, 20, ema, other, 0.001, better, sure, ())


def run(*points: PlacePoint, **more: object) -> RunData:
    empty = {
        "saves": (), "legs": (), "prompts": (), "validations": (), "drift": (), "warnings": frozenset(),
        "snapshots": (), "curves": Curves({}, {}, {}),
    }  # fmt: skip
    newest_first = tuple(sorted(points, key=lambda one: -(one.step or 0)))
    return RunData(workspace=Path("/runs/my run"), points=newest_first, **{**empty, **more})


def test_the_set_with_the_lower_loss_at_the_newest_point() -> None:
    data = run(point(100), point(200), validations=(judged(100, 0.5, 0.4), judged(200, 0.3, 0.35)))
    advice = advise(data, 0.1)
    assert advice.headline.en == "Take the EMA weights of step 200."
    assert advice.headline.zh == "建议使用第 200 步的 EMA 权重。"
    assert (advice.sure, advice.set, advice.point) == ("clear", "ema", data.points[0])
    said = advice.reasons[0].en
    assert said.startswith("Validation loss at step 200: EMA 0.3, non-EMA 0.35. The difference is 0.05 ± 0.001")
    assert any("differ by 10.0%" in reason.en for reason in advice.reasons)


def test_an_earlier_point_where_the_loss_has_risen_since() -> None:
    data = run(point(100), point(200), validations=(judged(100, 0.31, 0.30), judged(200, 0.4, 0.45)))
    advice = advise(data, None)
    assert advice.headline.en == "Take the non-EMA weights of step 100."
    assert "Since step 100 the loss has risen, from 0.3 to 0.4" in " ".join(reason.en for reason in advice.reasons)


def test_a_rise_within_the_error_is_none() -> None:
    data = run(point(100), point(200), validations=(judged(100, 0.300, 0.31), judged(200, 0.3035, 0.31)))
    assert advise(data, None).point == data.points[0]


def test_a_difference_that_may_be_chance_is_none() -> None:
    data = run(point(100), validations=(judged(100, 0.3, 0.30001, ""),))
    advice = advise(data, None)
    assert advice.headline.en == "No difference can be told between the two sets of step 100."
    assert (advice.sure, advice.set) == ("", "")


def test_probable_is_said_to_be_probable() -> None:
    advice = advise(run(point(100), validations=(judged(100, 0.3, 0.31, "probable"),)), None)
    assert (advice.sure, advice.set) == ("probable", "ema")


def test_a_loss_that_is_no_number_is_named() -> None:
    advice = advise(run(point(100), validations=(judged(100, 0.3, None),)), None)
    assert advice.set == "ema"
    assert "the validation loss of the non-EMA weights is no finite number" in advice.reasons[0].en


def test_how_often_the_same_set_was_better() -> None:
    losses = [judged(step, 0.3, 0.4 if step != 30 else 0.2) for step in range(10, 60, 10)]
    advice = advise(run(point(50), validations=tuple(losses)), None)
    assert "In 4 of the last 5 validations EMA had the lower loss." in [reason.en for reason in advice.reasons]


def test_the_same_weights_make_no_difference_whatever_was_measured() -> None:
    data = run(point(100), drift=(Drift(100, {"distance": 1e-9}),), validations=(judged(100, 0.3, 0.31),))
    advice = advise(data, 0.0)
    assert advice.headline.en == "There is no difference to see between the two sets."
    assert advice.sure == "clear"


@pytest.mark.parametrize(("difference", "headline"), [
    (0.001, "There is no difference to see between the two sets."),
    (0.1, "Look at the pictures: nothing that was measured says which set is better."),
    (None, "Nothing here says which set is better."),
])  # fmt: skip
def test_without_losses_the_pictures_count(difference: float | None, headline: str) -> None:
    advice = advise(run(point(100)), difference)
    assert advice.headline.en == headline
    assert advice.set == ""


def test_one_set_is_no_choice() -> None:
    advice = advise(run(point(100, sets=("non-ema",))), None)
    assert advice.headline.en == "There is one set only: non-EMA."
    assert "set EMA to GPU or CPU" in advice.reasons[0].en


def test_nothing_at_all() -> None:
    assert advise(run(), None).headline.en == "There is nothing to choose from yet."
    assert advise(run(), None).point is None


def test_warnings_of_the_run_are_repeated() -> None:
    data = run(point(100), warnings=frozenset({"start", "swing"}))
    said = " ".join(reason.en for reason in advise(data, 0.2).reasons)
    assert "half-life is too long" in said
    assert "swing to and fro" in said


def test_a_point_that_is_not_complete_is_not_recommended() -> None:
    data = run(point(100), point(200, complete=False), validations=(judged(100, 0.3, 0.4), judged(200, 0.2, 0.4)))
    advice = advise(data, None)
    assert advice.point == data.points[1]
    assert commands(data.points[0], data) == ()


# -- what to type --------------------------------------------------------------------------------------------


def test_commands_of_a_point() -> None:
    data = run(point(100, sigma_rels=(0.05, 0.1), snapshot="s"), snapshots=(Snapshot("s", 100, (0.05, 0.1)),))
    lines = [command.line for command in commands(data.points[0], data)]
    backup = str(data.points[0].path.absolute())
    assert len(lines) == 6
    assert lines[0] == line(
        ["export", backup, "--set", "ema", "--output", Path("models/my run-step100-ema.safetensors")]
    )
    assert "--config-value ema_select.resume_weights=NON_EMA" in lines[3]
    assert "--sigma-rel 0.1 --at s --output" in lines[4]  # two runs of a workspace may have the same step
    assert (
        "--config-value ema_select.resume_weights=POST_HOC --config-value ema_select.resume_sigma_rel=0.1" in lines[5]
    )


def test_names_are_quoted_for_the_shell() -> None:
    assert line(["export", "a b$(x)'", "c"], windows=False) == "onetrainer-ema-select export 'a b$(x)'\"'\"'' c"
    assert line(["export", "C:\\a b", "c"], windows=True) == 'onetrainer-ema-select export "C:\\a b" c'


@pytest.mark.parametrize(("word", "typed"), [
    ("C:\\runs\\a-b_c.json", "C:\\runs\\a-b_c.json"),
    ("ema_select.resume_weights=EMA", "ema_select.resume_weights=EMA"),
    ("D:\\模型\\猫", "D:\\模型\\猫"),
    ("C:\\cats&dogs", '"C:\\cats&dogs"'),
    ("C:\\run(1)", '"C:\\run(1)"'),
    ("a;b", '"a;b"'),
    ("a^b,c", '"a^b,c"'),
    ("100%", '"100%"'),
    ("a$b", '"a$b"'),
    ("C:\\a b\\", '"C:\\a b\\\\"'),
    ('a "b" c', '"a \\"b\\" c"'),
    ('a\\"b', '"a\\\\\\"b"'),
    ("", '""'),
])  # fmt: skip
def test_signs_of_the_windows_shells_are_quoted(word: str, typed: str) -> None:
    assert line([word], windows=True) == f"onetrainer-ema-select {typed}"


def test_a_command_to_train_on_begins_a_leg_of_its_own() -> None:
    data = run(point(100), made="2026-03-02_12-00-00")
    assert "--config-value ema_select.resume_leg=2026-03-02_12-00-00" in commands(data.points[0], data)[2].line


def test_the_configuration_is_the_one_of_the_start_that_made_the_point(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    for name in ("z-2026-03-01_11-00-00", "a-2026-03-01_13-00-00"):
        (tmp_path / "config" / f"{name}.json").write_text('{"ema": "CPU"}', encoding="utf-8")
    assert gather(tmp_path).config_file == tmp_path / "config" / "a-2026-03-01_13-00-00.json"
    old = point(100, time="2026-03-01_12-00-00")
    assert gather(tmp_path).config_of(old) == tmp_path / "config" / "z-2026-03-01_11-00-00.json"


def test_losses_of_another_run_say_nothing() -> None:
    other = replace(judged(100, 0.1, 0.4), run="second")
    data = run(point(500, run="first"), validations=(other,))
    assert advise(data, None).headline.en == "Nothing here says which set is better."
    own = replace(judged(500, 0.4, 0.3), run="first")
    data = run(point(500, run="first", validation=own), validations=(other,))
    assert advise(data, None).set == "non-ema"


def test_a_point_that_does_not_hold_the_set_is_not_recommended() -> None:
    losses = (judged(100, 0.3, 0.4), judged(200, 0.3, 0.4))
    data = run(point(100), point(200, sets=("non-ema",)), validations=losses)
    assert advise(data, None).headline.en == "Take the EMA weights of step 100."


def test_training_that_has_broken_down_is_not_called_overfitting() -> None:
    data = run(point(100), point(200), validations=(judged(100, 0.3, 0.4), judged(200, None, None)))
    advice = advise(data, None)
    said = " ".join(reason.en for reason in advice.reasons)
    assert "At step 200 neither the EMA's nor the non-EMA weights' validation loss is a finite number" in said
    assert "inf" not in said.replace("finite", "")
    assert advice.point == data.points[1]
