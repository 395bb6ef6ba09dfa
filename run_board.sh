#!/usr/bin/env bash
# Show the curves of your runs in logs/, and of logs/evidence, with VisualDL, on this machine only. Ctrl-C ends it.
#
#     bash run_board.sh                              then open http://127.0.0.1:8040/app
#     bash run_board.sh FOLDER... --port 8041        the record files in these folders too
#     bash run_board.sh --logdir logs/RUN            that run alone
#     bash run_board.sh --help                       VisualDL's options; given here, they replace those below
#
# From another machine: ssh -L 8040:127.0.0.1:8040 HOST. The first start makes .venv (see setup_env.sh).
set -euo pipefail
called_from=$PWD
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")"

fail() {
  echo "run_board: $*" >&2
  exit 2
}

folders=()
while (($#)) && [[ $1 != -* ]]; do
  folder=$1
  [[ $folder == /* ]] || folder=$called_from/$folder
  [[ -d $folder ]] || fail "$1: no such folder; give folders of VisualDL record files, before any option"
  folder=$(realpath "$folder")
  [[ -n $(find "$folder" -name '*vdlrecords*' -print -quit) ]] ||
    fail "$1: no VisualDL record files (vdlrecords.*) in this folder; name one that has some"
  folders+=("$folder")
  shift
done
source ./setup_env.sh run

# VisualDL does not end when its port is taken, so look first.
port=8040
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    -p | --port) port=${*:i+1:1} ;;
    --port=*) port=${!i#*=} ;;
    --logdir) [[ -d ${*:i+1:1} ]] || fail "--logdir ${*:i+1:1}: no such folder" ;;
    -h | --help) exec "$PYTHON" -m visualdl.server.app --help ;;
  esac
done
[[ $port =~ ^[0-9]+$ ]] || fail "--port $port: not a number"
if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  fail "port $port is in use, perhaps by another board: end that one, or choose --port"
fi

# VisualDL shows one file a folder, the newest, without a word about the others. So each file that has neighbours gets
# a folder of its own, made of links, which the next start on this port makes anew.
links=data/downloads/board-$port
rm -rf "$links"
shown=(logs)
for folder in "${folders[@]}"; do
  mapfile -t files < <(find "$folder" -name '*vdlrecords*' | sort)
  if [[ -z $(printf '%s\n' "${files[@]%/*}" | sort | uniq -d) ]]; then
    shown+=("$folder")
    continue
  fi
  run=$links/$(basename "$folder")
  while [[ -e $run ]]; do run+=+; done
  for file in "${files[@]}"; do
    place=$run${file#"$folder"}
    mkdir -p "${place%.log}"
    ln -s "$(realpath "$file")" "${place%.log}/"
  done
  shown+=("$run")
done

# Without --language, VisualDL 2.5.3 answers 500 to clients that send no Accept-Language header.
exec "$PYTHON" -m visualdl.server.app --host 127.0.0.1 --port 8040 --language en --disable-telemetry \
  --logdir "${shown[@]}" "$@"
