"""OneTrainer's samples, found and paired."""

from __future__ import annotations

from pathlib import Path

from onetrainer_ema_select.report.samples import find_samples

from .runs import PROMPTS, add_config, add_samples, kept, time_of


def test_prompts_in_their_order_with_both_sets(tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(12)]
    add_samples(tmp_path, prompts, steps=[0, 10])
    found = find_samples(tmp_path)
    assert [(one.number, one.title) for one in found] == list(enumerate(prompts))
    for prompt in found:
        assert [moment.step for moment in prompt.moments] == [0, 10]
        for moment in prompt.moments:
            assert moment.ema is not None
            assert moment.non_ema is not None
            assert moment.ema.path.parent.name + " - no-ema" == moment.non_ema.path.parent.name


def test_whole_prompts_come_from_the_configuration(tmp_path: Path) -> None:
    add_samples(tmp_path, steps=[0])
    assert [one.title for one in find_samples(tmp_path)] == [kept(prompt) for prompt in PROMPTS]
    add_config(tmp_path)
    assert [one.title for one in find_samples(tmp_path)] == list(PROMPTS)


def test_the_set_of_single_samples_is_told_by_the_configuration_of_the_time(tmp_path: Path) -> None:
    add_samples(tmp_path, ["a"], steps=[0, 100], sets=[""])
    assert {moment.unknown is not None for moment in find_samples(tmp_path)[0].moments} == {True}
    add_config(tmp_path, ["a"], ema="OFF")
    assert {moment.non_ema is not None for moment in find_samples(tmp_path)[0].moments} == {True}
    late = tmp_path / "config" / f"{time_of(50)}.json"
    late.write_text('{"ema": "GPU"}', encoding="utf-8")
    first, second = find_samples(tmp_path)[0].moments
    assert first.non_ema is not None
    assert second.ema is not None


def test_of_a_step_that_was_come_by_twice_the_newest_counts(tmp_path: Path) -> None:
    add_samples(tmp_path, ["a"], steps=[100])
    folder = tmp_path / "samples" / "0 - a"
    new = folder / "prefix-2027-01-01_00-00-00-training-sample-100-1-0.png"
    new.write_bytes(b"no picture")
    (moment,) = find_samples(tmp_path)[0].moments
    assert moment.ema is not None
    assert moment.ema.path == new


def test_foreign_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    add_samples(tmp_path, ["a"], steps=[0])
    folder = tmp_path / "samples"
    for name in (
        "0 - a/notes.txt",
        "0 - a/training-sample-1-1-1.jpg",
        "mine/x.jpg",
        "0 - a/2026-01-01_00-00-00-training-sample-5-0-5.txt",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x", encoding="utf-8")
    (folder / "0 - a" / f"{time_of(3)}-training-sample-3-0-3.jpg").mkdir()
    (folder / "stray.jpg").touch()
    (found,) = find_samples(tmp_path)
    assert [moment.step for moment in found.moments] == [0]


def test_custom_samples_come_last_and_videos_are_samples(tmp_path: Path) -> None:
    add_samples(tmp_path, ["a"], steps=[0])
    custom = tmp_path / "samples" / "custom" / f"{time_of(9)}-training-sample-9-0-9.mp4"
    custom.parent.mkdir()
    custom.touch()
    custom.with_name(f"{time_of(10)}-training-sample-9-0-9.png").touch()
    first, last = find_samples(tmp_path)
    assert (first.number, last.number, last.title) == (0, None, "custom")
    assert [moment.step for moment in last.moments] == [9, 9], "each may be of another prompt"
    video, picture = (sample for moment in last.moments for sample in moment.samples)
    assert not video.is_picture
    assert picture.is_picture


def test_samples_of_a_run_before_this_one_are_not_its_later_ones(tmp_path: Path) -> None:
    add_samples(tmp_path, ["a"], steps=[0, 100, 200])
    for folder in (tmp_path / "samples").iterdir():
        (folder / "2027-01-01_00-00-00-training-sample-50-1-0.png").write_bytes(b"no picture")
    (found,) = find_samples(tmp_path)
    assert [moment.step for moment in found.moments] == [0, 50]
