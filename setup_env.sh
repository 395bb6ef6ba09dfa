# shellcheck shell=bash
# Makes .venv once and exports PYTHON, the interpreter to run with. Sourced by the run_*.sh scripts:
#
#     source setup_env.sh run     # what training, evaluation and the board need: requirements.txt
#     source setup_env.sh dev     # that and the test tools: requirements-dev.txt
#
# Needs Python 3.10, 3.11 or 3.12. The first start takes about 2 minutes (1.4 GB on disk, 2.2 GB with the test tools); later ones call no
# pip. What was cut short is made again by the next start, two starts at the same time wait for each other,
# and changed requirements rebuild .venv. A failure is one line (pip's output above it), exit code 2.
#
#     PYTHON=/path/to/python bash run_train.sh   takes that environment as it is; nothing is installed
#     PADDLE_CUDA=cu126 bash run_train.sh        takes that PaddlePaddle: cpu, cu118, cu126, cu129 or cu130
#
# Without PADDLE_CUDA, nvidia-smi decides. The GPU builds have not been run here, for want of a GPU: that part
# follows Paddle's documentation. They may leave out old GPUs; the lower the number, the older the GPU may be.

setup_root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
setup_venv=$setup_root/.venv

setup_say() { printf 'setup: %s\n' "$*" >&2; }
setup_fail() {
  setup_say "$@"
  exit 2
}

# Print the build of PaddlePaddle to have: cpu, or the newest CUDA build that the NVIDIA driver can run.
setup_build() {
  local recorded banner version=none build
  case ${PADDLE_CUDA:-} in
    '') ;;
    cpu | cu118 | cu126 | cu129 | cu130) echo "$PADDLE_CUDA" && return ;;
    *) setup_fail "PADDLE_CUDA=$PADDLE_CUDA is not known: it is one of cpu, cu118, cu126, cu129, cu130" ;;
  esac
  # A GPU build that is there stays: it runs on newer drivers too, and on the CPU where there is no GPU.
  if read -r recorded _ 2>/dev/null <"$setup_venv/.stamp-run" && [[ $recorded == cu* ]]; then
    echo "$recorded" && return
  fi
  if banner=$(nvidia-smi 2>/dev/null); then
    # The newest CUDA that the driver can run. Newer drivers call it "CUDA UMD Version".
    [[ $banner =~ CUDA\ (UMD\ )?Version:\ *([0-9]+\.[0-9]) ]] && version=${BASH_REMATCH[2]}
    for build in 130 129 126 118; do
      if [[ $version != none ]] && ((${version/./} >= build)); then
        echo "cu$build" && return
      fi
    done
    setup_say "taking the CPU build: nvidia-smi reports CUDA version $version, the GPU builds need 11.8"
  fi
  echo cpu
}

# Print what .venv has to be, in one line: build, Python version, checksum of the requirement files. It is
# complete for a SET when the file .stamp-SET in it holds that line.
setup_stamp() { # SET BUILD
  local files=("$setup_root/requirements.txt") version
  [[ $1 == run ]] || files+=("$setup_root/requirements-dev.txt")
  version=$("$setup_venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) &&
    printf '%s python-%s %s\n' "$2" "$version" "$(cat "${files[@]}" | cksum)"
}

setup_complete() { # SET BUILD
  local wanted
  wanted=$(setup_stamp "$@") && [[ $(cat "$setup_venv/.stamp-$1" 2>/dev/null) == "$wanted" ]]
}

# Print the command of a Python that can make .venv, and its version.
setup_find_python() {
  local candidate version
  for candidate in python3.12 python3.11 python3.10 python3 python; do
    # Run it: pyenv leaves commands in PATH that only fail, and Debian's Python comes without ensurepip.
    version=$("$candidate" -c '
import ensurepip, sys, venv
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(1)
print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
    echo "$candidate $version" && return
  done
  return 1
}

# Print the requirements of a SET without those of the sets below it, PaddlePaddle as the BUILD names it.
setup_requirements() { # SET BUILD
  if [[ $1 == dev ]]; then
    grep -v '^-r ' "$setup_root/requirements-dev.txt"
  elif [[ $2 == cpu ]]; then
    cat "$setup_root/requirements.txt"
  else
    sed 's/^paddlepaddle==/paddlepaddle-gpu==/' "$setup_root/requirements.txt"
  fi
}

setup_pip() { # SET BUILD PIP-OPTION...
  local list=$setup_venv/requirements-$1.txt log=$setup_venv/pip.log
  setup_requirements "$1" "$2" >"$list" || setup_fail "cannot write $list"
  # PyPI's paddlepaddle-gpu ends at 2.6; Paddle's own index has a folder for each CUDA version.
  [[ $2 == cpu ]] || set -- "$@" --extra-index-url "https://www.paddlepaddle.org.cn/packages/stable/$2/"
  if ! "$setup_venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    -r "$list" "${@:3}" >"$log" 2>&1; then
    cat "$log" >&2
    setup_fail "pip failed, its output is above: check network and disk space, then start again"
  fi
}

setup_install() { # SET BUILD
  local python version again=""
  trap 'setup_say "interrupted; the next start makes .venv again"; exit 130' INT TERM
  if ! setup_complete run "$2" || [[ -e $setup_venv/.stamp-dev ]]; then
    read -r python version < <(setup_find_python) ||
      setup_fail "no Python 3.10, 3.11 or 3.12 with ensurepip in PATH: install one (on Debian with" \
        "python3-venv), or set PYTHON=/path/to/python of an environment that has PaddlePaddle"
    [[ ! -e $setup_venv/bin ]] || again=" again (it was incomplete or outdated)"
    setup_say "creating .venv$again with Python $version and the ${2/#cpu/CPU} build of PaddlePaddle" \
      "$(sed -n 's/^paddlepaddle==//p' "$setup_root/requirements.txt"); about 2 minutes the first time"
    # Stamps first: what is left after a kill at any point must not look complete. The lock stays.
    rm -f "$setup_venv"/.stamp-*
    find "$setup_venv" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
    "$python" -m venv "$setup_venv" || setup_fail "$python could not make .venv, see above"
    setup_pip run "$2"
    setup_stamp run "$2" >"$setup_venv/.stamp-run"
  fi
  if [[ $1 == dev ]]; then
    setup_say "adding the test tools to .venv"
    # All of these packages, whatever a kill left of them, and no others: the set "run" stays complete.
    setup_pip dev "$2" --no-deps --ignore-installed
    setup_stamp dev "$2" >"$setup_venv/.stamp-dev"
  fi
}

# The user's own environment: nothing is installed there, so say here if something is missing.
setup_check_given() { # SET
  local needed=paddle reason
  [[ $1 == run ]] || needed="paddle, pytest"
  command -v "$PYTHON" >/dev/null || setup_fail "PYTHON=$PYTHON is not a program"
  reason=$("$PYTHON" -c "import $needed" 2>&1 >/dev/null) ||
    setup_fail "PYTHON=$PYTHON cannot import $needed (${reason##*$'\n'}): install the requirements there," \
      "or unset PYTHON to have .venv made"
}

setup_main() { # SET
  local build
  [[ $1 == run || $1 == dev ]] || setup_fail "usage: source setup_env.sh run|dev, not '$1'"
  if [[ -n ${PYTHON:-} ]]; then
    setup_check_given "$1"
    return
  fi
  build=$(setup_build) || exit
  if ! setup_complete "$1" "$build"; then
    if [[ ! -e $setup_venv/.lock && -n $(ls -A "$setup_venv" 2>/dev/null) ]]; then
      setup_fail ".venv was not made by setup_env.sh and is left alone: remove it," \
        "or use it with PYTHON=.venv/bin/python"
    fi
    { mkdir -p "$setup_venv" && touch "$setup_venv/.lock"; } 2>/dev/null ||
      setup_fail "cannot write $setup_venv"
    (
      # pip inherits the lock, so it is held until pip has ended, even if this shell is killed.
      if command -v flock >/dev/null && ! flock --nonblock 9; then
        setup_say "another start is making .venv: waiting for it"
        flock 9
      fi
      setup_complete "$1" "$build" || setup_install "$1" "$build"
    ) 9>>"$setup_venv/.lock" || exit
  fi
  PYTHON=$setup_venv/bin/python
}

setup_main "${1:-run}"
export PYTHON
