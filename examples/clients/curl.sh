#!/bin/sh
# Is 97 prime? Is 91? `-i` shows the headers, which say what answered.
curl -sS -i --fail-with-body http://localhost:8080/v2/models/primes/infer -d '{
  "inputs": [{"name": "number", "datatype": "INT64", "shape": [2, 1], "data": [97, 91]}]
}'
