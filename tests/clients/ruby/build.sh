#!/usr/bin/env bash
# Makes the Ruby stubs of every contract in the folder $1. Run it in the root of the repository.
# Needs Ruby with grpc and grpc-tools.
set -euo pipefail
out=$1
googleapis=${GOOGLEAPIS:-.cache/googleapis}

# [stubs begins]
mkdir -p "$out"
mapfile -t protos < <(cd protos && find remit -name '*.proto')
grpc_tools_ruby_protoc -I protos -I "$googleapis" \
    --ruby_out="$out" --grpc_out="$out" "${protos[@]}"
# [stubs ends]

ruby -wc tests/clients/ruby/client.rb
