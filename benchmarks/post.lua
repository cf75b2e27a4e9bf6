-- wrk script: posts the body in the file $BODY with $HEADERS (one a line) and prints what was measured as JSON.
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
for name, value in string.gmatch(os.getenv("HEADERS"), "([^:\n]+): ([^\n]+)") do
  wrk.headers[name] = value
end

function done(summary, latency, requests)
  local errors = summary.errors
  local broken = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format(
    '\nRESULT {"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "max_us": %d, "failed": %d}\n',
    summary.requests - errors.status, summary.duration, latency:percentile(50), latency:percentile(99),
    latency.max, errors.status + broken))
end
