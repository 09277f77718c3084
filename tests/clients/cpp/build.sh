#!/usr/bin/env bash
# Makes the C++ stubs of every contract, and the client, in the folder $1. Run it in the root of the
# repository. Needs a C++ compiler, gRPC and pkg-config.
set -euo pipefail
out=$1
googleapis=${GOOGLEAPIS:-.cache/googleapis}

# [stubs begins]
mkdir -p "$out/stubs"
mapfile -t protos < <(cd protos && find remit -name '*.proto')
google=(google/{api/{annotations,http},rpc/{code,error_details,status}}.proto)
protoc -I protos -I "$googleapis" --plugin=protoc-gen-grpc="$(command -v grpc_cpp_plugin)" \
    --cpp_out="$out/stubs" --grpc_out="$out/stubs" "${protos[@]}" "${google[@]}"
# [stubs ends]

# Only what the client reaches is compiled, two files at a time.
sources=(client.cc remit/api/agent/v1/{agent_service.grpc,agent_service,confidence,explanation,run}.pb.cc
    remit/api/{audit/v1/event,cost/v1/reservation,effects/v1/attempt,options/v1/options}.pb.cc
    remit/api/{policy/v1/permission,tools/v1/tool,usage/v1/usage}.pb.cc
    google/{rpc/error_details,rpc/status,rpc/code,api/http,api/annotations}.pb.cc)
cp tests/clients/cpp/client.cc "$out/stubs"
cd "$out/stubs"
read -r -a flags <<<"$(pkg-config --cflags grpc++ protobuf)"
read -r -a libraries <<<"$(pkg-config --libs grpc++ protobuf)"
printf '%s\n' "${sources[@]}" | xargs -P 2 -I {} \
    g++ -std=c++17 -O0 -Wall -Wextra -Werror "${flags[@]}" -I. -c {} -o {}.o
g++ "${sources[@]/%/.o}" "${libraries[@]}" -o "$out/client"
