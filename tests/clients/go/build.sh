#!/usr/bin/env bash
# Makes the Go stubs of every contract, and the client, in the folder $1. Run it in the root of the
# repository. Needs Go and gRPC from Debian. golang-github-golang-protobuf-1-3-dev, which apt prefers,
# cannot encode what protoc-gen-go makes: install golang-github-golang-protobuf-1-5-dev in its place.
set -euo pipefail
out=$1
googleapis=${GOOGLEAPIS:-.cache/googleapis}

# [stubs begins]
mkdir -p "$out/src"
mapfile -t protos < <(cd protos && find remit -name '*.proto')
options=()
for proto in "${protos[@]}"; do # remit/api/agent/v1/run.proto is of package agentv1
    folder=$(dirname "$proto")
    area=$(basename "$(dirname "$folder")")
    options+=("--go_opt=M$proto=$folder;${area}v1" "--go-grpc_opt=M$proto=$folder;${area}v1")
done
protoc -I protos -I "$googleapis" "${options[@]}" \
    --go_out="$out/src" --go-grpc_out="$out/src" "${protos[@]}"
# [stubs ends]

# Debian's Go libraries are one GOPATH, the stubs another.
export GO111MODULE=off GOPATH="$out:/usr/share/gocode"
export GOCACHE="${GOCACHE:-$out/go-build}"
# Neither optimised nor with debug information: it is built more often than it is run.
GOGC=400 go build -ldflags='-s -w' -gcflags='google.golang.org/...=-N -l' \
    -o "$out/client" tests/clients/go/main.go
