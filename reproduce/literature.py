"""What others published for ViT with R-Drop and without it, each figure with its source; the only place for them.

Texts are pairs, English and Chinese; figures stand in quotes as they were published, top-1 in %.
"""
# ruff: noqa: E501 (sentences; Chinese counts double)

from dataclasses import dataclass

_PORT = "https://github.com/zbp-xxxp/R-Drop-Paddle"

# In the order in which the notes below the table number them.
SOURCES = {
    "paper": (
        "Paper, table \"image classification\"; 92.64 looks quoted, not run anew (inferred).",
        "论文“图像分类”一表；92.64 看来是引用的，并非重新训练（推断）。",
    ),
    "official": (
        "[dropreg/R-Drop](https://github.com/dropreg/R-Drop) `vit_src` comes without figures and logs; in its "
        "[issue #25](https://github.com/dropreg/R-Drop/issues/25) a co-author gives the settings of the 224 px row.",
        "[dropreg/R-Drop](https://github.com/dropreg/R-Drop) 的 `vit_src` 没有公布数字和日志；224 px 一行的设置是一位作者在其 "
        "[issue #25](https://github.com/dropreg/R-Drop/issues/25) 中给出的。",
    ),
    "claimed": (
        f"README of [zbp-xxxp/R-Drop-Paddle]({_PORT}): 93.44 of the saved weights, 93.92 the best of the training job.",
        f"[zbp-xxxp/R-Drop-Paddle]({_PORT}) 的 README：所存权重 93.44，训练任务中最高 93.92。",
    ),
    "audited": (
        "Counted from the VisualDL logs which that repository published ([record](logs/published/audit.json), "
        "`python -m reproduce.published`). With 4 processes each value was counted on 2,500 images, so only the mean "
        "over the processes is an accuracy on the test set. The run of one process is of August 2021, whose "
        "committed code (f47f6fe) has all dropout rates 0, so that both views are equal and the KL term is 0.",
        "由该仓库公布的 VisualDL 日志算出（[记录](logs/published/audit.json)，`python -m reproduce.published`）。4 个进程时每个数值"
        "只统计了 2,500 张图片，只有各进程的平均才是整个测试集上的精度。单进程的训练是 2021 年 8 月的，当时提交的代码（f47f6fe）中所有 Dropout 率都是 0，"
        "两个视图相等，KL 项为 0。",
    ),
    "zpc": (
        "[zpc-666/Paddle-R-Drop](https://github.com/zpc-666/Paddle-R-Drop), three runs; it reports the same from PyTorch "
        "with the same settings.",
        "[zpc-666/Paddle-R-Drop](https://github.com/zpc-666/Paddle-R-Drop)，三次训练；作者说 PyTorch 在相同设置下结果相同。",
    ),
    "wzh": (
        "[wzh326/R-Drop](https://github.com/wzh326/R-Drop): no log; its evaluation leaves out the last 16 images.",
        "[wzh326/R-Drop](https://github.com/wzh326/R-Drop)：没有日志；评估时漏掉最后 16 张图片。",
    ),
    "google": (
        "[google-research/vision_transformer](https://github.com/google-research/vision_transformer), dropout 0 and 0.1; "
        "it mirrors images and trains on 98 % of them.",
        "[google-research/vision_transformer](https://github.com/google-research/vision_transformer)，dropout 0 与 0.1；"
        "使用水平翻转，用 98 % 的图片训练。",
    ),
    "jeonsworld": (
        "[jeonsworld/ViT-pytorch](https://github.com/jeonsworld/ViT-pytorch).",
        "[jeonsworld/ViT-pytorch](https://github.com/jeonsworld/ViT-pytorch)。",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the table of published figures."""

    model: str
    about: tuple[str, str]  # data set, resolution, steps
    ours: dict  # settings that a run of ours must have to stand in this row
    paper: str = ""
    claimed: str = ""
    audited: bool = False  # the published logs are about this row
    others: tuple[tuple[str, str], ...] = ()  # (figure, source)

    @property
    def rdrop(self) -> bool:
        return self.ours["num_views"] == 2


def _ours(model: str, num_views: int, image_size=384, num_steps=10_000) -> dict:
    """From Google's weights and without mirroring, as the official code: other ingredients are another row."""
    return {"dataset": "cifar100", "train_per_class": 0, "batch_size": 512, "model": model, "num_views": num_views,
            "image_size": image_size, "num_steps": num_steps, "flip": False, "pretrained": f"{model}.npz"}  # fmt: skip


def _imagenet(model: str, num_views: int) -> dict:
    return {"dataset": "imagenet", "train_per_class": 0, "model": model, "num_views": num_views}


_CIFAR = ("CIFAR-100, 384 px", "CIFAR-100，384 px")
_CIFAR_224 = ("CIFAR-100, 224 px", "CIFAR-100，224 px")
_CIFAR_LONG = ("CIFAR-100, 224 px, 20,000 steps", "CIFAR-100，224 px，20,000 步")
_IMAGENET = ("ImageNet", "ImageNet")
ROWS = (
    Row("ViT-B/16", _CIFAR, _ours("ViT-B_16", 1), "92.64",
        others=(("92.06, 91.92", "google"), ("92.28", "jeonsworld"))),
    Row("ViT-B/16 + R-Drop", _CIFAR, _ours("ViT-B_16", 2), "93.29", claimed="93.44, 93.92", audited=True,
        others=(("92.71, 92.65, 92.66", "zpc"), ("93.29", "wzh"))),
    Row("ViT-B/16", _CIFAR_224, _ours("ViT-B_16", 1, 224), others=(("92.3", "jeonsworld"),)),
    Row("ViT-B/16 + R-Drop", _CIFAR_LONG, _ours("ViT-B_16", 2, 224, 20_000)),
    Row("ViT-L/16", _CIFAR, _ours("ViT-L_16", 1), "93.44"),
    Row("ViT-L/16 + R-Drop", _CIFAR, _ours("ViT-L_16", 2), "93.85"),
    Row("ViT-B/16", _IMAGENET, _imagenet("ViT-B_16", 1), "83.97"),
    Row("ViT-B/16 + R-Drop", _IMAGENET, _imagenet("ViT-B_16", 2), "84.38"),
    Row("ViT-L/16", _IMAGENET, _imagenet("ViT-L_16", 1), "85.15"),
    Row("ViT-L/16 + R-Drop", _IMAGENET, _imagenet("ViT-L_16", 2), "85.57"),
)  # fmt: skip
BASELINE, TARGET = ROWS[:2]  # the figure to reproduce, and the one beside it

# What puts the differences between these figures into proportion.
CONTEXT = (
    "For scale: [five fine-tuning runs](https://github.com/google-research/big_vision/blob/main/big_vision/configs/transfer.py) "
    "of ViT-B/32 with AugReg weights span 91.09 to 91.62 on CIFAR-100, a range nearly as wide as the paper's gain of 0.65; the best figures known for ViT-B/16 with ImageNet-21k weights are 94.2 "
    "([MIIL](https://arxiv.org/abs/2104.10972)) and 93.99 ([SSF](https://arxiv.org/abs/2210.08823)).",
    "参考尺度：使用 AugReg 权重的 ViT-B/32 在 CIFAR-100 上[五次微调](https://github.com/google-research/big_vision/blob/main/big_vision/configs/transfer.py)介于 91.09 与 91.62 之间，跨度接近论文的提升 0.65；已知 ViT-B/16 "
    "使用 ImageNet-21k 权重的最好结果为 94.2（[MIIL](https://arxiv.org/abs/2104.10972)）与 93.99"
    "（[SSF](https://arxiv.org/abs/2210.08823)）。",
)  # fmt: skip
