#!/bin/sh
# pythons.sh PYTHON...: each in a fresh environment: the decisions' tests, then a cluster that deploys and answers.
set -eu
for python in "$@"; do
    if ! command -v "$python" >/dev/null; then
        echo "skipped: $python isn't installed here"
        continue
    fi
    version=$("$python" -c 'import platform; print(platform.python_version())')
    folder=build/pythons/$version
    echo "== $python is $version"
    "$python" -m venv "$folder"
    "$folder/bin/pip" install -qq --disable-pip-version-check --require-hashes --only-binary :all: -r locks/dev.txt
    "$folder/bin/pip" install -qq --disable-pip-version-check --no-deps --no-build-isolation .
    "$folder/bin/python" -m pytest --quiet --numprocesses 2 -p no:cacheprovider tests/unit
    "$folder/bin/python" -m pytest --quiet -p no:cacheprovider tests/integration/test_agent_faults.py \
        tests/integration/test_ends_and_claims.py
done
