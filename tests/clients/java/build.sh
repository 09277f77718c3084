#!/usr/bin/env bash
# Makes the Java stubs of every contract, and the client, in the folder $1. Run it in the root of the
# repository. Needs a JDK and gRPC from Debian.
set -euo pipefail
out=$1
googleapis=${GOOGLEAPIS:-.cache/googleapis}

# [stubs begins]
mkdir -p "$out/stubs"
mapfile -t protos < <(cd protos && find remit -name '*.proto')
google=(google/{api/{annotations,http},rpc/{code,error_details,status}}.proto)
protoc -I protos -I "$googleapis" --plugin=protoc-gen-grpc="$(command -v grpc_java_plugin)" \
    --java_out="$out/stubs" --grpc_out="$out/stubs" "${protos[@]}" "${google[@]}"
# [stubs ends]

mkdir -p "$out/classes"
# Only what the client reaches is compiled: javac finds it in the source path. So short a task is done
# sooner without the JVM's second compiler.
jars=$(printf '/usr/share/java/%s.jar:' grpc-{api,context,core,netty,protobuf,protobuf-lite,stub} \
    netty-{buffer,codec,codec-http,codec-http2,common,handler,resolver,transport} \
    protobuf protobuf-util guava gson perfmark-api geronimo-annotation-1.3-spec)
javac -J-XX:TieredStopAtLevel=1 -nowarn -classpath "$jars" -sourcepath "$out/stubs" \
    -d "$out/classes" tests/clients/java/Client.java
printf '%s' "$out/classes:$jars" >"$out/classpath"
