#!/usr/bin/env bash
# Installs the plugin into OneTrainer's own environment, enables it and checks it: double-click, or
#   ./install.sh [OneTrainer's folder]          ./install.sh --help
# All it does is to find a Python for onetrainer_ema_select/installer, which does the rest.

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# OneTrainer's own first: it is the one that is there on every machine that can use this.
hosts=("$@")
if [ -n "${ONETRAINER_DIR:-}" ]; then hosts+=("$ONETRAINER_DIR"); fi
hosts+=("$here/.." "$here/../.." "$here/../OneTrainer" "$HOME/OneTrainer")
for script in "$here"/../*/scripts/train.py; do
    hosts+=("${script%/scripts/train.py}")
done
pythons=()
for host in "${hosts[@]}"; do
    pythons+=("$host/venv/bin/python" "$host/.venv/bin/python" "$host/conda_env/bin/python")
done
code=1
for python in "${pythons[@]}" python3 python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' > /dev/null 2>&1; then
        "$python" -I "$here/onetrainer_ema_select/installer/__main__.py" "$@"
        code=$?
        break
    fi
    python=
done
if [ -z "$python" ]; then
    echo "No Python of version 3.10 or newer was found, OneTrainer's own included. Give OneTrainer's folder after the" \
        "script's name, in quotes. If it has no venv yet, run its own install.sh first." >&2
fi

# Started by a file manager, not from a shell, the window would close before the result is read.
if [ -t 0 ] && [ "${SHLVL:-1}" -le 1 ]; then
    read -r -p "Press Enter to close this window. "
fi
exit "$code"
