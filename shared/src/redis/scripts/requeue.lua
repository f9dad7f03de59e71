-- Ring again for a job that was rung for before: the old entry goes, whoever holds it.
-- KEYS: work stream, index.  ARGV: group, job.
local old = redis.call('HGET', KEYS[2], ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM') end
if old then
  redis.call('XACK', KEYS[1], ARGV[1], old)
  redis.call('XDEL', KEYS[1], old)
end
redis.call('HSET', KEYS[2], ARGV[2], redis.call('XADD', KEYS[1], '*', 'j', ARGV[2]))
return 1
