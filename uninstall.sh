#!/usr/bin/env bash
# Takes the plugin out of OneTrainer again, without a trace: double-click, or
#   ./uninstall.sh [OneTrainer's folder]

exec bash "$(dirname -- "${BASH_SOURCE[0]}")/install.sh" --uninstall "$@"
