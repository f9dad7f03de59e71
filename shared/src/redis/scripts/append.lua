-- Append events to one job's log, like a tiny TCP: repeats are dropped, holes and zombies refused.
-- KEYS: log stream, channel.  ARGV: attempt, number of the first event, life of the log in ms, events…
-- Answers {0, last n} when all are in the log, {1, n} when the log ends before and wants n first,
-- {2, attempt} when a newer attempt owns the log.
local attempt, first = tonumber(ARGV[1]), tonumber(ARGV[2])
local last_attempt, last_n = 0, -1
local tail = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if tail[1] then
  local a, n = string.match(tail[1][1], '^(%d+)-(%d+)$')
  last_attempt, last_n = tonumber(a), tonumber(n)
end
if last_attempt > attempt then return {2, last_attempt} end
local expected = last_attempt == attempt and last_n + 1 or 0
if first > expected then return {1, expected} end

local fresh, bytes = {}, 0
for i = 4, #ARGV do
  local n = first + i - 4
  if n >= expected then
    redis.call('XADD', KEYS[1], attempt .. '-' .. n, 'd', ARGV[i])
    fresh[#fresh + 1] = ARGV[i]
    bytes = bytes + #ARGV[i]
    last_n = n
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if #fresh > 0 then
  local news = attempt .. '-' .. last_n
  -- A whole batch of small ones: who watches need not ask for it.
  if bytes <= 65536 then news = news .. '\n' .. table.concat(fresh, '\n') end
  redis.call('PUBLISH', KEYS[2], news)
end
return {0, last_n}
