"""The page's own words: what does not depend on the run. What does is written where it is found out."""

from __future__ import annotations

from onetrainer_ema_select.report.text import EMA, NON_EMA, Text

WORDS: dict[str, Text] = {
    "skip": Text("To the pictures", "跳到图片"),
    "over": Text("EMA and non-EMA of one run", "一次训练的 EMA 与非 EMA"),
    "dark": Text("Dark", "深色"),
    "light": Text("Light", "浅色"),
    "how_sure": Text("How sure:", "把握："),
    "how_to": Text("The commands for it", "相应的命令"),
    "run": Text("The run on one line", "训练一览"),
    "ema": EMA,
    "non_ema": NON_EMA,
    "both": Text("both", "两组"),
    "incomplete": Text("not complete", "不完整"),
    "line_hint": Text(
        "Point at a mark, or go there with Tab and the arrow keys, to read what it is. Enter leads to its commands.",
        "把鼠标指向标记，或用 Tab 和方向键移到标记上，这里会显示它是什么。按回车键跳到相应的命令。",
    ),
    "no_line": Text(
        "There is nothing to draw: no backup, save or sample says which step it is of.",
        "没有可画的内容：没有任何备份、保存或样图说明它属于哪一步。",
    ),
    "pictures": Text("Pictures", "图片"),
    "no_script": Text(
        "The pictures are shown by JavaScript, which is off here. The originals are linked below each prompt.",
        "图片由 JavaScript 显示，而这里已将其关闭。每条提示词下面有原图的链接。",
    ),
    "mode": Text("How to compare", "比较方式"),
    "mode_side": Text("Side by side", "并排"),
    "mode_swipe": Text("Swipe", "滑动"),
    "mode_blend": Text("Blend", "叠加"),
    "together": Text("Move all prompts together", "所有提示词一起移动"),
    "no_picture": Text("No picture of this step", "这一步没有图片"),
    "step": Text("Step", "步"),
    "epoch": Text("Epoch", "轮次"),
    "mix": Text("EMA ↔ non-EMA", "EMA ↔ 非 EMA"),
    "files": Text("Original files", "原始文件"),
    "no_samples": Text(
        "There are no samples in this workspace. Enable some in OneTrainer's sampling tab, and Non-EMA Sampling there "
        "to get those of both sets.",
        "工作区里没有样图。请在 OneTrainer 的采样标签页启用采样，并打开其中的 Non-EMA Sampling 以得到两组的样图。",
    ),
    "curves": Text("Curves", "曲线"),
    "no_curves": Text(
        "There are no measurements: neither TensorBoard's files nor the plugin's own lists are in this workspace.",
        "没有测量数据：工作区里既没有 TensorBoard 的文件，也没有本插件的记录。",
    ),
    "chart_hint": Text(
        "Point at the curve, or use the arrow keys, to read its values.", "把鼠标指向曲线，或使用方向键，可读出数值。"
    ),
    "table": Text("As a table", "表格"),
    "concepts": Text("By concept", "按概念"),
    "concept": Text("Concept", "概念"),
    "todo": Text("What to do", "下一步"),
    "todo_note": Text(
        "Open a point to get the commands for it. They are typed in OneTrainer's folder, in its environment.",
        "打开一个点即可得到相应的命令。在 OneTrainer 的文件夹和环境中输入。",
    ),
    "copy_it": Text("Copy", "复制"),
    "copied": Text("Copied", "已复制"),
    "no_points": Text(
        "There is no backup in this workspace, so nothing can be exported or resumed from.",
        "工作区里没有备份，所以无法导出，也无法继续训练。",
    ),
    "saves": Text("Models already written", "已写好的模型"),
    "as_list": Text("As a list", "列表"),
    "set": Text("Set", "权重组"),
    "file": Text("File", "文件"),
    "size": Text("Size", "大小"),
    "missing": Text("What is missing here", "这里缺少什么"),
    "earlier": Text("Earlier", "更早"),
    "later": Text("Later", "更晚"),
    "other_set": Text("Other set", "另一组"),
    "original": Text("The file itself", "原文件"),
    "close": Text("Close", "关闭"),
}

#: What the page's script fills in itself.
SCRIPT_WORDS: dict[str, Text] = {
    "where": Text("step {step}, epoch {epoch}", "第 {step} 步，第 {epoch} 轮"),
    "differ": Text("the sets differ by {share} %", "两组相差 {share} %"),
    "alt": Text("{set}, step {step}: {prompt}", "{set}，第 {step} 步：{prompt}"),
    "step": Text("step {step}", "第 {step} 步"),
    "ema": EMA,
    "non-ema": NON_EMA,
    "unknown": Text("set not known", "权重组未知"),
    "gone": Text(
        "(The original is not where it was: this is the page's own small copy.)",
        "（原图已不在原处：这是页面自带的小图。）",
    ),
    "select": Text(
        "This browser lets nothing be copied from a file. The command is selected: press Ctrl and C.",
        "此浏览器不允许从文件中复制。命令已选中：请按 Ctrl+C。",
    ),
    "copied": Text("Copied", "已复制"),
    "chart_hint": WORDS["chart_hint"],
}

KINDS = {
    "backup": Text("Backup", "备份"),
    "milestone": Text("Milestone", "里程碑"),
    "snapshot": Text("Post-hoc snapshot", "事后 EMA 快照"),
}
