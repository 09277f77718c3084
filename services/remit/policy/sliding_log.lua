-- Counts one admission against every key, or against none; the log of remit.policy.limits, kept by
-- Redis for all replicas. A script runs alone, so what it reads is still true when it writes.
--
-- KEYS: a list of admission times for each limit, in microseconds, oldest first.
-- ARGV: for each key how many are allowed, and the window in microseconds.
-- Returns the time, then for each key the microseconds until it has a place; 0: it has one.

-- Redis before 7 repeats a script on its replicas unless it is told to send what was written.
redis.replicate_commands()

-- The server's own time, which all replicas share. 2^53 microseconds are 285 years.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for _, key in ipairs(KEYS) do
  -- Set back, a clock would let old admissions count for longer; time does not go backwards.
  local last = redis.call('LINDEX', key, -1)
  if last then now = math.max(now, tonumber(last)) end
end

local answer = {string.format('%.0f', now)}
local admitted = true
for i, key in ipairs(KEYS) do
  local most, window = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local oldest = redis.call('LINDEX', key, -most)
  local wait = oldest and math.max(0, tonumber(oldest) + window - now) or 0
  if wait > 0 then admitted = false end
  answer[i + 1] = string.format('%.0f', wait)
end
if not admitted then return answer end

for i, key in ipairs(KEYS) do
  local most, window = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  redis.call('RPUSH', key, string.format('%.0f', now))
  redis.call('LTRIM', key, -most, -1)
  redis.call('PEXPIRE', key, math.ceil(window / 1000))
end
return answer
