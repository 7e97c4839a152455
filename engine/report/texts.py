"""The words of the page, English and Chinese. A key is the same in both; {names} are filled in."""

TEXTS = {
    # the page
    "title": ("Report", "报告"),
    "comparison": ("Comparison", "对比"),
    "worth": ("Worth a look first", "最值得先看"),
    "nothing": ("Nothing stands out.", "没有特别突出的问题。"),
    "glance": ("At a glance", "概览"),
    "learning": ("Learning", "学习过程"),
    "errors": ("Errors worth reading", "值得细读的错误"),
    "slices": ("Slices", "分组成绩"),
    "rows": ("All rows", "逐条结果"),
    "how": ("How the figures are defined", "各项数字的定义"),
    "and_more": ("and {n} more", "另有 {n} 条"),
    "shown_of": ("{n} of {all} are shown", "显示 {all} 中的 {n} 条"),
    "characters": ("{n} characters", "共 {n} 个字符"),
    "made_by": ("Made from {folder}; no network, no script from elsewhere.", "由 {folder} 生成；不访问网络，不含外部脚本。"),
    # at a glance
    "task": ("Task", "任务"),
    "trained_on": ("Data", "数据"),
    "rows_of": ("Rows", "样本数"),
    "options": ("Options that differ from the defaults", "与默认值不同的选项"),
    "all_default": ("All options are at their defaults.", "全部为默认选项。"),
    "time": ("Time", "时间"),
    "time_is": ("started {started}, last written {ended}", "开始于 {started}，最后写入 {ended}"),
    "training_took": ("{minutes} min in training steps", "训练步骤共 {minutes} 分钟"),
    "device": ("Device", "设备"),
    "seed": ("Seed", "随机种子"),
    "commit": ("Commit", "提交"),
    "best_epoch": ("Best epoch", "最佳轮次"),
    "best_of": ("{best} of {all}, by {monitor}", "第 {best} 轮（共 {all} 轮），依据 {monitor}"),
    "stopped_early": ("stopped early", "提前停止"),
    "run_warnings": ("Warnings of the run", "运行中的警告"),
    "no_warnings": ("The run gave no warning.", "运行没有警告。"),
    "data_notes": ("Findings of the data checks", "数据检查的发现"),
    "no_notes": ("The data checks found nothing odd.", "数据检查未发现异常。"),
    "not_checked": (
        "The data folder holds no findings; data_process.py leaves them there.",
        "数据目录中没有检查结果；data_process.py 会写入。",
    ),
    "score": ("Score", "指标"),
    "value": ("Value", "值"),
    "interval": ("95 % interval", "95% 区间"),
    "interval_is": (
        "Intervals: percentile bootstrap over the {n} rows of {part}, {times} resamples, seed {seed_value}. Losses and scores "
        "of your own have none.",
        "区间：对 {part} 的 {n} 行做百分位自助法，重采样 {times} 次，种子 {seed_value}。损失和自定义指标没有区间。",
    ),
    # parts
    "train": ("train", "训练"),
    "dev": ("dev", "验证"),
    "test": ("test", "测试"),
    "out_of_fold": ("out of fold", "折外"),
    # learning
    "no_course": ("This folder holds no metrics.jsonl: nothing is known of the training.", "此目录没有 metrics.jsonl，无训练记录。"),
    "loss": ("Loss", "损失"),
    "train_loss": ("training", "训练"),
    "dev_loss": ("dev", "验证"),
    "dev_scores": ("Dev scores", "验证指标"),
    "lr": ("Learning rate", "学习率"),
    "gradient_norm": ("Gradient norm, before clipping", "梯度范数（裁剪前）"),
    "throughput": ("Throughput, examples/s", "吞吐量（样本/秒）"),
    "step": ("step", "步"),
    "epoch": ("epoch", "轮"),
    "best": ("best", "最佳"),
    "short": (
        "With fewer than two evaluations nothing can be said of over- or underfitting.",
        "评估少于两次，无法判断过拟合或欠拟合。",
    ),
    "overfit": (
        "Overfitting: after epoch {low} the dev loss rose from {dev_low:.3f} to {dev_last:.3f}, while the training loss fell "
        "from {train_low:.3f} to {train_last:.3f}. {monitor} was best in epoch {best}.",
        "过拟合：第 {low} 轮之后验证损失从 {dev_low:.3f} 升到 {dev_last:.3f}，而训练损失从 {train_low:.3f} 降到 {train_last:.3f}。"
        "{monitor} 在第 {best} 轮最好。",
    ),
    "overfit_score_rises": (
        "The dev loss rose from {dev_low:.3f} (epoch {low}) to {dev_last:.3f} while the training loss fell from {train_low:.3f} "
        "to {train_last:.3f}, but {monitor} was best only in epoch {best}: the model grew overconfident before it grew worse.",
        "验证损失从第 {low} 轮的 {dev_low:.3f} 升到 {dev_last:.3f}，训练损失从 {train_low:.3f} 降到 {train_last:.3f}，"
        "但 {monitor} 到第 {best} 轮才最好：模型先变得过于自信，尚未变差。",
    ),
    "underfit": (
        "Underfitting: the last epoch, {last}, was the best, and the dev loss still fell ({dev_before:.3f} to {dev_last:.3f}). "
        "More epochs or a higher rate would probably help.",
        "欠拟合：最后一轮（第 {last} 轮）最好，验证损失仍在下降（{dev_before:.3f} 到 {dev_last:.3f}）。增加轮数或提高学习率可能有帮助。",
    ),
    "level": (
        "Neither over- nor underfitting shows: the dev loss was lowest in epoch {low} ({dev_low:.3f}) and is {dev_last:.3f} at "
        "the end.",
        "未见过拟合或欠拟合：验证损失在第 {low} 轮最低（{dev_low:.3f}），结束时为 {dev_last:.3f}。",
    ),
    # classification
    "per_label": ("By label", "各标签"),
    "per_type": ("By type", "各类型"),
    "label": ("Label", "标签"),
    "type": ("Type", "类型"),
    "precision": ("Precision", "精确率"),
    "recall": ("Recall", "召回率"),
    "f1": ("F1", "F1"),
    "support": ("Support", "数量"),
    "confused": ("Most confused", "最易混淆"),
    "confused_types": ("Types taken for one another", "相互混淆的类型"),
    "none_confused": ("None was confused.", "没有混淆。"),
    "gold": ("Gold", "正确"),
    "predicted": ("Predicted", "预测"),
    "count": ("Count", "次数"),
    "share": ("Of gold", "占正确标签"),
    "matrix": ("Confusion matrix", "混淆矩阵"),
    "matrix_part": (
        "The {n} labels of {all} that are confused most often.",
        "{all} 个标签中最常被混淆的 {n} 个。",
    ),
    "matrix_axes": ("Rows: gold. Columns: predicted.", "行：正确标签。列：预测标签。"),
    "calibration": ("Calibration", "校准"),
    "ece": ("ECE {ece:.4f}", "ECE {ece:.4f}"),
    "confidence": ("Confidence", "置信度"),
    "accuracy": ("Accuracy", "准确率"),
    "histogram": ("Confidence of right and wrong answers", "正确与错误答案的置信度"),
    "right": ("right", "正确"),
    "wrong": ("wrong", "错误"),
    "coverage": ("Coverage against accuracy", "覆盖率与准确率"),
    "coverage_axis": ("Coverage", "覆盖率"),
    "abstain": ("Abstain below", "低于此值则弃答"),
    "answered": ("Answered", "回答比例"),
    "no_probabilities": ("The head gives no probabilities that could be shown.", "该任务头没有可用的概率。"),
    # entities
    "errors_told": ("Errors told apart", "错误分类"),
    "right_entities": ("right", "正确"),
    "missed": ("missed", "漏检"),
    "invented": ("invented", "多检"),
    "wrong_type": ("wrong type", "类型错误"),
    "wrong_border": ("wrong border", "边界错误"),
    "by_length": ("By length of the entity", "按实体长度"),
    "tokens": ("Tokens", "词数"),
    "found_share": ("Recall", "召回率"),
    "right_share": ("Precision", "精确率"),
    "by_seen": ("Seen in training or not", "训练中是否出现过"),
    "seen": ("seen in training", "训练中出现过"),
    "unseen": ("never seen", "未出现过"),
    "no_training": (
        "Cannot be told: the training file is no longer at its place, or each fold had another.",
        "无法区分：训练文件已不在原处，或各折的训练数据不同。",
    ),
    "in_place": ("Texts with errors", "有错误的文本"),
    "all_errors": ("all errors", "全部错误"),
    # multilabel, regression
    "threshold_curve": ("If the threshold were another", "若采用其他阈值"),
    "threshold": ("Threshold", "阈值"),
    "best_threshold": ("best F1 {f1:.4f} at {threshold:.4f}, on these rows", "在这些样本上，阈值 {threshold:.4f} 时 F1 最高，为 {f1:.4f}"),
    "pairs": ("Errors that occur together", "同时出现的错误"),
    "missed_label": ("Missed", "漏掉"),
    "invented_label": ("Added", "多出"),
    "label_errors": ("Errors by label", "各标签的错误"),
    "against": ("Predicted against gold", "预测值与真实值"),
    "residuals": ("Residuals, predicted − gold", "残差（预测 − 真实）"),
    "residual_facts": (
        "Mean {mean:.4g}, standard deviation {std:.4g}, RMSE {rmse:.4g}{r2}.",
        "均值 {mean:.4g}，标准差 {std:.4g}，RMSE {rmse:.4g}{r2}。",
    ),
    # errors
    "suspects": ("Labels that are probably wrong", "很可能标错的标签"),
    "suspects_how": (
        "Rows that the model never trained on, and of which it is sure that they are something else (confident learning). "
        "The surest come first; an overconfident model lists more than are wrong. All are in suspicious.csv.",
        "模型没有训练过、却确信应为其他标签的样本（置信学习）。最可疑的在前；过于自信的模型会多报。全部见 suspicious.csv。",
    ),
    "suspects_folds": (
        "Each row was judged by the fold that never saw it.",
        "每一行由未见过它的那一折判断。",
    ),
    "suspects_training": (
        "Rows of training cannot be judged by a model that learnt them: cross_validate.py gives each a model that did not.",
        "训练样本不能由学过它们的模型判断；cross_validate.py 会让每一行由未见过它的模型判断。",
    ),
    "no_suspects": ("None.", "没有。"),
    "mistakes": ("Most confident mistakes", "最自信的错误"),
    "likely": ("Likely", "更可能"),
    "given": ("Given", "标注"),
    "near": ("nearly the same in training, with another label", "训练中几乎相同、但标签不同的文本"),
    "margin": ("Score", "得分"),
    "id": ("Id", "编号"),
    "text": ("Text", "文本"),
    "part": ("Part", "部分"),
    # slices
    "by_text_length": ("By length of the text", "按文本长度"),
    "unit_tokens": ("tokens", "词"),
    "unit_characters": ("characters", "字符"),
    "by_cut": ("Cut at --max_length", "因 --max_length 被截断"),
    "by_windows": ("Read in several windows", "分多个窗口读取"),
    "by_column": ("By column {name}", "按列 {name}"),
    "yes": ("yes", "是"),
    "no": ("no", "否"),
    "no_slices": ("All texts are of one length, and none is cut: there is nothing to slice by.", "文本长度相同且未截断，无可分组。"),
    # rows
    "search": ("Search", "搜索"),
    "all_labels": ("all labels", "全部标签"),
    "all_rows": ("right and wrong", "正确与错误"),
    "only_right": ("right only", "仅正确"),
    "only_wrong": ("wrong only", "仅错误"),
    "left_out": (
        "{n} of {all} rows are in this page, wrong ones first, so that it stays small; the rest is in answers/.",
        "为保持页面小巧，此页含 {all} 行中的 {n} 行，错误的优先；其余见 answers/。",
    ),
    "needs_script": ("Searching and sorting need JavaScript.", "搜索与排序需要 JavaScript。"),
    "previous": ("Previous", "上一页"),
    "next": ("Next", "下一页"),
    "rows_found": ("rows", "行"),
    # worth a look
    "look_suspects": (
        "Of {n} labels the model is sure that they are wrong; first {part} row {id}: given {given}, likely {likely}.",
        "模型确信有 {n} 个标签标错；首先是 {part} 中编号 {id}：标注 {given}，更可能 {likely}。",
    ),
    "look_confused": (
        "{task}: {gold} is taken for {predicted} {count} times, {share:.0%} of its rows and {of_errors:.0%} of all mistakes.",
        "{task}：{gold} 被当作 {predicted} {count} 次，占其样本的 {share:.0%}，占全部错误的 {of_errors:.0%}。",
    ),
    "look_entities": (
        "{task}: {count} of {all} entity errors are {verdict}, most often of type {type}.",
        "{task}：{all} 个实体错误中 {count} 个是{verdict}，{type} 类型最多。",
    ),
    "look_unseen": (
        "{task}: of entities never seen in training {unseen:.0%} are found, of seen ones {seen:.0%}.",
        "{task}：训练中未出现的实体找到 {unseen:.0%}，出现过的找到 {seen:.0%}。",
    ),
    "look_zero": (
        "{task}: {label} is never right ({n} such with at least 5 rows).",
        "{task}：{label} 从未预测正确（至少 5 条样本的此类标签共 {n} 个）。",
    ),
    "look_overconfident": (
        "{task}: the model is {more} sure than right: mean confidence {confidence:.2f}, accuracy {accuracy:.2f}, ECE {ece:.3f}.",
        "{task}：平均置信度 {confidence:.2f}，准确率 {accuracy:.2f}，ECE {ece:.3f}，{more}。",
    ),
    "more_sure": ("more", "过于自信"),
    "less_sure": ("less", "不够自信"),
    "look_slice": (
        "{score} is {value:.4f} where {by} is {name} ({rows} rows), {whole:.4f} over all.",
        "{by}为 {name} 时（{rows} 行）{score} 为 {value:.4f}，整体为 {whole:.4f}。",
    ),
    "look_together": (
        "{task}: {missed} is missed and {invented} added instead in {count} texts.",
        "{task}：有 {count} 条文本漏掉 {missed} 而多出 {invented}。",
    ),
    "look_residual": (
        "{task}: the largest error is {size:.4g} ({part} row {id}: gold {gold:.4g}, predicted {predicted:.4g}).",
        "{task}：最大误差为 {size:.4g}（{part} 中编号 {id}：真实 {gold:.4g}，预测 {predicted:.4g}）。",
    ),
    "look_warning": ("The run warned: {message}", "运行警告：{message}"),
    # comparison
    "runs": ("Runs", "各次运行"),
    "difference": ("Difference", "差值"),
    "baseline": ("baseline", "基准"),
    "paired": (
        "Differences are paired: both runs are resampled on the same {n} rows of {part}. Bold: the interval leaves out 0.",
        "差值为配对比较：两次运行在 {part} 的同样 {n} 行上重采样。加粗：区间不含 0。",
    ),
    "not_common": (
        "{n} rows of {part} are not in all runs and left out of differences and rows.",
        "{part} 中有 {n} 行并非各次运行共有，未计入差值与逐条结果。",
    ),
    "differing": ("Options that differ", "不同的选项"),
    "no_differing": ("None.", "无。"),
    "default": ("default", "默认"),
    "disagree": ("Rows that one has right and another wrong", "一方正确而另一方错误的样本"),
    "monitored": ("{monitor} on dev", "验证集 {monitor}"),
    # how
    "how_lines": (
        (
            "Scores are those of eval.json (of a cross-validation folds.json), labels' those of report.json.",
            "Intervals are the 2.5th and 97.5th percentile of the scores of resampled rows.",
            "ECE: mean over rows of |accuracy − mean confidence| of the row's bin, ten bins of equal width.",
            "Coverage: share of rows whose answer is at least so probable; accuracy among these.",
            "Entities: wrong type has the same borders; wrong border the same type and a common token; the rest is missed or "
            "invented.",
            "Confidence of a text with tags or spans is that of its surest wrong one in lists of mistakes.",
            "Near duplicates: cosine of character trigrams of at least 0.7.",
        ),
        (
            "指标与 eval.json（交叉验证为 folds.json）一致，各标签与 report.json 一致。",
            "区间为重采样行上指标的第 2.5 与 97.5 百分位。",
            "ECE：每行所在区间的 |准确率 − 平均置信度| 的均值，十个等宽区间。",
            "覆盖率：答案概率不低于该值的行的比例；准确率在这些行上计算。",
            "实体：类型错误指边界相同；边界错误指类型相同且有共同的词；其余为漏检或多检。",
            "错误列表中，带标签序列或片段的文本取其最自信的错误处的置信度。",
            "近似重复：字符三元组余弦不低于 0.7。",
        ),
    ),
}


class Words:
    """The page's words in a language: words("score"), words("best_of", best=3, …)."""

    def __init__(self, language):
        self.language, self.column = language, ("en", "zh").index(language)

    def __call__(self, key, **values):
        text = TEXTS[key][self.column]
        return text.format(**values) if values else text


def language_of(choice, texts):
    """"en" or "zh"; "auto": Chinese if most letters of the texts are."""
    if choice != "auto":
        return choice
    joined = "".join(text[:200] for text in texts[:500])
    chinese = sum("\u4e00" <= c <= "\u9fff" for c in joined)
    return "zh" if 2 * chinese > sum(c.isalpha() for c in joined) else "en"
