"""Alignment with an independent PyTorch side. `bash run_tests.sh tests/alignment` checks it, and
`python -m tests.alignment.report` writes the tables in logs/alignment/ anew.

torch_side.py   timm's ViT, the loss, optimizer and schedule of the official code; nothing of this project
our_side.py     the product's own functions, up to a whole `reproduce.train.train`
masks.py        the same dropout masks on both sides
stages.py       the five stages: forward, metric, loss, backward, training
report.py       the tables, printed and in logs/alignment/
bench_side.py   what reproduce.bench compares with
"""

import reproduce  # noqa: F401  first, so that Paddle loads under the project's own settings
