"""The words of the table of targets in both languages."""
# ruff: noqa: E501 (sentences; Chinese counts double)

TARGETS_TEXT = {
    "en": {
        "intro": "What was aimed at, reached or not:",
        "header": ("target", "measured", "reached"),
        "yes": "yes", "no": "**no**",
        "pytorch": "{}: R-Drop step at most 1 x PyTorch's time",
        "seed_like": "{}: at least {} x as fast as plain Paddle under its own settings, which are one thread",
        "one view": "{}: at most {} x the step with one view",
        "memory": "{}: less memory than PyTorch and plain Paddle (ours, the least of theirs)",
        "input": "input: at least {} x the images a second of paddle.vision.transforms",
        "reasons": {
            "pytorch": "PyTorch: of the 0.5 s of a ViT-Ti/16 step 0.21 s are matrix products ([profile](logs/bench/profile_ti16.txt)), as fast as PyTorch's; the rest are passes over memory, which NumPy and Paddle make on one core and PyTorch on both.",
            "seed_like": "Plain Paddle: on this Intel processor it is slow for its one thread and its copies alone. On AMD processors its MKL takes a slow path besides: there the published Paddle code took 75 s for a ViT-B/16 step and a tuned one 15.7 s, measured when this project was planned.",
            "memory": "Memory: what must be kept comes to 2.7 GB in ViT-B/16, masks to 0.15 (0.03 since then, not in the table yet) and the libraries to 0.35; the rest are holes in the heap, which depend on the order of sizes.",
            "input": "Input: 64 crops at 384 px take 38 ms on one core, of which the product that writes their 113 MB takes 19 and the matrices that it multiplies 16 (5 since then, 27 ms together, not in the table yet); at 20 x nothing but the writing would already be too slow.",
        },
    },
    "cn": {
        "intro": "目标与结果，无论是否达到：",
        "header": ("目标", "测得", "达到"),
        "yes": "是", "no": "**否**",
        "pytorch": "{}：R-Drop 一步用时不超过 PyTorch 的 1 倍",
        "seed_like": "{}：至少为默认设置（单线程）下朴素 Paddle 的 {} 倍快",
        "one view": "{}：不超过一个视图时一步的 {} 倍",
        "memory": "{}：内存少于 PyTorch 与朴素 Paddle（本项目，其中较小者）",
        "input": "输入：每秒图片数至少为 paddle.vision.transforms 的 {} 倍",
        "reasons": {
            "pytorch": "PyTorch：ViT-Ti/16 一步的 0.5 秒中矩阵乘法占 0.21 秒（[剖析](logs/bench/profile_ti16.txt)），与 PyTorch 一样快；其余是对内存的遍历，NumPy 与 Paddle 用单核，PyTorch 用双核。",
            "seed_like": "朴素的 Paddle：在这台 Intel 机器上它只慢在单线程与多余的拷贝。在 AMD 处理器上它的 MKL 还会走慢路径：规划本项目时在那里测得，已发布的 Paddle 代码一步 ViT-B/16 用 75 秒，调优后 15.7 秒。",
            "memory": "内存：ViT-B/16 必须保留的有 2.7 GB，掩码 0.15 GB（此后降为 0.03，尚未计入表中），各个库 0.35 GB；其余是堆中的空洞，取决于分配大小的次序。",
            "input": "输入：单核上 64 张 384 px 的裁剪用 38 毫秒，其中写出这 113 MB 的矩阵乘法 19 毫秒，构造两个矩阵 16 毫秒（此后降为 5，共 27 毫秒，尚未计入表中）；若要 20 倍，仅写出就已超时。",
        },
    },
}  # fmt: skip
