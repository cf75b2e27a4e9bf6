#!/bin/sh
# Does a wheel for arm64 exist of everything that an installation needs, as pinned? Nothing is run there.
set -eu
names=$(python3 - <<'END'
import re, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
wanted = project["dependencies"] + [each for name in ("onnx", "controller", "auth", "grpc") for each in extras[name]]
print(" ".join(sorted({re.match(r"[A-Za-z0-9_-]+", each)[0].lower() for each in wanted})))
END
)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for name in $names; do
    pin=$(grep -i "^$name==" constraints.txt)
    python3 -m pip download --quiet --disable-pip-version-check --dest "$folder" --no-deps --only-binary=:all: \
        --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none \
        --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 --platform any "$pin"
    echo "ok: $pin"
done
