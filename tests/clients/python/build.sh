#!/usr/bin/env bash
# Makes the Python stubs of every contract in the folder $1. Run it in the root of the repository.
# Needs grpcio-tools.
set -euo pipefail
out=$1
googleapis=${GOOGLEAPIS:-.cache/googleapis}

# [stubs begins]
mkdir -p "$out"
mapfile -t protos < <(cd protos && find remit -name '*.proto')
python -m grpc_tools.protoc -I protos -I "$googleapis" \
    --python_out="$out" --grpc_python_out="$out" "${protos[@]}"
# [stubs ends]
