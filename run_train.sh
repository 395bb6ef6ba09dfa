#!/usr/bin/env bash
# Train a recipe. Start it from the project root: relative paths are taken from there.
#
#     bash run_train.sh                             the default recipe
#     bash run_train.sh RECIPE [--option value ...]
#     bash run_train.sh --help                      recipes and options
#
# The first start makes .venv (see setup_env.sh). A run that was stopped continues when the same command is
# given again. Its records are in logs/, its weights in checkpoints/; bash run_board.sh shows the curves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup_env.sh run
exec "$PYTHON" -m reproduce.train "$@"
