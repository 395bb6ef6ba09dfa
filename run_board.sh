#!/usr/bin/env bash
# Show the curves of all runs in logs/ with VisualDL, on this machine only. Ctrl-C ends it.
#
#     bash run_board.sh                              then open http://127.0.0.1:8040
#     bash run_board.sh --port 8041 --logdir logs/RUN
#     bash run_board.sh --help                       VisualDL's options; given here, they replace those below
#
# From another machine: ssh -L 8040:127.0.0.1:8040 HOST. The first start makes .venv (see setup_env.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup_env.sh run

# VisualDL does not end when its port is taken, so look first.
port=8040
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    -p | --port) port=${*:i+1:1} ;;
    --port=*) port=${!i#*=} ;;
    -h | --help) port="" ;;
  esac
done
if [[ -n $port ]] && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  echo "run_board: port $port is in use, perhaps by another board: end that one, or choose --port" >&2
  exit 2
fi

# Without --language, VisualDL 2.5.3 answers 500 to clients that send no Accept-Language header.
exec "$PYTHON" -m visualdl.server.app --logdir logs --host 127.0.0.1 --port 8040 --language en \
  --disable-telemetry "$@"
