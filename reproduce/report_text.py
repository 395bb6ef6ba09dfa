"""The words of the result tables in both languages; `{}` is where figures go."""
# ruff: noqa: E501 (sentences; Chinese counts double)

from reproduce.results import ARM_WORDS

LANGUAGES = ("en", "cn")

TEXT = {
    "en": {
        "index": 0,  # of pairs in literature.py
        "arm": ARM_WORDS,
        "not run": "not run yet",
        "published header": ("model", "data", "paper {}", "official code {}", "Paddle port, as claimed {}",
                             "the same, as its logs say {}", "others", "ours"),
        "published": "Top-1 in %, each on the whole test set unless a note says otherwise. A row that was not run here says "
                     "so, and a target that was not reached stays.",
        "no figure": "no figure",
        "audit cell": "{best_mean:.2f} best mean of {ranks} processes, {last_mean:.2f} its last; {single:.2f} best of one "
                      "process, {single_last:.2f} its last",
        "headline": "**The headline has not been run**: no GPU that PaddlePaddle supports was at hand, and `--dry_run` says "
                    "at least 300 days for the 2 cores that were. What was run, through the same code:",
        "headline run": "What was run:",
        "recipe header": (("arm", "test top-1, %"), ("NLL, nats", "calibration error, points", "n, and their logs")),
        "minus": "minus {}",
        "runs": "Means over n seeds ± half of the 95 % interval (Student's t) of the mean: how far other seeds would move it, on "
                "this test set. \"Minus\" is top-1 in points minus that of another arm, seed by seed over the seeds that both "
                "have, with its interval; bold where that does not hold 0. Of twenty intervals one misses the truth by chance, "
                "and the tables have many. n = 1 shows that the path works and says nothing about whether R-Drop helps. The "
                "weights are those that were best on held-out training images, unless the row says otherwise. The learning "
                "rate is the best for the baseline on held-out images ([how](logs/tuning)), the same for all arms. `bash "
                "run_train.sh --study digits --jobs 2`, `--study cifar100 --jobs 2` and `--study cifar100_few --jobs 2` repeat all, the "
                "commands in [logs/README.md](logs/README.md) single runs, on the same processor to the last digit.",
        "test set": "chosen on the test set",
        "not test": {"validation": "validation images: there is no test set", "all": "all images, training images too"},
        "dirty": "from a changed working tree",
        "thread": "one thread, {1}",
        "threads": "{} threads, {}",
        "processes": "{} processes",
        "recipe": "**`{recipe}`**: {model} {start}, {dataset}, {images}, {size} px, {steps:,} steps of {batch}; on {hardware}.",
        "scratch": "from random weights",
        "pretrained": "from `{}`",
        "all images": "all training images but those held out",
        "images a class": "{} training images a class",
        "test images": "{:,} test images",
        "differences header": ("run", "arm"),
        "against": {"steps": "baseline, as many steps", "compute": "baseline, as much compute",
                    "no KL": "two views without KL", "whole": "R-Drop, no block shared"},
        "nll differences": "The same differences in NLL, nats; lower is better:",
        "no pairs": "No run with R-Drop stands beside a baseline of the same settings and seed yet.",
        "short answer": "**Does R-Drop help?** Against plain training with as much compute it was better in top-1 at {better} of the {n} "
                        "strengths tried here, and worse at {worse}. At how many of its strengths it was better or worse than what it is "
                        "compared with (where the 95 % interval of the difference does not hold 0; the others show no difference), "
                        "and the mean differences, lowest to highest:",
        "answer header": ("study", "seeds", "R-Drop against", "strengths", "top-1 better / worse", "points",
                          "NLL better / worse", "nats"),
        "scope": "These are small: 400 updates of `cifar100_vit_ti16` are five epochs of 5,000 images, when every further "
                 "update still helps a lot; the 1,000 of `digits` are 58 epochs. Neither says what R-Drop does in 10,000 updates of ViT-B/16.",
        "from to": "{} to {}",
        "claims header": ("claim", "the logs support it", "why"),
        "claims": "What the audit of the published logs says about the claims made on them:",
        "supported": {"yes": "yes", "no": "**no**", "cannot tell": "cannot tell"},
        "claims short": "Accuracies that were claimed with these logs: supported by them {yes}; not supported {no}; undecided "
                        "{cannot tell} ([why](logs/published/audit.json)).",
        "and": ", ",
        "at the end": " at the end of training",
        "none": "none",
        "raw mean": "{}; lowest to highest {:.2f} – {:.2f}, n = {}",
        "raw header": ("seed", "run", "test top-1 of the best weights (of the last)", "time", "command"),
        "repeated": ", again: not counted",
        "raw cell": "{:.2f} % ({:.2f} %), {:,} images",
        "more": "More figures and an explanation on one page: [images/report.html](images/report.html), or `python -m "
                "reproduce.report --html`. Two runs image by image: `python -m reproduce.report --compare RUN_A RUN_B`.",
    },
    "cn": {
        "index": 1,
        "arm": {"baseline": "基线", "no KL": "两个视图，无 KL", "summed": "KL 在 {} 张上求和", "averaged": "视图取平均",
                "shared": "前 {} 个 block 共享", "steps": "{:,} 步", "comma": "，"},
        "not run": "尚未运行",
        "published header": ("模型", "数据", "论文 {}", "官方代码 {}", "Paddle 移植版所称 {}", "其日志所示 {}", "其他", "本项目"),
        "published": "top-1（%），除注明外均在整个测试集上统计。没有在这里运行过的行都有标明；没有达到的目标也留在表中。",
        "no figure": "无数字",
        "audit cell": "{ranks} 个进程平均最高 {best_mean:.2f}，最后 {last_mean:.2f}；单进程最高 {single:.2f}，最后 {single_last:.2f}",
        "headline": "**主任务尚未运行**：手头没有 PaddlePaddle 支持的 GPU，而 `--dry_run` 估计在手头的 2 核 CPU 上至少需 300 天。"
                    "用同一套代码实际运行过的有：",
        "headline run": "实际运行过的有：",
        "recipe header": (("做法", "测试集 top-1，%"), ("NLL，nat", "校准误差，百分点", "n 与日志")),
        "minus": "减去{}",
        "runs": "数值为 n 个种子的平均 ± 平均值的 95 % 区间（Student t）的一半：它说明换一批种子时，在这个测试集上平均值会变动多少。“减去”各列是 top-1 减去另一做法的 top-1（百分点），"
                "在双方共有的种子上逐个相减，附其区间；粗体：区间不含 0。二十个区间中平均有一个会偶然不含真值，而表中区间很多。n = 1 只说明整条路径可用，不能说明 R-Drop 是否有效。"
                "除该行注明外，权重均由留出的训练图片选出。学习率按基线在留出图片上的结果选定（[过程](logs/tuning)），各做法相同。`bash run_train.sh --study digits --jobs 2`、"
                "`--study cifar100 --jobs 2` 与 `--study cifar100_few --jobs 2` 重复全部训练，[logs/README.md](logs/README.md) 中有单次训练的命令；同样的处理器上逐位相同。",
        "test set": "在测试集上选出",
        "not test": {"validation": "验证图片：没有测试集", "all": "全部图片，含训练图片"},
        "dirty": "工作目录有未提交的改动",
        "thread": "单线程，{1}",
        "threads": "{} 线程，{}",
        "processes": "{} 个进程",
        "recipe": "**`{recipe}`**：{model}，{start}，{dataset}，{images}，{size} px，{steps:,} 步，batch {batch}；{hardware}。",
        "scratch": "随机初始权重",
        "pretrained": "初始权重 `{}`",
        "all images": "除留出者外的全部训练图片",
        "images a class": "每类 {} 张训练图片",
        "test images": "{:,} 张测试图片",
        "differences header": ("训练", "做法"),
        "against": {"steps": "步数相同的基线", "compute": "计算量相同的基线", "no KL": "两个视图、无 KL", "whole": "不共享 block 的 R-Drop"},
        "nll differences": "同样的差，NLL（nat），越低越好：",
        "no pairs": "目前还没有设置与种子都相同的 R-Drop 与基线可供比较。",
        "short answer": "**R-Drop 有用吗？** 与计算量相同的普通训练相比，这里试过的 {n} 种强度中，top-1 更好的有 {better} 种，更差的有 {worse} 种。下表为与各对照相比更好、更差的强度数"
                        "（差的 95 % 区间不含 0；其余未显示差别），以及各强度平均差的范围：",
        "answer header": ("实验", "种子", "R-Drop 与之相比", "强度数", "top-1 更好 / 更差", "百分点", "NLL 更好 / 更差", "nat"),
        "scope": "这些实验都很小：`cifar100_vit_ti16` 的 400 步是 5,000 张图片的五个 epoch，此时多训练几步最有用；`digits` 的 1,000 步是 58 个 epoch。"
                 "它们都不能说明 R-Drop 在 ViT-B/16 的 10,000 步中的作用。",
        "from to": "{} 至 {}",
        "claims short": "随这些日志一同宣布的精度：得到日志支持的：{yes}；没有得到支持的：{no}；无法判断的：{cannot tell}"
                        "（[理由](logs/published/audit.json)）。",
        "and": "、",
        "at the end": "（训练结束时）",
        "none": "无",
        "more": "更多图与讲解见单页报告 [images/report.html](images/report.html)，或运行 `python -m reproduce.report --html`。"
                "逐张图片比较两次训练：`python -m reproduce.report --compare RUN_A RUN_B`。",
    },
}  # fmt: skip

# Of the figures, by plot.Drawing.kind; {recipe} is filled in.
CAPTIONS = {
    "published_accuracy": (
        "The published logs: the highest values are those of one rank, which counted a quarter of the test set; the black "
        "line is the accuracy on all of it.",
        "公布的日志：最高的数值来自一个只统计了四分之一测试集的进程；黑线才是整个测试集上的精度。",
    ),
    "published_loss": (
        "The published losses begin near 16 ln(100) and are divided by 16 here, the steps of accumulation over which they "
        "were added up.",
        "公布的损失从约 16 ln(100) 开始，这里除以 16，即相加的梯度累积步数。",
    ),
    "kl_weight": (
        "Summed over the micro-batch, the KL term is as strong as the micro-batch is large: official defaults 9.6, the "
        "paper's formula 0.3. Here `--kl_sum_over` says it.",
        "KL 在 micro-batch 上求和时，其强度与 micro-batch 的大小成正比：官方默认设置为 9.6，论文公式为 0.3。这里由 `--kl_sum_over` 给出。",
    ),
    "pair": (
        "`{recipe}`, R-Drop against its baseline of as many updates, which takes half the compute: the mean over seeds and the "
        "range they span.",
        "`{recipe}`：R-Drop 与步数相同的基线（计算量为其一半），各种子的平均与范围。",
    ),
    "strength": (
        "`{recipe}`: test accuracy against the strength of the KL term; 0.3 is what the paper's formula says, 2.4 the Paddle port's "
        "sum over micro-batches of 8 images, 9.6 the official code's over 32.",
        "`{recipe}`：测试精度与 KL 项强度的关系；0.3 是论文公式的强度，2.4 来自 Paddle 移植版在 8 张图片的 micro-batch 上求和，9.6 来自官方代码在 32 张上求和。",
    ),
    "cost": (
        "`{recipe}`: accuracy against the time of training. Green: both views share the first blocks and part from there on, "
        "which is cheaper and not the paper's R-Drop; its strength is that of the R-Drop shown. The time of an update is "
        "[measured](logs/bench) by itself, for the runs shared their machine.",
        "`{recipe}`：精度与训练时间。绿色：两个视图共享前若干个 block，从其后分开，更便宜，但不是论文的 R-Drop；其强度与图中的 R-Drop 相同。"
        "每步时间为[单独测量](logs/bench)，因为训练时机器上还有别的任务。",
    ),
    "reliability": (
        "`{recipe}`: accuracy against confidence, all seeds of an arm together.",
        "`{recipe}`：置信度与精度，各做法的全部种子合在一起。",
    ),
    "growth": (
        "The growth-stage example on 158 tomato photos, one seed: a check of the path, no evidence about R-Drop.",
        "生长阶段的例子：158 张番茄照片，一个种子；只检查流程，不是关于 R-Drop 的证据。",
    ),
    "superclasses": (
        "`{recipe}`: which of the 20 superclasses of CIFAR-100 are taken for which.",
        "`{recipe}`：CIFAR-100 的 20 个大类之间的混淆。",
    ),
}
