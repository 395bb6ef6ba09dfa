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
        "audit cell": {"several": "mean of {ranks} processes: best {best_mean_percent:.2f}, last {last_mean_percent:.2f} (step {last_mean_step:,})",
                       "single": "one process: best {best_mean_percent:.2f}, last {last_mean_percent:.2f} (step {last_mean_step:,})"},
        "headline": "**The headline has not been run**: no GPU that PaddlePaddle supports was at hand, and on 2 cores it would take "
                    "months. What was run, through the same code:",
        "headline run": "What was run:",
        "recipe header": (("arm", "test top-1, %"), ("last weights", "NLL, nats", "calibration error, points", "n, and their logs")),
        "minus": "minus {}",
        "runs": "Means over n seeds ± half of the 95 % interval (Student's t): where the mean over very many seeds lies, on this test "
                "set. \"Minus\" is top-1 in points minus that of another arm, seed by seed over the seeds that both have, with its "
                "interval; bold where that does not hold 0. Of twenty intervals one misses the truth by chance, and the tables have "
                "many. n = 1 shows that the path works and says nothing about whether R-Drop helps. All columns but \"last "
                "weights\" are of the weights that were best on held-out training images, unless the row says otherwise; choosing "
                "among a run's checkpoints on few images adds noise of its own. A baseline of twice the steps makes as many passes "
                "through the network as two views do, and takes a little longer ([time](README.md#what-a-step-costs)). The learning rates of the two "
                "`cifar100` studies are the best of four for their baseline of 400 steps on held-out images ([how](logs/tuning)); no other arm was tuned, nor "
                "was `digits`. `bash run_train.sh --study digits --jobs 2` (25 minutes on 2 cores), `--study cifar100 --jobs 2` (2 hours) and "
                "`--study cifar100_few --jobs 2` (1.5 hours) repeat the studies, the commands in [logs/README.md](logs/README.md) single runs.",
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
        "against": {"steps": "baseline, as many steps", "compute": "baseline, twice the steps",
                    "no KL": "two views without KL", "whole": "R-Drop, no block shared"},
        "nll differences": "The same differences in NLL, nats; lower is better:",
        "no pairs": "No run with R-Drop stands beside a baseline of the same settings and seed yet.",
        "short answer": "**Does R-Drop help?** Its top-1 was {}. Counted are all strengths of all studies, and better or worse is a "
                        "difference whose 95 % interval does not hold 0. At the strength of the paper's text, 0.3, in points and nats:",
        "short answer part": "better than that of the {against}, in {0} of {n} comparisons and worse in {1} (with the last weights {2} and {3})",
        "short answer joint": "; ",
        "answer header": {"first": ("study", "seeds"), "accuracy": "top-1 minus {}", "nll": "NLL minus {}"},
        "second view finding": "At no strength was top-1 better than that of the same two views without the KL: what R-Drop gained over "
                               "the baselines here, it gained by the second view.",
        "shared finding": "In `{recipe}` views that share their first {blocks} blocks keep {kept} of the {whole} points that R-Drop "
                          "of the same strength has over the baseline of as many steps ([what they cost](README.md#what-a-step-costs)).",
        "clipping finding": "In `{recipe}` gradients are clipped to the norm {limit:g}. Before that it was {small:.1f} on average "
                            "({smallest}) to {large:.1f} ({largest}), and {least:.1f} or more in every record of every run: no arm "
                            "takes larger steps than another, and a stronger KL takes its share of them from the cross-entropy.",
        "scope": "These are small: 400 updates of `cifar100_vit_ti16` are five epochs of 5,000 images, when every further update still "
                 "helps a lot, of `cifar100_vit_ti16_few` 26 epochs of 1,000 images; the 1,000 of `digits` are 58 epochs. They do not say "
                 "what R-Drop does in 10,000 updates of ViT-B/16. The headline has the strength 9.6 (KL summed over 32), since the "
                 "paper's figure presumably comes from the official code, which computes that.",
        "from to": "{} to {}",
        "claims header": ("claim", "the logs support it", "why"),
        "claims": "What the audit of the published logs says about the claims made on them:",
        "supported": {"yes": "yes", "no": "**no**", "cannot tell": "cannot tell"},
        "claims short": "Of the accuracies that were claimed with these logs, they support {yes}; they do not support {no}; they leave "
                        "open {cannot tell} ([who claimed it, and why](logs/published/audit.json)).",
        "and": ", ",
        "at the end": " at the end of training",
        "none": "none",
        "raw range": "; lowest to highest {:.2f} – {:.2f}, n = {}",
        "raw header": ("seed", "run", "test top-1 of the best weights (of the last)", "time", "command"),
        "repeated": ", again: not counted",
        "raw cell": "{:.2f} % ({:.2f} %), {:,} images",
        "more": "More figures and an explanation on one page: [images/report.html](images/report.html), or `.venv/bin/python -m "
                "reproduce.report --html`. Two runs image by image, and whether one repeats the other to the last digit: "
                "`.venv/bin/python -m reproduce.report --compare RUN_A RUN_B`.",
    },
    "cn": {
        "index": 1,
        "arm": {"baseline": "基线", "no KL": "两个视图，无 KL", "summed": "KL 在 {} 张上求和", "averaged": "视图取平均",
                "shared": "前 {} 个 block 共享", "steps": "{:,} 步", "comma": "，"},
        "not run": "尚未运行",
        "published header": ("模型", "数据", "论文 {}", "官方代码 {}", "Paddle 移植版所称 {}", "其日志所示 {}", "其他", "本项目"),
        "published": "top-1（%），除注明外均在整个测试集上统计。没有在这里运行过的行都有标明；没有达到的目标也留在表中。",
        "no figure": "无数字",
        "audit cell": {"several": "{ranks} 个进程平均：最高 {best_mean_percent:.2f}，最后 {last_mean_percent:.2f}（第 {last_mean_step:,} 步）",
                       "single": "单进程：最高 {best_mean_percent:.2f}，最后 {last_mean_percent:.2f}（第 {last_mean_step:,} 步）"},
        "headline": "**主任务尚未运行**：手头没有 PaddlePaddle 支持的 GPU，而在 2 核 CPU 上需要数月。"
                    "用同一套代码实际运行过的有：",
        "headline run": "实际运行过的有：",
        "recipe header": (("做法", "测试集 top-1，%"), ("最后的权重", "NLL，nat", "校准误差，百分点", "n 与日志")),
        "minus": "减去{}",
        "runs": "数值为 n 个种子的平均 ± 95 % 区间（Student t）的一半：种子非常多时的平均值在这个测试集上所处的范围。“减去”各列是 top-1 减去另一做法的 top-1（百分点），"
                "在双方共有的种子上逐个相减，附其区间；粗体：区间不含 0。二十个区间中平均有一个会偶然不含真值，而表中区间很多。n = 1 只说明整条路径可用，不能说明 R-Drop 是否有效。"
                "除“最后的权重”一列外，除该行注明外，权重均由留出的训练图片选出；在少量图片上从一次训练的各检查点中选择，本身也带来噪声。步数加倍的基线通过网络的次数与两个视图相同，时间略长（[时间](README_cn.md#一步的代价)）。"
                "两个 `cifar100` 实验的学习率是其 400 步基线在留出图片上四个学习率中最好的（[过程](logs/tuning)）；其他做法与 `digits` 没有调过。`bash run_train.sh --study digits --jobs 2`（2 核 25 分钟）、"
                "`--study cifar100 --jobs 2`（2 小时）与 `--study cifar100_few --jobs 2`（1.5 小时）重复这些实验，[logs/README.md](logs/README.md) 中有单次训练的命令。",
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
        "against": {"steps": "步数相同的基线", "compute": "步数加倍的基线", "no KL": "两个视图、无 KL", "whole": "不共享 block 的 R-Drop"},
        "nll differences": "同样的差，NLL（nat），越低越好：",
        "no pairs": "目前还没有设置与种子都相同的 R-Drop 与基线可供比较。",
        "short answer": "**R-Drop 有用吗？** 就 top-1 而言，全部实验的全部强度中，{}；只计差的 95 % 区间不含 0 的情形。按论文正文的强度 0.3，"
                        "各差值（百分点与 nat）为：",
        "short answer part": "与“{against}”相比，{n} 次比较中更好 {0} 次，更差 {1} 次（用最后的权重：{2} 与 {3}）",
        "short answer joint": "；",
        "answer header": {"first": ("实验", "种子"), "accuracy": "top-1 减去{}", "nll": "NLL 减去{}"},
        "second view finding": "没有一种强度的 top-1 高于同样两个视图而无 KL 的训练：R-Drop 在这里相对基线的增益，来自第二个视图。",
        "shared finding": "`{recipe}` 中，同样强度的 R-Drop 比步数相同的基线高 {whole} 个百分点，前 {blocks} 个 block 共享时分别剩下 {kept}"
                          "（[代价](README_cn.md#一步的代价)）。",
        "clipping finding": "`{recipe}` 中梯度范数裁剪到 {limit:g}，裁剪前平均为 {small:.1f}（{smallest}）至 {large:.1f}（{largest}），任何一次训练的任何一条记录都不低于 {least:.1f}："
                            "没有哪种做法的步子更大，KL 越强，交叉熵在其中所占的份额越小。",
        "scope": "这些实验都很小：`cifar100_vit_ti16` 的 400 步是 5,000 张图片的五个 epoch，此时每多训练一步仍有明显帮助，`cifar100_vit_ti16_few` 则是 1,000 张图片的 26 个 epoch；"
                 "`digits` 的 1,000 步是 58 个 epoch。它们都不能说明 R-Drop 在 ViT-B/16 的 10,000 步中的作用。主任务的强度是 9.6（KL 在 32 张上求和），"
                 "因为论文的数字应当来自官方代码，而官方代码的强度就是如此。",
        "from to": "{} 至 {}",
        "claims short": "随这些日志一同宣布的精度：得到日志支持的：{yes}；没有得到支持的：{no}；无法判断的：{cannot tell}"
                        "（[出处与理由](logs/published/audit.json)）。",
        "and": "、",
        "at the end": "（训练结束时）",
        "none": "无",
        "more": "更多图与讲解见单页报告 [images/report.html](images/report.html)，或运行 `.venv/bin/python -m reproduce.report --html`。"
                "逐张图片比较两次训练，并判断是否逐位相同：`.venv/bin/python -m reproduce.report --compare RUN_A RUN_B`。",
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
        "`{recipe}`, R-Drop against its baseline of as many updates, which makes half as many passes through the network: the mean "
        "over seeds and the range they span.",
        "`{recipe}`：R-Drop 与步数相同的基线（通过网络的次数为其一半），各种子的平均与范围。",
    ),
    "strength": (
        "`{recipe}`: test accuracy against the strength of the KL term; 0.3 is what the paper's formula says, 2.4 the Paddle port's "
        "sum over micro-batches of 8 images, 9.6 the official code's over 32.",
        "`{recipe}`：测试精度与 KL 项强度的关系；0.3 是论文公式的强度，2.4 来自 Paddle 移植版在 8 张图片的 micro-batch 上求和，9.6 来自官方代码在 32 张上求和。",
    ),
    "cost": (
        "`{recipe}`: accuracy against the time of training. Green: both views share the first blocks and part from there on, "
        "which is cheaper and not the paper's R-Drop; its strength is that of the R-Drop shown. The time of an update is "
        "[measured](logs/bench) by itself on two threads; the runs had one thread each and shared their machine.",
        "`{recipe}`：精度与训练时间。绿色：两个视图共享前若干个 block，从其后分开，更便宜，但不是论文的 R-Drop；其强度与图中的 R-Drop 相同。"
        "每步时间为用两个线程[单独测量](logs/bench)；训练各用一个线程，机器上还有别的任务。",
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
