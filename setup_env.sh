# shellcheck shell=bash
# Makes .venv once and exports PYTHON, the interpreter to run with. Sourced by the run_*.sh scripts:
#
#     source setup_env.sh run     # training, evaluation and the board: requirements.txt, 1.4 GB
#     source setup_env.sh dev     # and the test tools: requirements-dev.txt, 2.2 GB
#
# Needs Python 3.10, 3.11 or 3.12, and takes about 2 minutes the first time. Changed requirements make a new .venv
# beside the old one, which stays in use if that fails. A failure is one line (pip's output above it), exit code 2.
#
#     PYTHON=/path/to/python bash run_train.sh   takes that environment as it is; nothing is installed
#     PADDLE_CUDA=cu126 bash run_train.sh        takes that PaddlePaddle: cpu, cu118, cu126, cu129 or cu130
#
# Without PADDLE_CUDA, nvidia-smi decides. The GPU builds have not been run here, for want of a GPU.

setup_root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
setup_venv=$setup_root/.venv

setup_say() { printf 'setup: %s\n' "$*" >&2; }
setup_fail() {
  setup_say "$@"
  exit 2
}

# Print the build of PaddlePaddle to have: cpu, or the newest CUDA build that the NVIDIA driver can run.
setup_build() {
  local recorded banner version=none cards oldest youngest
  case ${PADDLE_CUDA:-} in
    '') ;;
    cpu | cu118 | cu126 | cu129 | cu130) echo "$PADDLE_CUDA" && return ;;
    *) setup_fail "PADDLE_CUDA=$PADDLE_CUDA is not known: it is one of cpu, cu118, cu126, cu129, cu130" ;;
  esac
  # A GPU build that is there stays: it runs on newer drivers too, and on the CPU where there is no GPU.
  if read -r recorded _ 2>/dev/null <"$setup_venv/.stamp-run" && [[ $recorded == cu* ]]; then
    echo "$recorded" && return
  fi
  banner=$(nvidia-smi 2>/dev/null) || { echo cpu && return; }
  # The newest CUDA that the driver can run. Newer drivers call it "CUDA UMD Version".
  [[ $banner =~ CUDA\ (UMD\ )?Version:\ *([0-9]+\.[0-9]) ]] && version=${BASH_REMATCH[2]}
  cards=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -n) || cards=""
  oldest=${cards%%$'\n'*} youngest=${cards##*$'\n'}
  # Newer builds leave out Volta (V100) and older cards, whose drivers are as new.
  if [[ $version =~ ^1[2-9] && $oldest =~ ^([3-6]\.[0-9]|7\.[0-4])$ ]]; then
    version=11.8
  fi
  case $version in
    1[3-9].* | [2-9][0-9].*) echo cu130 ;;
    12.9) echo cu129 ;;
    12.*) # a driver of CUDA 12.0 runs what was built for any 12.x; CUDA 12.6 does not know Blackwell (10.0 on) yet
      if [[ $youngest =~ ^[1-9][0-9]\. ]]; then echo cu129; else echo cu126; fi
      ;;
    11.[89]) echo cu118 ;;
    *)
      setup_say "taking the CPU build: nvidia-smi reports CUDA version $version, the GPU builds need 11.8"
      echo cpu
      ;;
  esac
}

# Print what an environment has to be, in one line: build, Python version, checksum of the requirements. It is
# complete for a SET when the file .stamp-SET in it holds that line.
setup_stamp() { # SET BUILD FOLDER
  local files=("$setup_root/requirements.txt") version
  [[ $1 == run ]] || files+=("$setup_root/requirements-dev.txt")
  version=$("$3/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) &&
    printf '%s python-%s %s\n' "$2" "$version" "$(cat "${files[@]}" | cksum)"
}

setup_complete() { # SET BUILD
  local wanted
  wanted=$(setup_stamp "$@" "$setup_venv") && [[ $(cat "$setup_venv/.stamp-$1" 2>/dev/null) == "$wanted" ]]
}

# Print the command of a Python that can make an environment, and its version.
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

# Install a SET without those below it, PaddlePaddle as the BUILD names it.
setup_pip() { # SET BUILD FOLDER PIP-OPTION...
  local list=$3/requirements-$1.txt log=$3/pip.log options=("${@:4}")
  if [[ $1 == dev ]]; then
    grep -v '^-r ' "$setup_root/requirements-dev.txt"
  elif [[ $2 == cpu ]]; then
    cat "$setup_root/requirements.txt"
  else
    sed 's/^paddlepaddle==/paddlepaddle-gpu==/' "$setup_root/requirements.txt"
  fi >"$list" || setup_fail "cannot write $list"
  # PyPI's paddlepaddle-gpu ends at 2.6; Paddle's own index has a folder for each CUDA version.
  [[ $2 == cpu ]] || options+=(--extra-index-url "https://www.paddlepaddle.org.cn/packages/stable/$2/")
  if ! "$3/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$list" \
    "${options[@]}" >"$log" 2>&1; then
    cat "$log" >&2
    setup_fail "pip failed, its output is above: check network and disk space, then start again (a machine without" \
      "internet: see docs/cluster.md)"
  fi
}

# Make a new environment beside the old one, then put it in its place.
setup_make() { # BUILD
  local python version again="" new=$setup_venv.new file text
  read -r python version < <(setup_find_python) ||
    setup_fail "no Python 3.10, 3.11 or 3.12 with ensurepip in PATH: install one (on Debian with" \
      "python3-venv), or set PYTHON=/path/to/python of an environment that has PaddlePaddle"
  [[ ! -e $setup_venv/bin ]] || again=" again (it was incomplete or outdated)"
  setup_say "creating .venv$again with Python $version and the ${1/#cpu/CPU} build of PaddlePaddle" \
    "$(sed -n 's/^paddlepaddle==//p' "$setup_root/requirements.txt"); about 2 minutes the first time"
  rm -rf "$new"
  "$python" -m venv "$new" || setup_fail "$python could not make $new, see above"
  setup_pip run "$1" "$new"
  for file in "$new"/bin/*; do # scripts that name their interpreter
    if [[ ! -L $file ]] && grep -qIF "$new" "$file"; then
      text=$(<"$file")
      printf '%s\n' "${text//"$new"/"$setup_venv"}" >"$file"
    fi
  done
  setup_stamp run "$1" "$new" >"$new/.stamp-run"
  rm -rf "$setup_venv.old"
  [[ ! -e $setup_venv ]] || mv "$setup_venv" "$setup_venv.old"
  mv "$new" "$setup_venv"
  rm -rf "$setup_venv.old"
}

# All test tools, whatever a kill left of them, and no other packages: the set "run" stays complete.
setup_add_tools() { # BUILD
  setup_say "adding the test tools to .venv"
  setup_pip dev "$1" "$setup_venv" --no-deps --ignore-installed
  setup_stamp dev "$1" "$setup_venv" >"$setup_venv/.stamp-dev"
}

# The user's own environment: nothing is installed there, so say here what is missing. Nothing is imported, which
# would cost the start of every run seconds.
setup_check_given() { # SET
  local needed="paddle visualdl numpy pandas matplotlib scipy PIL safetensors tqdm filelock requests urllib3" said
  [[ $1 == run ]] || needed+=" pytest"
  command -v "$PYTHON" >/dev/null || setup_fail "PYTHON=$PYTHON is not a program"
  said=$("$PYTHON" -c "from importlib.util import find_spec
print('missing:', *(name for name in '$needed'.split() if find_spec(name) is None))" 2>&1)
  [[ $said == missing:* ]] || setup_fail "PYTHON=$PYTHON is not a Python interpreter"
  [[ $said == missing: ]] || setup_fail "PYTHON=$PYTHON has no ${said#missing: }: install the requirements there," \
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
    if [[ -n $(ls -A "$setup_venv" 2>/dev/null) && ! -e $setup_venv/.stamp-run ]]; then
      setup_fail ".venv was not made by setup_env.sh and is left alone: remove it," \
        "or use it with PYTHON=.venv/bin/python"
    fi
    touch "$setup_venv.lock" 2>/dev/null || setup_fail "cannot write $setup_venv.lock"
    (
      trap 'setup_say "interrupted; the next start makes .venv again"; exit 130' INT TERM
      # pip inherits the lock, so it is held until pip has ended, even if this shell is killed.
      if command -v flock >/dev/null && ! flock --nonblock 9; then
        setup_say "another start is making .venv: waiting for it"
        flock 9
      fi
      setup_complete run "$build" || setup_make "$build"
      [[ $1 == run ]] || setup_complete dev "$build" || setup_add_tools "$build"
    ) 9>>"$setup_venv.lock" || exit
  fi
  PYTHON=$setup_venv/bin/python
}

setup_main "${1:-run}"
export PYTHON
