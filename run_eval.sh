#!/usr/bin/env bash
# Evaluate weights: a checkpoint of run_train.sh, or a downloaded file. Start it from the project root:
# relative paths are taken from there.
#
#     bash run_eval.sh                              the digits weights that lie in checkpoints/
#     bash run_eval.sh WEIGHTS [--option value ...]
#     bash run_eval.sh --help                       options and file types
#
# Prints the accuracy, counted over exactly the images of the split. The first start makes .venv (see
# setup_env.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup_env.sh run
exec "$PYTHON" -m reproduce.evaluate "$@"
