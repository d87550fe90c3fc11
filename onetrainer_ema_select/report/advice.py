"""Which set is better, in plain words: from what was measured, with the reasons and how sure that is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onetrainer_ema_select.report.data import SNAPSHOT, PlacePoint, RunData
from onetrainer_ema_select.report.sources import Validation
from onetrainer_ema_select.report.text import SETS, WEIGHTS, Text, number

#: Sets nearer than this are the same in any file.
SAME_DISTANCE = 1e-6
#: Pictures whose mean difference is less than this look the same.
SAME_PICTURE = 0.004
#: Of the lowest loss: a point is said to be worse when its loss is higher by more than this.
WORSE = 0.01
#: Validations that are looked back on.
_RECENT = 8

SURE = {
    "clear": Text("Clear", "明确"),
    "probable": Text("Probable", "很可能"),
    "": Text("Cannot be told", "无法判断"),
}


@dataclass(frozen=True)
class Advice:
    """A recommendation.

    Attributes:
        headline: What to do, in a sentence.
        sure: How sure that is: ``clear``, ``probable`` or empty.
        reasons: Why, a sentence each, what counts most first.
        set: ``ema``, ``non-ema``, or empty where it makes no difference or cannot be told.
        point: What to take it from, None where there is nothing.
    """

    headline: Text
    sure: str = ""
    reasons: tuple[Text, ...] = field(default=())
    set: str = ""
    point: PlacePoint | None = None


def advise(data: RunData, picture_difference: float | None) -> Advice:
    """Say which set is better.

    Args:
        data: The run.
        picture_difference: Mean difference between the two sets' newest samples, 0 to 1; None where there are none.
    """
    usable = [point for point in data.points if point.complete and point.kind != SNAPSHOT]
    newest = usable[0] if usable else None
    seen = _seen(picture_difference)
    if not usable and not data.saves and picture_difference is None and not data.validations:
        return Advice(Text("There is nothing to choose from yet.", "还没有可以选择的内容。"))
    if _only_one(data, usable):
        return _one_set(usable, newest)
    if _same_weights(data):
        reason = Text(
            "The weights of both sets are the same to rounding. Take either. A longer half-life "
            "(ema_half_life) would have kept them apart.",
            "两组权重相同，差别只在舍入误差之内。任选其一。更长的半衰期（ema_half_life）会使它们有所不同。",
        )
        return Advice(NO_DIFFERENCE, "clear", (reason, *seen), "", newest)
    if data.validations and (not usable or _is_of(usable, data)):
        return _by_loss(data, usable, seen)
    if picture_difference is not None and picture_difference < SAME_PICTURE:
        return Advice(NO_DIFFERENCE, "probable", (*seen, NOT_MEASURED), "", newest)
    headline = LOOK if picture_difference is not None else UNKNOWN
    return Advice(headline, "", (*seen, *_warnings(data), NOT_MEASURED), "", newest)


def _is_of(usable: Sequence[PlacePoint], data: RunData) -> bool:
    """Whether the newest point's run has validations."""
    run = usable[0].run
    return data.validations[-1].run == run or any(point.validation for point in usable if point.run == run)


NO_DIFFERENCE = Text("There is no difference to see between the two sets.", "两组权重之间看不出差别。")
LOOK = Text(
    "Look at the pictures: nothing that was measured says which set is better.",
    "请看图片：没有任何测量能说明哪一组更好。",
)
UNKNOWN = Text("Nothing here says which set is better.", "这里没有任何内容能说明哪一组更好。")
NOT_MEASURED = Text(
    "With OneTrainer's validation on, the loss of both sets is measured on the same images and noise.",
    "打开 OneTrainer 的验证后，会用同样的图片和噪声测量两组权重的损失。",
)
TASTE = Text(
    "Validation loss measures how well the images are learnt, not how they look. The pictures have the last word.",
    "验证损失衡量的是学得多好，不是好不好看。最后还是看图片。",
)


def _only_one(data: RunData, usable: Sequence[PlacePoint]) -> bool:
    sets = {one for point in usable for one in point.sets} | {save.set for save in data.saves if save.set}
    sets |= {sample.set for prompt in data.prompts for moment in prompt.moments for sample in moment.samples}
    measured = any(one.ema is not None and one.non_ema is not None for one in data.validations)
    return len(sets - {""}) < 2 and not measured


def _one_set(usable: Sequence[PlacePoint], newest: PlacePoint | None) -> Advice:
    sets = usable[0].sets if usable else ()
    name = SETS[sets[0]] if len(sets) == 1 else Text("one set", "一组权重")
    reason = Text(
        "To have both, set EMA to GPU or CPU in OneTrainer, and ema_select.enabled to true. Non-EMA Sampling in "
        "OneTrainer's sampling tab adds the pictures of the second set.",
        "想两组都有，请在 OneTrainer 中把 EMA 设为 GPU 或 CPU，并把 ema_select.enabled 设为 true。"
        "采样标签页的 Non-EMA Sampling 会加上第二组的图片。",
    )
    headline = Text("There is one set only: {set}.", "只有一组权重：{set}。").format(set=name)
    return Advice(headline, "clear" if sets else "", (reason,), sets[0] if len(sets) == 1 else "", newest)


def _same_weights(data: RunData) -> bool:
    distances = [one.values["distance"] for one in data.drift if "distance" in one.values]
    return bool(distances) and distances[-1] < SAME_DISTANCE


def _by_loss(data: RunData, usable: Sequence[PlacePoint], seen: tuple[Text, ...]) -> Advice:
    own = [point for point in usable if point.run == usable[0].run]
    judged = [
        (point, one)
        for point in own
        if (one := _validation_of(point, data.validations)) is not None and _holds(point, one.better)
    ]
    newest = data.validations[-1]
    best_point, best = (judged[0][0], judged[0][1]) if judged else (None, newest)
    reasons = []
    if judged:
        lowest_point, lowest = min(
            (pair for pair in judged if pair[1].step <= best.step), key=lambda pair: _loss(pair[1])
        )
        if _loss(best) == float("inf") > _loss(lowest):
            reasons.append(
                Text(
                    f"At step {best.step} neither the EMA's nor the non-EMA weights' validation loss is a finite "
                    f"number: training has broken down since step {lowest.step}.",
                    f"第 {best.step} 步时，EMA 和非 EMA 权重的验证损失都不是有限的数："
                    f"自第 {lowest.step} 步以来训练已经崩溃。",
                )
            )
            best_point, best = lowest_point, lowest
        elif _loss(best) > _loss(lowest) * (1 + WORSE) + (lowest.error or 0.0):
            reasons.append(
                Text(
                    f"Since step {lowest.step} the loss has risen, from {number(_loss(lowest))} to "
                    f"{number(_loss(best))}: a sign that it learns its training images by heart.",
                    f"自第 {lowest.step} 步以来损失上升了，从 {number(_loss(lowest))} 到 {number(_loss(best))}："
                    "这是死记训练图片的迹象。",
                )
            )
            best_point, best = lowest_point, lowest
    reasons = [_losses(best), *_agreement(best, data.validations), *reasons, *_warnings(data), *seen, TASTE]
    where = _where(best_point)
    if not best.better or not best.sure:
        headline = Text(
            "No difference can be told between the two sets{where}.", "{where}两组权重之间分不出高下。"
        ).format(where=where)
        return Advice(headline, "", tuple(reasons), "", best_point)
    headline = Text("Take the {weights}{where}.", "建议使用{where}{weights}。").format(
        weights=WEIGHTS[best.better], where=where
    )
    return Advice(headline, best.sure, tuple(reasons), best.better, best_point)


def _where(point: PlacePoint | None) -> Text:
    return Text(f" of step {point.step}", f"第 {point.step} 步的") if point else Text("", "")


def _validation_of(point: PlacePoint, validations: Sequence[Validation]) -> Validation | None:
    """The last one of a point's own leg up to it."""
    if point.step is None:
        return None
    if point.validation is not None:
        return point.validation
    leg = (point.run, point.leg_id)
    before = [one for one in validations if one.step <= point.step and (one.run, one.leg) == leg]
    return before[-1] if before else None


def _holds(point: PlacePoint, better: str) -> bool:
    return set(point.sets) >= ({better} if better else {"ema", "non-ema"})


def _loss(one: Validation) -> float:
    losses = [loss for loss in (one.ema, one.non_ema) if loss is not None]
    return min(losses, default=float("inf"))


def _losses(one: Validation) -> Text:
    if one.ema is None and one.non_ema is None:
        return Text(
            f"At step {one.step} neither the EMA's nor the non-EMA weights' validation loss is a finite number.",
            f"第 {one.step} 步时，EMA 和非 EMA 权重的验证损失都不是有限的数。",
        )
    if one.ema is None or one.non_ema is None:
        return Text(
            f"At step {one.step} the validation loss of the {{weights}} is no finite number.",
            f"第 {one.step} 步时，{{weights}}的验证损失不是有限的数。",
        ).format(weights=WEIGHTS["ema" if one.ema is None else "non-ema"])
    apart = f"{number(abs(one.ema - one.non_ema))}" + (f" ± {number(one.error)}" if one.error is not None else "")
    chance = {
        "clear": Text("far more than chance", "远超偶然"),
        "probable": Text("probably more than chance", "很可能不是偶然"),
        "": Text("which may be chance", "可能只是偶然"),
    }[one.sure]
    return Text(
        f"Validation loss at step {one.step}: EMA {number(one.ema)}, non-EMA {number(one.non_ema)}. The difference is "
        f"{apart}, {{chance}} ({one.batches} images).",
        f"第 {one.step} 步的验证损失：EMA {number(one.ema)}，非 EMA {number(one.non_ema)}。"
        f"相差 {apart}，{{chance}}（{one.batches} 张图片）。",
    ).format(chance=chance)


def _agreement(one: Validation, validations: Sequence[Validation]) -> list[Text]:
    """In how many of the last validations the same set was better."""
    line = [each for each in validations if (each.run, each.leg) == (one.run, one.leg)]
    recent = [each for each in line if each.step <= one.step][-_RECENT:]
    if not one.better or len(recent) < 3:
        return []
    agree = sum(each.better == one.better for each in recent)
    return [
        Text(
            f"In {agree} of the last {len(recent)} validations {{set}} had the lower loss.",
            f"最近 {len(recent)} 次验证中，有 {agree} 次是 {{set}} 的损失更低。",
        ).format(set=SETS[one.better])
    ]


def _warnings(data: RunData) -> list[Text]:
    said = {
        "start": Text(
            "The EMA has hardly left the weights that the run began with: its half-life is too long for this run.",
            "EMA 几乎还停在训练开始时的权重：对这次训练来说，它的半衰期太长。",
        ),
        "swing": Text(
            "The non-EMA weights swing to and fro, which an average evens out. A lower learning rate may help.",
            "非 EMA 权重来回摆动，平均可以抹平这种摆动。降低学习率可能有帮助。",
        ),
        "same": Text(
            "At some step the two sets were the same to rounding.", "在某一步，两组权重相同，差别只在舍入误差之内。"
        ),
    }
    return [text for kind, text in said.items() if kind in data.warnings]


def _seen(difference: float | None) -> tuple[Text, ...]:
    if difference is None:
        return ()
    share = f"{difference:.1%}"
    if difference < SAME_PICTURE:
        return (
            Text(
                f"The newest samples of both sets look the same (mean difference {share}).",
                f"两组最新的样图看上去相同（平均差别 {share}）。",
            ),
        )
    return (
        Text(f"The newest samples of both sets differ by {share} on average.", f"两组最新的样图平均相差 {share}。"),
    )
