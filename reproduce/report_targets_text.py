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
            "pytorch": "PyTorch: of the 0.5 s of a ViT-Ti/16 step 0.21 s are matrix products ([profile](logs/bench/profile_ti16.txt)) at the machine's speed; the rest are passes over memory, which NumPy and Paddle make on one core and PyTorch on both. Giving NumPy's passes two threads was tried and gained nothing: between its short operations they wait for Python's lock, and the matrix library's waiting thread keeps the second core busy.",
            "seed_like": "Plain Paddle: in ViT-B/16 matrix products alone take 4.6 s of a step ([profile](logs/bench/profile_b16.txt)), so that 4 x would leave less than a second for everything else. On this Intel processor it is slow for its one thread and its copies alone. On AMD processors its MKL takes a slow path besides: there the published Paddle code took 75 s for a ViT-B/16 step and a tuned one 15.7 s, measured when this project was planned.",
            "memory": "Memory: PyTorch's fused attention keeps no attention weights for the backward pass ([without it](logs/bench/memory_b16.txt) PyTorch takes 0.59 GB more); here they are kept, 0.33 GB in ViT-B/16 (16 images x 12 heads x 197² x 4 bytes in 11 blocks), as computing them again would take time. In ViT-Ti/16 they are small, and Paddle's process is larger before the first step (the figure less that in brackets).",
            "input": "Input: 20 x would be 64 crops at 384 px, 113 MB of float32, every 7 ms from one core.",
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
            "pytorch": "PyTorch：ViT-Ti/16 一步的 0.5 秒中矩阵乘法占 0.21 秒（[剖析](logs/bench/profile_ti16.txt)），已是这台机器的速度；其余是对内存的遍历，NumPy 与 Paddle 用单核，PyTorch 用双核。试过让 NumPy 的遍历用两个线程，没有收益：短小的操作之间要等 Python 的锁，而矩阵库等待中的线程占着第二个核。",
            "seed_like": "朴素的 Paddle：ViT-B/16 一步中仅矩阵乘法就占 4.6 秒（[剖析](logs/bench/profile_b16.txt)），若要 4 倍，其余一切只剩不到一秒。在这台 Intel 机器上它只慢在单线程与多余的拷贝。在 AMD 处理器上它的 MKL 还会走慢路径：规划本项目时在那里测得，已发布的 Paddle 代码一步 ViT-B/16 用 75 秒，调优后 15.7 秒。",
            "memory": "内存：PyTorch 的融合注意力不为反向保留注意力权重（[不用它](logs/bench/memory_b16.txt)时 PyTorch 多用 0.59 GB）；这里保留，ViT-B/16 为 0.33 GB（16 张图 x 12 头 x 197² x 4 字节，11 个 block），因为重新计算要花时间。ViT-Ti/16 中它们很小，差别在于第一步之前 Paddle 的进程更大（该数字减去括号中的数字）。",
            "input": "输入：20 倍意味着单核每 7 毫秒产出 64 张 384 px 的裁剪，即 113 MB 的 float32。",
        },
    },
}  # fmt: skip
