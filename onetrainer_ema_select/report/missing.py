"""What a page cannot show, each with what to do to have it the next time."""

from __future__ import annotations

from onetrainer_ema_select.report.text import Text, same
from onetrainer_ema_select.report.views import Parts


def not_drawn(title: Text, error: Exception) -> Text:
    """What is said of a curve that could not be drawn."""
    return Text(
        "The curve “{title}” could not be drawn, though there are numbers for it ({error}). Please report this.",
        "曲线“{title}”有数据，但无法画出（{error}）。请报告此问题。",
    ).format(title=title, error=f"{type(error).__name__}: {error}")


def missing(parts: Parts) -> tuple[Text, ...]:
    """A sentence for each thing."""
    data = parts.data
    broken_pictures = sum(copy is None for copy in parts.copies.values())
    charts = {chart.key for chart, _ in parts.charts} | set(parts.undrawn)
    found = [same(text) for text in data.unreadable] + list(parts.undrawn.values())
    samples = [one for prompt in data.prompts for moment in prompt.moments for one in moment.samples]
    sets = {one.set for one in samples}
    if samples and len(sets - {""}) < 2:
        found.append(
            Text(
                "The samples are of one set only. Non-EMA Sampling in OneTrainer's sampling tab, with EMA on, makes "
                "those of both.",
                "样图只有一组。在 OneTrainer 打开 EMA，并打开采样标签页的 Non-EMA Sampling，就会生成两组的样图。",
            )
        )
    if "" in sets:
        found.append(
            Text(
                "Of some samples nothing says which set they are of: the workspace has no configuration of that time.",
                "有些样图无法确定属于哪一组：工作区里没有当时的配置。",
            )
        )
    if broken_pictures:
        found.append(
            Text(
                f"Samples that are no pictures that can be read: {broken_pictures}. They are linked all the same.",
                f"{broken_pictures} 张样图无法读取；仍然给出链接。",
            )
        )
    broken = sum(not point.complete for point in data.points)
    if broken:
        found.append(
            Text(
                f"Backups that are not complete: {broken}. Why stands at each of them.",
                f"{broken} 个备份不完整；原因写在各自下面。",
            )
        )
    lost = [save.path.name for save in data.saves if save.missing]
    found += [
        Text(f"The other set of the save {name} is not there.", f"保存 {name} 的另一组不在。") for name in lost[:10]
    ]
    if not data.validations:
        found.append(
            Text(
                "Validation losses of both sets: switch on Validation in OneTrainer, with a concept of the type "
                "Validation, and EMA.",
                "两组的验证损失：请在 OneTrainer 中打开 Validation，加一个 Validation 类型的概念，并打开 EMA。",
            )
        )
    if "training" not in charts:
        found.append(
            Text(
                "OneTrainer's training loss: there are no TensorBoard files in the workspace's folder tensorboard.",
                "OneTrainer 的训练损失：工作区的 tensorboard 文件夹里没有 TensorBoard 文件。",
            )
        )
    if not data.drift:
        found.append(
            Text(
                "How far the sets are apart over time: it is noted by runs with the plugin and EMA on.",
                "两组之间的距离随时间的变化：启用本插件并打开 EMA 的训练会记录它。",
            )
        )
    if not data.snapshots:
        found.append(
            Text(
                "Averages of other lengths after the fact: ema_select.post_hoc_sigma_rels, for example 0.05, 0.10, "
                "keeps what they are made from.",
                "事后生成其他长度的平均值：设置 ema_select.post_hoc_sigma_rels（例如 0.05, 0.10）会保存所需的内容。",
            )
        )
    return tuple(found)
