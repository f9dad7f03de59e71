-- The hourly window of a user and, where there is a second key, of one of their API keys: both or neither
-- are charged. A window is a hash of one-minute buckets beside their sum (s), the oldest (o) and the newest
-- (n) of them; it is there while s > 0, and o and n are never empty. A bucket counts until 60 whole minutes
-- have passed after its own: no 60 minutes see more than the limit.
-- KEYS: one window or two.  ARGV: charge | refund | peek, the minute to take back from, unix ms or '' for
-- the clock of this server, a limit for each window.
-- Answers {granted, minute, then for each window: remaining, ms until its oldest bucket leaves, ms until a
-- charge passes}.
local operation, taken_back, now = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local minute = math.floor(now / 60000)

local windows = {}
for i, key in ipairs(KEYS) do
  local known = redis.call('HMGET', key, 's', 'o', 'n')
  local sum, oldest, newest = tonumber(known[1]) or 0, tonumber(known[2]), tonumber(known[3])
  -- A clock that was set back by over an hour: what it counted before says nothing.
  if sum > 0 and newest - minute > 60 then
    redis.call('DEL', key)
    sum = 0
  end
  windows[i] = {key = key, limit = tonumber(ARGV[3 + i]), sum = sum, oldest = oldest, newest = newest}
end
-- Set back by less, it stands still until it is where it was.
for _, window in ipairs(windows) do
  if window.sum > 0 and window.newest > minute then
    minute = window.newest
    now = math.max(now, minute * 60000)
  end
end

local function count(window, bucket)
  return tonumber(redis.call('HGET', window.key, bucket)) or 0
end

local function leaves(bucket)
  return (bucket + 61) * 60000 - now
end

-- Walks over each minute once in its life, so that most charges walk nowhere.
local function forget_the_old(window)
  local first = minute - 60
  if window.sum == 0 or window.oldest >= first then return end
  if window.newest < first then
    redis.call('DEL', window.key)
    window.sum = 0
    return
  end
  while window.oldest < first or count(window, window.oldest) == 0 do
    window.sum = window.sum - count(window, window.oldest)
    redis.call('HDEL', window.key, window.oldest)
    window.oldest = window.oldest + 1
  end
  redis.call('HSET', window.key, 's', window.sum, 'o', window.oldest)
end

local function charge(window)
  redis.call('HINCRBY', window.key, minute, 1)
  window.sum = window.sum + 1
  if window.sum > 1 and window.newest == minute then
    redis.call('HSET', window.key, 's', window.sum)
    return
  end
  if window.sum == 1 then window.oldest = minute end
  window.newest = minute
  redis.call('HSET', window.key, 's', window.sum, 'o', window.oldest, 'n', minute)
  redis.call('PEXPIRE', window.key, leaves(minute))
end

-- The bucket the charge went to, and no other: another's place in the window would change.
local function refund(window, bucket)
  if window.sum == 0 then return end
  local used = count(window, bucket)
  if used == 0 then return end
  window.sum = window.sum - 1
  if window.sum == 0 then
    redis.call('DEL', window.key)
    return
  end
  if used > 1 then
    redis.call('HINCRBY', window.key, bucket, -1)
  else
    redis.call('HDEL', window.key, bucket)
    while count(window, window.oldest) == 0 do window.oldest = window.oldest + 1 end
    while count(window, window.newest) == 0 do window.newest = window.newest - 1 end
  end
  redis.call('HSET', window.key, 's', window.sum, 'o', window.oldest, 'n', window.newest)
end

-- With the same limit as ever one bucket has to leave; after it was lowered, perhaps several.
local function wait(window)
  if window.sum < window.limit then return 0 end
  if window.sum == 0 then return 61 * 60000 end
  local bucket, left = window.oldest, window.sum - count(window, window.oldest)
  while left >= window.limit and bucket < window.newest do
    bucket = bucket + 1
    left = left - count(window, bucket)
  end
  return leaves(bucket)
end

local granted = 1
for _, window in ipairs(windows) do
  forget_the_old(window)
  if window.sum >= window.limit then granted = 0 end
end
for _, window in ipairs(windows) do
  if operation == 'refund' then
    refund(window, tonumber(taken_back))
  elseif operation == 'charge' and granted == 1 then
    charge(window)
  end
end

local answer = {granted, minute}
for _, window in ipairs(windows) do
  answer[#answer + 1] = math.max(window.limit - window.sum, 0)
  answer[#answer + 1] = window.sum > 0 and leaves(window.oldest) or 0
  answer[#answer + 1] = wait(window)
end
return answer
