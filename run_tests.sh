#!/usr/bin/env bash
# Run the tests. Start it from the project root: relative paths are taken from there.
#
#     bash run_tests.sh                     ruff (lint and format), then all tests but the slow ones, two files at a time
#     bash run_tests.sh tests/test_x.py     pytest alone, with these options
#     bash run_tests.sh -m slow             the slow tests
#     bash run_tests.sh --help              pytest's options
#
# The first start makes .venv with the test tools (see setup_env.sh). Exit code 0 if all is well.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # it was started with sh
set +o posix -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")"
source ./setup_env.sh dev
if (($# == 0)); then
  echo "run_tests: ruff check, ruff format --check, then pytest"
  "$PYTHON" -m ruff check .
  "$PYTHON" -m ruff format --check .
  export OMP_NUM_THREADS=1 # two at a time: a thread each, as waiting threads would take the other's core
  set -- --numprocesses 2 --dist loadfile --no-loadscope-reorder # the tests of a file share what they have prepared
fi
exec "$PYTHON" -m pytest "$@"
