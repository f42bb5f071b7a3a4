-- What to send: with arguments, a method and the length of a body; else GET without.
function init(args)
  if #args == 2 then
    wrk.method = args[1]
    local length = tonumber(args[2])
    if length > 0 then
      wrk.body = string.rep("x", length)
    end
  end
end

-- Writes what wrk measured as one line of JSON; latencies in microseconds.
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "duration_us": %d, "p50_us": %.1f, "p99_us": %.1f, "failed": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
